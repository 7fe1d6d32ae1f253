"""Audio in every form that Datasets have it in, without Ray."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from w2v_ray.errors import ConfigError
from w2v_ray.schema import ITEM, READ
from w2v_ray.stages import DecodeAudio, ReadAudio, TakeAudio

RATE_HZ = 16_000
TONE = (0.5 * np.sin(np.arange(8_000) / 7)).astype(np.float32)
STRUCT = {"array": TONE.tolist(), "sampling_rate": RATE_HZ}


def wav() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, TONE, RATE_HZ, format="WAV", subtype="FLOAT")
    return file.getvalue()


def message_of(**columns: Any) -> str:
    (error,) = TakeAudio()(pa.table({name: [value] for name, value in columns.items()}))["error"].to_pylist()
    assert (error["stage"], error["error_class"]) == ("read_audio", "ReadError")
    return str(error["message"])


@pytest.mark.parametrize(
    "columns",
    [
        {"audio": wav()},
        {"bytes": wav()},
        {"audio_bytes": wav()},
        {"audio": {"bytes": wav(), "path": "name.wav"}},
        {"audio": {"bytes": wav()}},
        {"audio": STRUCT},
        {"audio": {"bytes": None, "path": None} | STRUCT},
        {"audio": TONE.tolist(), "sampling_rate": RATE_HZ},
        {"amplitude": [TONE.tolist(), TONE.tolist()], "sample_rate": float(RATE_HZ)},
        {"uri": "{path}"},
        {"path": "{path}"},
        {"audio": "{path}", "uri": "not this"},
        {"audio": {"path": "{path}", "bytes": None}},
    ],
    ids=lambda columns: " ".join(columns),
)
def test_every_form_gives_the_same_samples(columns: dict[str, Any], tmp_path: Any) -> None:
    path = tmp_path / "tone.wav"
    path.write_bytes(wav())
    (name, value), *others = columns.items()
    if isinstance(value, dict) and value.get("path") == "{path}":
        value = value | {"path": str(path)}
    value = str(path) if value == "{path}" else value
    items = TakeAudio()(pa.table({name: [value], **{key: [other] for key, other in others}}))
    assert items.schema.names == [*ITEM.names, *(field.name for field in READ)]
    decoded = DecodeAudio()(ReadAudio()(items))
    assert decoded["error"].to_pylist() == [None]
    np.testing.assert_array_equal(np.frombuffer(decoded["samples"][0].as_py(), np.float32), TONE)


def test_what_is_no_audio_is_an_error_of_its_row() -> None:
    assert "the value is NoneType or empty" in message_of(audio=None)
    assert "the value is str or empty" in message_of(uri="")
    assert "the value is NoneType or empty" in message_of(audio={"bytes": None, "path": None})
    assert "the value is int or empty" in message_of(audio=3)
    assert "the struct has samples, rate, expected bytes, path, or array" in message_of(
        audio={"samples": [0.5], "rate": 1}
    )
    assert "samples without a rate; add a column sampling_rate" in message_of(audio=[0.5])
    assert "the rate of the samples is 0, expected Hz" in message_of(audio=[0.5], sampling_rate=0)
    assert "the rate of the samples is '8', expected Hz" in message_of(audio=[0.5], sampling_rate="8")
    assert "rate of the samples is 1099511627776, exp" in message_of(audio=[0.5], sampling_rate=2**40)
    assert "samples have 40 channels, expected 1 to 32" in message_of(
        audio=[[0.5] * 50] * 40, sampling_rate=8
    )
    assert "samples are int64, expected floats in [-1, 1]; divide" in message_of(audio=[1], sampling_rate=8)
    assert "samples are bool, expected floats" in message_of(audio=[True], sampling_rate=8)
    assert "the shape (3, 2), expected one row for each channel; transpose" in message_of(
        audio=[[0.5, 0.5]] * 3, sampling_rate=8
    )
    assert "the shape (1, 1, 1)" in message_of(audio=[[[0.5]]], sampling_rate=8)


def test_rows_without_audio_do_not_hold_up_others() -> None:
    data = wav()  # once: libsndfile writes the time into it
    items = TakeAudio("sound", keep=["key"])(pa.table({"sound": [data, None], "key": ["a", "b"]}))
    assert [error is None for error in items["error"].to_pylist()] == [True, False]
    assert items["key"].to_pylist() == ["a", "b"]
    assert items["item_index"].to_pylist() == [0, 1]
    assert items["audio_bytes"].to_pylist() == [data, None]


def test_samples_beyond_float32_are_infinite_and_hold_up_nothing() -> None:
    items = TakeAudio()(pa.table({"audio": [[0.5, 1e300]], "sampling_rate": [RATE_HZ]}))
    assert items["error"].to_pylist() == [None]


def test_columns_that_cannot_be_taken_are_refused() -> None:
    table = pa.table({"sound": [b""], "uri": ["a.wav"], "duration_s": [1.0]})
    with pytest.raises(ConfigError, match=r"no audio column 'noise' \(its columns are sound, uri, dur"):
        TakeAudio("noise")(table)
    with pytest.raises(ConfigError, match="no audio column one of audio, bytes, audio_bytes, uri, path"):
        TakeAudio()(table.select(["sound"]))
    for name in ("uri", "duration_s"):
        with pytest.raises(ConfigError, match=f"keep names the column '{name}', and a column of the stages"):
            TakeAudio(keep=[name])(table)
    with pytest.raises(ConfigError, match="keep names the column 'speaker', and there is none"):
        TakeAudio(keep=["speaker"])(table)
