"""Every kind of bad audio has the outcome that docs/audio.md gives it, in bounded time and without noise."""

from __future__ import annotations

import io
import os
import pickle
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pytest
import soundfile

from w2v_ray.schema import ITEM, READ
from w2v_ray.stages.decode_audio import DecodeAudio, DecodeAudioConfig
from w2v_ray.stages.segment_audio import SegmentAudio, SegmentAudioConfig

ROOT = Path(__file__).resolve().parents[2]
RATE = 16_000
SECONDS = 5


def talk(seconds: float = SECONDS, rate: int = RATE, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    return (0.2 * np.abs(np.sin(9 * time)) * rng.standard_normal(len(time)).clip(-3, 3)).astype(np.float32)


def encode(samples: np.ndarray, container: str = "WAV", subtype: str = "PCM_16", rate: int = RATE) -> bytes:
    file = io.BytesIO()
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    with soundfile.SoundFile(file, "w", rate, channels, subtype, format=container) as sound:
        for first in range(0, len(samples), 16_000):  # libsndfile's Vorbis encoder overflows on long writes
            sound.write(samples[first : first + 16_000])
    return file.getvalue()


def wav(samples: np.ndarray | None = None, **values: Any) -> bytes:
    return encode(talk() if samples is None else samples, "WAV", **values)


def flac(seconds: float = SECONDS) -> bytes:
    return encode(talk(seconds), "FLAC")


def mp3(seconds: float = SECONDS) -> bytes:
    return encode(talk(seconds), "MP3", "MPEG_LAYER_III")


def ogg(subtype: str = "VORBIS", seconds: float = SECONDS) -> bytes:
    return encode(talk(seconds), "OGG", subtype)


def ffmpeg(name: str, codec: str, **options: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name  # which FFmpeg opens again to bring the index to the front
        _write(path, codec, options)
        return path.read_bytes()


def _write(path: Path, codec: str, options: dict[str, str]) -> None:
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=48_000, layout="mono")
        samples = talk(SECONDS, 48_000)
        for first in range(0, len(samples), 960):
            frame = av.AudioFrame.from_ndarray(
                samples[None, first : first + 960], format="fltp", layout="mono"
            )
            frame.sample_rate, frame.pts = 48_000, first
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def cut(data: bytes, share: float = 0.5) -> bytes:
    return data[: round(len(data) * share)]


def zeroed(data: bytes) -> bytes:
    middle, width = len(data) // 2, len(data) // 10
    return data[:middle] + bytes(width) + data[middle + width :]


def flipped(data: bytes, count: int = 60) -> bytes:
    rng, out = np.random.default_rng(0), bytearray(data)
    for _ in range(count):
        out[int(rng.integers(len(data) // 10, len(data)))] ^= 1 << int(rng.integers(8))
    return bytes(out)


def with_bytes(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def with_total(data: bytes, total: int) -> bytes:
    """Sets the 36 bits of a FLAC header that count its samples."""
    return with_bytes(data, 21, struct.pack(">BI", data[21] & 0xF0 | total >> 32, total & 0xFFFFFFFF))


def lost_page(data: bytes) -> bytes:
    pages = [match.start() for match in re.finditer(b"OggS", data)]
    return data[: pages[len(pages) // 2]] + data[pages[len(pages) // 2 + 1] :]


def with_some(value: float, share: float) -> bytes:
    samples = talk()
    samples[: int(len(samples) * share)] = value
    return wav(samples, subtype="FLOAT")


def channels(count: int) -> np.ndarray:
    return np.stack([talk()] * count, 1)


def quiet_flac(seconds: int, rate: int = 2_000) -> bytes:
    """Digital silence: an hour is 25 kB."""
    return encode(np.zeros(seconds * rate, np.int16), "FLAC", rate=rate)


def wav_of_mp3(data: bytes) -> bytes:
    form = struct.pack("<HHIIHHH", 0x55, 1, RATE, 8000, 1, 0, 0)
    head = struct.pack("<4sI4s4sI", b"RIFF", len(data) + 38, b"WAVE", b"fmt ", len(form)) + form
    return head + struct.pack("<4sI", b"data", len(data)) + data


CASES: dict[str, Callable[[], bytes]] = {
    "nothing (0 bytes)": lambda: b"",
    "one byte": lambda: b"R",
    "a web page": lambda: b"<!doctype html><html><body>404 not found</body></html>" * 20,
    "an error of a store": lambda: b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>',
    "a PDF": lambda: b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj<</Type/Catalog>>endobj\n" * 30,
    "random bytes": lambda: np.random.default_rng(3).bytes(20_000),
    "an HLS playlist": lambda: b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\na.wav\n#EXT-X-ENDLIST\n",
    "an ffconcat list": lambda: b"ffconcat version 1.0\nfile a.wav\n",
    "WAV, cut at half": lambda: cut(wav()),
    "WAV, a data chunk that counts the header too": lambda: with_bytes(
        wav(), 40, struct.pack("<I", len(wav()) - 8)
    ),
    "WAV, written to a pipe": lambda: with_bytes(wav(), 40, b"\xff\xff\xff\xff"),
    "WAV, a tenth zeroed": lambda: zeroed(wav()),
    "WAV, 60 bits flipped": lambda: flipped(wav()),
    "WAV, no data after the header": lambda: wav(np.zeros(0, np.float32)),
    "WAV, a header for 5 s, no data after it": lambda: wav()[:44],
    "WAV, one sample": lambda: wav(np.zeros(1, np.float32)),
    "WAV, MP3 in it": lambda: wav_of_mp3(mp3()),
    "AIFF, cut at half": lambda: cut(encode(talk(), "AIFF")),
    "CAF, cut at half": lambda: cut(encode(talk(), "CAF")),
    "NIST sphere, cut at half": lambda: cut(encode(talk(), "NIST")),
    "FLAC, cut at half": lambda: cut(flac()),
    "FLAC, a tenth zeroed": lambda: zeroed(flac()),
    "FLAC, a wrong checksum in the header": lambda: with_bytes(flac(), 26, bytes(range(16))),
    "FLAC of unknown length, as streamed": lambda: with_total(flac(), 0),
    "FLAC of unknown length, a tenth zeroed": lambda: with_total(zeroed(flac()), 0),
    "FLAC, a header for 2^36 samples": lambda: with_total(flac(), 2**36 - 1),
    "FLAC, eight hours of silence in 0.1 MB": lambda: quiet_flac(8 * 3600),
    "MP3, cut at half": lambda: cut(mp3()),
    "MP3, a tenth zeroed": lambda: zeroed(mp3()),
    "MP3, 60 bits flipped": lambda: flipped(mp3()),
    "MP3, two joined": lambda: mp3() + mp3(4),
    "Ogg Vorbis, cut at half": lambda: cut(ogg()),
    "Ogg Vorbis, cut in its headers": lambda: ogg()[:2000],
    "Ogg Vorbis, a page lost": lambda: lost_page(ogg(seconds=30)),
    "Ogg Vorbis, two joined": lambda: ogg() + ogg(seconds=4),
    "Ogg Opus of 16 kHz": lambda: ogg("OPUS"),
    "Ogg Opus, cut at half": lambda: cut(ogg("OPUS")),
    "Ogg Opus, a page lost": lambda: lost_page(ogg("OPUS", 30)),
    "M4A, cut at half, index first": lambda: cut(ffmpeg("a.m4a", "aac", movflags="faststart")),
    "M4A, cut at half, index last": lambda: cut(ffmpeg("a.m4a", "aac")),
    "WebM, cut at half": lambda: cut(ffmpeg("a.webm", "libopus")),
    "a tenth of the samples NaN": lambda: with_some(np.nan, 0.1),
    "a tenth of the samples infinite": lambda: with_some(-np.inf, 0.1),
    "most samples NaN": lambda: with_some(np.nan, 0.6),
    "clipped": lambda: wav((8 * talk()).clip(-1, 1)),
    "digital silence": lambda: wav(np.zeros(RATE * SECONDS, np.float32)),
    "8 channels": lambda: wav(channels(8)),
    "64 channels": lambda: wav(channels(64)),
    "65,535 channels": lambda: with_bytes(wav(), 22, b"\xff\xff"),
    "0 channels": lambda: with_bytes(wav(), 22, b"\0\0"),
    "0 bits": lambda: with_bytes(wav(), 34, b"\0\0"),
    "0 Hz": lambda: with_bytes(wav(), 24, bytes(4)),
    "1 Hz": lambda: with_bytes(wav(), 24, struct.pack("<I", 1)),
    "192 kHz": lambda: wav(talk(rate=192_000), rate=192_000),
    "2 GHz": lambda: with_bytes(wav(), 24, struct.pack("<I", 2_000_000_000)),
}


def documented() -> dict[str, tuple[str, str, str]]:
    """The table of docs/audio.md: input -> outcome, seconds and notes."""
    page = (ROOT / "docs" / "audio.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"(?ms)^\| input \| outcome \| seconds \| notes \|\n\|[-|]+\|\n(.*?)\n\n", page)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {name: (outcome.strip("`"), seconds, notes) for name, outcome, seconds, notes in rows}


def outcome(data: bytes, **config: Any) -> tuple[str, float | None, str]:
    """What the two stages make of a file: status or error class, seconds and notes."""
    schema = pa.schema([*ITEM, *READ])
    row = dict.fromkeys(schema.names) | {"recording_id": "r", "audio_bytes": data}
    decoded = DecodeAudio(DecodeAudioConfig(**config))(pa.Table.from_pylist([row], schema))
    (segment, *others) = SegmentAudio(SegmentAudioConfig())(decoded).to_pylist()
    if segment["error"] is not None:
        message = segment["error"]["message"]
        assert message.count(". ") == 0
        assert "report it" not in message, message
        assert not others
        return segment["error"]["error_class"], None, ""
    seconds = sum(row["duration_s"] for row in [segment, *others])
    return segment["decode_status"], seconds, ", ".join(segment["audio_notes"])


def test_the_page_has_a_row_for_each_case() -> None:
    assert list(documented()) == list(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_file_has_its_documented_outcome(name: str) -> None:
    status, seconds, notes = documented()[name]
    found = outcome(CASES[name]())
    assert (found[0], found[2]) == (status, notes)
    assert found[1] == (None if not seconds else pytest.approx(float(seconds), abs=0.15))


def test_what_is_truncated_can_be_rejected_and_nothing_else_is() -> None:
    for name, (status, *_) in documented().items():
        if name == "FLAC, eight hours of silence in 0.1 MB":
            continue  # as the same in any case, and slow
        expected = "TruncatedError" if status == "truncated" else status
        assert outcome(CASES[name](), on_truncated="reject")[0] == expected, name


# --- memory and time

BOMBS = """
import pickle, resource, sys, time
from tests.faults.test_bad_audio import outcome
limit = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + (600 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
for name, data, config in pickle.load(sys.stdin.buffer):
    print(name, *outcome(data, **config)[:2])
"""


def test_bombs_are_defused_in_bounded_memory_and_time() -> None:
    silence = quiet_flac(2 * 3600)
    id3 = b"ID3\x03\x00\x00\x7f\x7f\x7f\x7f" + mp3()  # a tag of 256 MB
    chunks = b"RIFF\xff\xff\xff\x7fWAVE" + b"junk\0\0\0\0" * 200_000
    wide = encode(np.zeros((2_000_000, 8), np.int16), "FLAC", rate=2_000)
    hours = {"max_item_seconds": 1200}
    bombs = [
        ("claims", with_total(flac(), 2**36 - 1), {}),
        ("hours", silence, hours),
        ("hours-unknown", with_total(silence, 0), hours),
        ("hours-split", wide, {"channel": "split"}),
        ("tag", id3, {}),
        ("chunks", chunks, {}),
        ("channels", with_bytes(wav(), 22, b"\xff\xff"), {}),
        ("rate", with_bytes(wav(), 24, struct.pack("<I", 2**31 - 1)), {}),
    ]
    done = subprocess.run(
        [sys.executable, "-c", BOMBS], input=pickle.dumps(bombs), capture_output=True, cwd=ROOT, timeout=100
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().splitlines() == [
        "claims truncated 5.0",
        "hours AudioLimitError None",
        "hours-unknown AudioLimitError None",
        "hours-split AudioLimitError None",
        "tag DecodeError None",
        "chunks DecodeError None",
        "channels DecodeError None",
        "rate AudioLimitError None",
    ]
    assert done.stderr == b""


# --- noise

NOISE = """
import os, pickle, sys
from tests.faults.test_bad_audio import outcome
for number, data in enumerate(pickle.load(sys.stdin.buffer)):
    os.write(2, b"before %d\\n" % number)
    outcome(data)
    print("after", number, file=sys.stderr, flush=True)
"""


def test_decoders_print_nothing_and_what_others_print_stays() -> None:
    files = [mp3(), ogg(), flac(), ffmpeg("a.m4a", "aac", movflags="faststart")]
    real = Path(os.environ.get("W2V_RAY_DATA", ROOT.parent / "shared" / "data")) / "misc"
    files += [path.read_bytes()[:100_000] for path in sorted(real.glob("*/*.mp3"))]
    files += [wav_of_mp3(files[0])]
    broken = [
        bad for data in files for bad in (cut(data), zeroed(data), flipped(data, 400), data[len(data) // 3 :])
    ]
    done = subprocess.run(
        [sys.executable, "-c", NOISE], input=pickle.dumps(broken), capture_output=True, cwd=ROOT, timeout=100
    )
    assert done.returncode == 0, done.stderr.decode()
    expected = [f"{when} {number}" for number in range(len(broken)) for when in ("before", "after")]
    assert done.stderr.decode().splitlines() == expected
    assert done.stdout == b""
