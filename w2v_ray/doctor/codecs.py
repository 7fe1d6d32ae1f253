"""Checks of codecs: a tone is written in each format and read back as a job would read it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from w2v_ray.doctor.finding import Finding, ok, problem, reason_of

__all__ = ["check_codecs"]

_RATE_HZ = 16_000
_HERTZ = 440.0
_SNDFILE = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "mp3": ("MP3", None),
}
_FFMPEG = {"m4a": ("mp4", "aac"), "aac": ("adts", "aac"), "webm": ("webm", "libopus")}


def check_codecs() -> Iterator[Finding]:
    """Whether each library of codecs writes a second of a tone that is read back as one."""
    import soundfile

    yield _tried(f"soundfile {soundfile.__version__}, {soundfile.__libsndfile_version__}", list(_SNDFILE))
    import av

    library = ".".join(map(str, av.library_versions["libavcodec"]))
    yield _tried(f"PyAV {av.__version__}, FFmpeg's libavcodec {library}", list(_FFMPEG))


def _tried(library: str, formats: list[str]) -> Finding:
    broken = {}
    for name in formats:
        try:
            loudness = _tone_in(_encoded(name))
            if not loudness > 0.5:
                broken[name] = f"{loudness:.0%} of the tone is left"
        except Exception as error:  # each library has its own
            broken[name] = reason_of(error)
    if not broken:
        return ok("codecs", f"{', '.join(formats)} by {library}")
    said = "; ".join(f"{name}: {why}" for name, why in broken.items())
    package = "soundfile" if formats[0] in _SNDFILE else "av"
    fix = f"reinstall it, from a wheel with its own libraries: pip install --force-reinstall {package}"
    return problem("codecs", f"{library} fails at {said}", fix)


def _encoded(name: str) -> bytes:
    import numpy as np

    times_s = np.arange(_RATE_HZ) / _RATE_HZ
    samples = (0.5 * np.sin(2 * np.pi * _HERTZ * times_s)).astype(np.float32)
    out = io.BytesIO()
    if name in _SNDFILE:
        import soundfile

        container, subtype = _SNDFILE[name]
        soundfile.write(out, samples, _RATE_HZ, format=container, subtype=subtype)
        return out.getvalue()
    import av

    container, codec = _FFMPEG[name]
    rate_hz = 48_000 if codec == "libopus" else _RATE_HZ
    with av.open(out, "w", format=container) as file:
        stream: Any = file.add_stream(codec, rate=rate_hz, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = _RATE_HZ
        resampler = av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=rate_hz)
        fifo = av.AudioFifo()
        for part in resampler.resample(frame):
            part.pts = None
            fifo.write(part)
        size = stream.codec_context.frame_size or 960
        while (piece := fifo.read(size, partial=True)) is not None:
            file.mux(stream.encode(piece))
        file.mux(stream.encode(None))
    return out.getvalue()


def _tone_in(data: bytes) -> float:
    """The amplitude of the tone in what is decoded, of that which was written."""
    import numpy as np

    from w2v_ray.audio.codecs import open_audio

    with open_audio(io.BytesIO(data)) as reader:
        samples = np.concatenate([block.reshape(len(block), -1)[:, 0] for block in reader.blocks()])
        rate_hz = reader.sample_rate_hz
    wave = np.exp(-2j * np.pi * _HERTZ * np.arange(len(samples)) / rate_hz)
    return float(2 * abs((samples * wave).sum()) / rate_hz / 0.5)  # per second, and a second was written
