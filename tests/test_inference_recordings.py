"""What the local pipeline takes as recordings and options, and what it refuses."""

from __future__ import annotations

import functools
import http.server
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from w2v_ray.errors import (
    AudioLimitError,
    DecodeError,
    EmptyAudioError,
    ReadError,
    TooShortError,
    TruncatedError,
)
from w2v_ray.inference import AutomaticSpeechRecognitionPipeline, pipeline


@functools.cache
def sound(seconds: float, rate: int = 16_000) -> np.ndarray:
    """Noise whose loudness moves, so that frames differ."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(round(seconds * 1000)).standard_normal(len(time))
    return (noise * np.sin(9 * time) * 0.2).astype(np.float32)


def _wav(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, subtype="FLOAT", format="WAV")
    return file.getvalue()


@pytest.fixture(scope="module")
def recogniser(tiny_checkpoint: Path) -> AutomaticSpeechRecognitionPipeline:
    return pipeline("automatic-speech-recognition", tiny_checkpoint, device="cpu")


def test_options_of_the_constructor_hold_for_all_calls(recogniser: Any) -> None:
    parts = (recogniser.model, recogniser.feature_extractor, recogniser.tokenizer)
    options: dict[str, Any] = {"chunk_length_s": 1, "stride_length_s": 0.1, "return_timestamps": "word"}
    chosen = AutomaticSpeechRecognitionPipeline(*parts, **options, batch_size=2)
    assert chosen(sound(2.5)) == recogniser(sound(2.5), **options)
    assert chosen(sound(2.5), return_timestamps="char") == recogniser(
        sound(2.5), **(options | {"return_timestamps": "char"})
    )


def test_an_iterator_takes_recordings_as_it_is_read(recogniser: Any) -> None:
    taken = []

    def sounds() -> Iterator[np.ndarray]:
        for seconds in (0.5, 0.6, 0.7):
            taken.append(seconds)
            yield sound(seconds)

    results = recogniser(sounds())
    assert taken == []
    next(results)
    assert taken == [0.5]
    assert len(list(results)) == 2


def test_files_and_their_bytes_equal_their_samples(recogniser: Any, tmp_path: Path) -> None:
    samples = np.round(sound(1.5) * 32767) / 32768  # what 16 bits hold
    expected = recogniser(samples)
    assert len(set(expected["text"])) > 3, "a text of one letter would prove nothing"
    for name in ("a.wav", "a.flac"):
        path = tmp_path / name
        soundfile.write(path, samples, 16_000, subtype="PCM_16")
        encoded = path.read_bytes()
        for item in (path, str(path), encoded, memoryview(encoded), {"bytes": encoded}, {"path": str(path)}):
            assert recogniser(item) == expected


def test_files_of_another_rate_equal_their_samples_resampled(recogniser: Any) -> None:
    stereo = np.stack([sound(2.0, 22_050), sound(2.0, 22_050)[::-1]], axis=1)
    file = io.BytesIO()
    soundfile.write(file, stereo, 22_050, subtype="FLOAT", format="WAV")
    expected = recogniser({"raw": stereo.mean(axis=1), "sampling_rate": 22_050})
    assert recogniser(file.getvalue()) == expected


def test_urls_are_fetched(recogniser: Any, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", sound(1.0), 16_000, subtype="FLOAT")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert recogniser(f"{address}/a.wav") == recogniser(sound(1.0))
        with pytest.raises(ReadError, match=r"b\.wav cannot be fetched .*404"):
            recogniser(f"{address}/b.wav")
        server.shutdown()


@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        (np.zeros(300, np.float32), TooShortError, "300 samples, too few"),
        (np.zeros(0, np.float32), EmptyAudioError, "no samples"),
        (np.zeros((16_000, 3), np.float32), ValueError, r"\(16000, 3\), expected"),
        (np.zeros((2, 2, 9), np.float32), ValueError, r"\(2, 2, 9\), expected"),
        ({"raw": np.zeros(9, np.float32)}, ValueError, "without sampling_rate"),
        ({"text": "hello"}, ValueError, "mapping of text"),
        ({"path": "a.wav", "stride": (1, 1)}, ValueError, "mapping of path, stride"),
        ({"raw": np.zeros(9), "sampling_rate": 16_000, "stride": (5, 5)}, ValueError, "5 and 5 of 9"),
        ({"raw": 5, "sampling_rate": 16_000}, TypeError, "type int"),
        ("no/such.wav", ReadError, "no/such.wav cannot be read"),
        (b"no audio at all", DecodeError, "no audio was recognised"),
        (_wav(sound(2.0))[:-20_000], TruncatedError, "where its header says 2.00 s"),
        (_wav(np.full(1000, np.nan)), AudioLimitError, "1,000 of 1,000 samples are infinite, no numbers"),
    ],
)
@pytest.mark.parametrize("chunk_length_s", [None, 1.0])
def test_recordings_that_cannot_be_used_are_errors(
    recogniser: Any, item: Any, error: type[Exception], message: str, chunk_length_s: float | None
) -> None:
    with pytest.raises(error, match=message):
        recogniser(item, chunk_length_s=chunk_length_s)
    with pytest.raises(error, match=message):
        recogniser([sound(0.5), item], chunk_length_s=chunk_length_s, batch_size=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"return_timestamps": "sentence"}, "return_timestamps is 'sentence'"),
        ({"return_timestamps": True}, "return_timestamps is True"),
        ({"chunk_length_s": 1, "stride_length_s": 0.5}, "chunk_length_s is 1"),
        ({"chunk_length_s": 1, "stride_length_s": (-0.1, 0)}, "stride_length_s -0.1"),
        (
            {"chunk_length_s": 1, "stride_length_s": (0.1,)},
            r"stride_length_s is \(0.1,\), expected seconds, or",
        ),
        ({"batch_size": -1}, "batch_size is -1"),
    ],
)
def test_options_that_cannot_be_used_are_errors(
    recogniser: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        recogniser(sound(0.5), **options)


def test_a_chunk_too_short_for_a_frame_adds_nothing(recogniser: Any) -> None:
    rest = np.concatenate([sound(1.0), np.zeros(100, np.float32)])
    options: dict[str, Any] = {"chunk_length_s": 1, "stride_length_s": 0, "batch_size": 2}
    assert recogniser(rest, **options) == recogniser(sound(1.0), **options)
