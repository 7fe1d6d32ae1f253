"""The encoder stage, called with tables: what it adds, what it refuses, and what one bad segment costs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

from w2v_ray.audio.features import Wav2Vec2FeatureExtractor
from w2v_ray.audio.seamless import SeamlessM4TFeatureExtractor
from w2v_ray.errors import CheckpointError, ConfigError
from w2v_ray.models.heads import Wav2Vec2BertForCTC, Wav2Vec2ForCTC
from w2v_ray.models.packed import PackedEncoder, PackedOutput
from w2v_ray.schema import DECODED, ENCODED, ERROR
from w2v_ray.stages import encode as encode_module
from w2v_ray.stages.encode import Encode
from w2v_ray.stages.encode_config import EncodeConfig

VOCABULARY = 32
READ_ERROR = {"stage": "read_audio", "error_class": "ReadError", "message": "the file is gone"}


def wave(num_samples: int, seed: int = 0) -> np.ndarray:
    samples = 0.1 * np.random.default_rng(seed).standard_normal(num_samples)
    return samples.astype(np.float32)


def table_of(waves: list[np.ndarray | None], errors: list[dict[str, str] | None] | None = None) -> pa.Table:
    samples = [None if w is None else w.tobytes() for w in waves]
    return pa.table(
        {
            "segment_id": [f"r@{i}" for i in range(len(waves))],
            "samples": pa.array(samples, DECODED[0].type),
            "note": pa.array([[i] for i in range(len(waves))], pa.list_(pa.int64())),
            "error": pa.array(errors or [None] * len(waves), ERROR),
        }
    )


def encoder(model: Path, **options: Any) -> Encode:
    report = options.pop("report", None)
    return Encode(EncodeConfig(model=str(model), num_threads=1, **options), report=report)


@pytest.fixture(scope="module")
def encode(tiny_checkpoint: Path) -> Encode:
    return encoder(tiny_checkpoint)


def log_probs_of(table: pa.Table) -> list[np.ndarray | None]:
    found = []
    for buffer, frames in zip(table["log_probs"].to_pylist(), table["num_frames"].to_pylist(), strict=True):
        assert (buffer is None) == (frames is None)
        found.append(
            None if buffer is None else np.frombuffer(buffer, np.float16).reshape(frames, VOCABULARY)
        )
    return found


def assert_same(ours: np.ndarray | None, expected: np.ndarray) -> None:
    assert ours is not None
    assert ours.shape == expected.shape
    # Float32 results that agree to 1e-5 may still be rounded to neighbouring float16 values.
    spacing = np.spacing(np.abs(expected).astype(np.float16)).astype(np.float32)
    assert (np.abs(ours.astype(np.float32) - expected.astype(np.float32)) <= spacing + 1e-5).all()


def test_log_probs_are_those_of_the_model(encode: Encode, tiny_checkpoint: Path) -> None:
    waves = [wave(n, seed) for seed, n in enumerate((16_000, 400, 5_000, 15_500, 400, 9_000))]
    table = encode(table_of(waves))
    model = Wav2Vec2ForCTC.from_pretrained(tiny_checkpoint)
    extract = Wav2Vec2FeatureExtractor.from_pretrained(tiny_checkpoint)
    for samples, ours in zip(waves, log_probs_of(table), strict=True):
        features = extract(samples, sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            expected = model(features["input_values"]).logits[0].log_softmax(-1).numpy()
        assert_same(ours, expected)
        assert np.exp(expected).sum(-1) == pytest.approx(1, abs=1e-5)


def test_columns(encode: Encode) -> None:
    before = table_of([wave(4_000), wave(100), None, wave(5_000)], [None, None, READ_ERROR, None])
    table = encode(before)
    assert set(table.column_names) == {"segment_id", "note", "error", "log_probs", "num_frames"}
    assert table.schema.field("log_probs").type == ENCODED[0].type
    assert table.schema.field("num_frames").type == ENCODED[1].type
    assert table.schema.field("error").type == ERROR
    for kept in ("segment_id", "note"):
        assert table[kept].to_pylist() == before[kept].to_pylist()
    assert table["num_frames"].to_pylist() == [12, None, None, 15]
    assert [e is None for e in table["error"].to_pylist()] == [True, False, False, True]


def test_real_speech_in_a_batch_is_encoded_as_alone(encode: Encode, shared_data: Path) -> None:
    import soundfile

    files = sorted((shared_data / "libri").rglob("*.flac"))[:6]
    waves = [
        soundfile.read(file, dtype="float32", frames=16_000 * seconds)[0]
        for file, seconds in zip(files, (4, 4, 3, 2, 5, 1), strict=True)
    ]
    together = log_probs_of(encode(table_of(waves)))
    for samples, ours in zip(waves, together, strict=True):
        (alone,) = log_probs_of(encode(table_of([samples])))
        assert alone is not None
        assert_same(ours, alone)


@pytest.mark.parametrize(
    "options", [{"max_batch_seconds": 100.0}, {"max_batch_seconds": 0.1}, {"deterministic": True}]
)
def test_batches_do_not_change_results(
    encode: Encode, tiny_checkpoint: Path, options: dict[str, Any]
) -> None:
    table = table_of(
        [wave(n, seed) for seed, n in enumerate((3_000, 12_000, 700, 12_000, 400, 6_000, 8_001))]
    )
    expected, other = encode(table), encoder(tiny_checkpoint, **options)(table)
    for ours, theirs in zip(log_probs_of(other), log_probs_of(expected), strict=True):
        assert theirs is not None
        assert_same(ours, theirs)


def test_kernels_agree(encode: Encode, tiny_checkpoint: Path) -> None:
    table = table_of([wave(5_000, 1), wave(4_700, 2)])
    eager = encoder(tiny_checkpoint, attn_implementation="eager")(table)
    for ours, theirs in zip(log_probs_of(eager), log_probs_of(encode(table)), strict=True):
        assert theirs is not None
        assert_same(ours, theirs)


def test_sliced_and_chunked_tables(encode: Encode) -> None:
    table = table_of([wave(1_000 + 100 * i, i) for i in range(6)])
    expected = encode(table)
    chunked = pa.concat_tables([table.slice(0, 2), table.slice(2, 3), table.slice(5)])
    assert chunked["samples"].num_chunks == 3
    for ours, theirs in zip(log_probs_of(encode(chunked)), log_probs_of(expected), strict=True):
        assert theirs is not None
        assert_same(ours, theirs)
    part = encode(table.slice(3, 2))
    assert part["segment_id"].to_pylist() == ["r@3", "r@4"]
    assert part["num_frames"].to_pylist() == expected["num_frames"].to_pylist()[3:5]


def test_no_rows(encode: Encode) -> None:
    table = encode(table_of([wave(4_000)]).slice(0, 0))
    assert table.num_rows == 0
    assert table.schema == encode(table_of([wave(4_000)])).schema


def test_too_short_for_a_frame(encode: Encode) -> None:
    table = encode(table_of([wave(399), wave(400), np.zeros(0, np.float32), wave(1)]))
    assert table["num_frames"].to_pylist() == [None, 1, 0, None]  # nobody speaks in the third
    assert table["log_probs"].to_pylist()[2] == b""
    errors = table["error"].to_pylist()
    assert [e and e["error_class"] for e in errors] == [
        "TooShortError",
        None,
        None,
        "TooShortError",
    ]
    assert errors[0] == {
        "stage": "encode",
        "error_class": "TooShortError",
        "message": "the segment has 399 samples, the encoder needs 400 for one frame; "
        "nothing can be recognised in so short a sound",
    }


def test_earlier_errors_pass(encode: Encode) -> None:
    table = encode(table_of([wave(4_000), wave(4_000), None], [READ_ERROR, None, READ_ERROR]))
    assert table["error"].to_pylist() == [READ_ERROR, None, READ_ERROR]
    assert table["num_frames"].to_pylist() == [None, 12, None]
    assert encode(table_of([None], [READ_ERROR]))["error"].to_pylist() == [READ_ERROR]


def failing_on(length: int, error: Exception) -> Callable[..., Any]:
    """An encoder that fails whenever a segment of so many samples is in the batch."""
    encode = PackedEncoder.__call__

    def encode_or_fail(
        self: PackedEncoder, inputs: Sequence[torch.Tensor], **asked: Any
    ) -> list[PackedOutput]:
        if length in map(len, inputs):
            raise error
        return encode(self, inputs, **asked)

    return encode_or_fail


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("no kernel for this\n  at line 3 of something long"),
        MemoryError(),
        torch.OutOfMemoryError("out of memory"),
    ],
)
def test_a_segment_that_fails_costs_itself_alone(
    encode: Encode, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    waves = [wave(n, seed) for seed, n in enumerate((8_000, 8_010, 8_020, 8_030, 3_000))]
    expected = log_probs_of(encode(table_of(waves)))
    monkeypatch.setattr(PackedEncoder, "__call__", failing_on(8_020, error))
    table = encode(table_of(waves))
    reason = str(error).split("\n")[0] or "MemoryError"
    assert table["error"].to_pylist() == [
        None,
        None,
        {
            "stage": "encode",
            "error_class": "EncodeError",
            "message": f"the encoder failed on a segment of 0.5 s: {reason}",
        },
        None,
        None,
    ]
    ours = log_probs_of(table)
    assert ours[2] is None
    for row in (0, 1, 3, 4):
        theirs = expected[row]
        assert theirs is not None
        assert_same(ours[row], theirs)


def test_a_mistake_in_the_code_is_named_and_costs_its_segment_alone(
    encode: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PackedEncoder, "__call__", failing_on(8_000, KeyError("missing")))
    table = encode(table_of([wave(8_000), wave(7_990)]))
    failed, fine = table["error"].to_pylist()
    assert failed["message"] == "the encoder failed on a segment of 0.5 s: KeyError: 'missing'"
    assert fine is None


def test_batches_are_told_before_they_are_touched(tiny_checkpoint: Path) -> None:
    told: list[Sequence[int]] = []
    encode = Encode(EncodeConfig(model=str(tiny_checkpoint), max_batch_seconds=2.0), before=told.append)
    encode(table_of([wave(8_000), wave(30_000), wave(7_990)]))
    assert told == [[1], [0, 2]]


def test_a_failed_device_ends_the_worker(encode: Encode, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = []

    def leave(code: int) -> None:
        codes.append(code)
        raise SystemExit(code)

    monkeypatch.setattr(encode_module.os, "_exit", leave)
    error = torch.AcceleratorError("CUDA error: device-side assert triggered")
    monkeypatch.setattr(PackedEncoder, "__call__", failing_on(8_000, error))
    with pytest.raises(SystemExit):
        encode(table_of([wave(8_000), wave(7_990)]))
    assert codes == [1]


def test_samples_that_are_not_finite_cost_their_segment_alone(encode: Encode) -> None:
    waves = [wave(n, seed) for seed, n in enumerate((8_000, 8_010, 8_020))]
    expected = log_probs_of(encode(table_of(waves)))
    waves[1] = waves[1].copy()
    waves[1][5_000] = np.nan
    table = encode(table_of(waves))
    assert [e and e["error_class"] for e in table["error"].to_pylist()] == [None, "EncodeError", None]
    ours = log_probs_of(table)
    for row in (0, 2):
        theirs = expected[row]
        assert theirs is not None
        assert_same(ours[row], theirs)


def test_weights_that_are_not_finite(tiny_checkpoint: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_checkpoint, broken)
    weights = load_file(broken / "model.safetensors")
    weights["lm_head.bias"][3] = float("nan")
    save_file(weights, broken / "model.safetensors")
    table = encoder(broken)(table_of([wave(4_000), wave(3_000)]))
    for error in table["error"].to_pylist():
        assert error["error_class"] == "EncodeError"
        assert error["message"] == "the encoder gave numbers that are not finite; try dtype float32"
    assert table["log_probs"].null_count == table["num_frames"].null_count == 2


def test_silence_is_encoded(encode: Encode) -> None:
    table = encode(table_of([np.zeros(16_000, np.float32)]))
    assert table["error"].to_pylist() == [None]
    (log_probs,) = log_probs_of(table)
    assert np.isfinite(log_probs).all()


def test_the_report_is_of_the_seconds_encoded(tiny_checkpoint: Path) -> None:
    reported: list[float] = []
    stage = encoder(tiny_checkpoint, report=reported.append, max_batch_seconds=1.3)
    stage(
        table_of(
            [wave(8_000), wave(100), None, wave(6_400), wave(24_000)], [None, None, READ_ERROR, None, None]
        )
    )
    assert reported == pytest.approx([1.5, 0.9])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near(encode: Encode, tiny_checkpoint: Path, dtype: str) -> None:
    table = table_of([wave(8_000, 1), wave(7_500, 2)])
    for ours, theirs in zip(
        log_probs_of(encoder(tiny_checkpoint, dtype=dtype)(table)), log_probs_of(encode(table)), strict=True
    ):
        assert ours is not None
        assert theirs is not None
        assert np.abs(ours.astype(np.float32) - theirs.astype(np.float32)).mean() < 0.1


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        encoder(tmp_path / "none")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch_seconds": 0}, r"max_batch_seconds is 0, expected 0\.001 to 10000000"),
        ({"max_batch_seconds": -1.0}, r"max_batch_seconds is -1, expected 0\.001 to 10000000"),
        ({"reference_batch": 0}, "reference_batch is 0, expected 1 to 4096"),
        ({"normalize": "all"}, "normalize is 'all', expected one of chunk, segment"),
        ({"num_threads": 0}, "num_threads is 0, expected at least 1"),
    ],
)
def test_options_out_of_bounds(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EncodeConfig(model="m", **options)


def test_log_probs_of_wav2vec2_bert_are_those_of_the_model_alone(tiny_bert_checkpoint: Path) -> None:
    waves = [wave(n, seed) for seed, n in enumerate((16_000, 560, 5_000, 15_500, 559, 9_100))]
    table = encoder(tiny_bert_checkpoint)(table_of(waves))
    model = Wav2Vec2BertForCTC.from_pretrained(tiny_bert_checkpoint)
    extract = SeamlessM4TFeatureExtractor()
    for samples, ours in zip(waves, log_probs_of(table), strict=True):
        if len(samples) < 560:  # of one mel frame alone there is no variance to scale by
            assert ours is None
            continue
        features = extract(samples, sampling_rate=16_000, return_tensors="pt")
        frames = int(features["attention_mask"].sum())
        with torch.inference_mode():
            logits = model(features["input_features"], features["attention_mask"]).logits[0, :frames]
        assert_same(ours, torch.log_softmax(logits, -1).numpy())
    (error,) = [row for row in table["error"].to_pylist() if row]
    assert (error["error_class"], "needs 560" in error["message"]) == ("TooShortError", True)


def test_the_kernel_can_be_left_to_the_model(tiny_checkpoint: Path) -> None:
    waves = [wave(8_000, 1), wave(6_000, 2)]
    chosen, named = (
        log_probs_of(encoder(tiny_checkpoint, attn_implementation=name)(table_of(waves)))
        for name in ("auto", "sdpa")
    )
    for one, other in zip(chosen, named, strict=True):
        assert one is not None
        assert other is not None
        assert (one == other).all()


def test_torch_is_loaded_by_what_encodes_alone() -> None:
    """Every worker imports these, and torch is most of what a worker takes."""
    modules = "w2v_ray.pipeline, w2v_ray.plugin, w2v_ray.plugin_align, w2v_ray.plugin_heads"
    script = f"import sys, {modules}; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
