"""Memory that ends: at any step, for batches and single segments, and what long segments take of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.encoder_cases import assert_near, checkpoint, sound, table_of, values_of
from w2v_ray.heads import Head
from w2v_ray.models import packed_conformer, packed_wav2vec2
from w2v_ray.models.packed_convolutions import PackedConvolutions
from w2v_ray.stages import encode as encode_module
from w2v_ray.stages import encoder_heads
from w2v_ray.stages.encode import Encode
from w2v_ray.stages.encode_config import EncodeConfig
from w2v_ray.stages.encoder_heads import EncoderHeads

MESSAGE = "CUDA out of memory. Tried to allocate 20.00 GiB.\nand more lines"
LENGTHS = (16_000, 15_000, 9_000, 8_000, 5_000, 4_000, 1_000, 640)


def stage(folder: Path, **options: Any) -> Encode:
    return Encode(EncodeConfig(model=str(folder), num_threads=1, **options))


def limited(function: Callable[..., Any], size: Callable[..., int], most: int) -> Callable[..., Any]:
    """The function, in a memory that what is larger does not fit."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if size(*args) > most:
            raise torch.OutOfMemoryError(MESSAGE)
        return function(*args, **kwargs)

    return call


def limit(step: str, encode: Encode, most_samples: int, patch: pytest.MonkeyPatch) -> None:
    """Lets a step fail where it is for more than so many samples."""
    if step == "features":
        patch.setattr(encode, "_extract", limited(encode._extract, len, most_samples))
    elif step == "first convolution":

        def samples(_: Any, waves: Any) -> int:
            return sum(map(len, waves))

        patch.setattr(
            PackedConvolutions, "__call__", limited(PackedConvolutions.__call__, samples, most_samples)
        )
    elif step == "attention":
        for module in (packed_wav2vec2, packed_conformer):
            patch.setattr(module, "packed_attention", limited(module.packed_attention, _rows, most_samples))
    elif step == "head":
        patch.setattr(encoder_heads, "_apply", limited(encoder_heads._apply, _frames, most_samples))
    else:
        patch.setattr(EncoderHeads, "encode", limited(EncoderHeads.encode, _inputs, most_samples))


def _rows(q_NHD: torch.Tensor, *_: Any) -> int:
    return 320 * len(q_NHD)


def _frames(_: Any, output: Any) -> int:
    return 320 * len(output.last)


def _inputs(_: Any, inputs: Any) -> int:
    return sum(len(one) * (1 if one.ndim == 1 else 320) for one in inputs)


STEPS = ["features", "first convolution", "attention", "head", "encoder"]


@pytest.mark.parametrize("family", ["wav2vec2", "bert"])
@pytest.mark.parametrize("step", STEPS)
def test_a_batch_that_does_not_fit_is_done_in_smaller_ones(
    tiny_checkpoint: Path,
    tiny_bert_checkpoint: Path,
    family: str,
    step: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tiny_checkpoint if family == "wav2vec2" else tiny_bert_checkpoint
    head = Head(task="transcribe", model=str(folder))
    told: list[Any] = []
    config = EncodeConfig(model=str(folder), num_threads=1, max_batch_seconds=100.0)
    encode = Encode(config, before=told.append)
    table = table_of([sound(length, seed) for seed, length in enumerate(LENGTHS)])
    expected = values_of(encode(table), head)
    told.clear()
    limit(step, encode, 17_000, monkeypatch)
    found = encode(table)
    assert found["error"].null_count == len(LENGTHS)
    for ours, wanted in zip(values_of(found, head), expected, strict=True):
        assert wanted is not None
        assert_near(ours, wanted, head)
    assert sorted(row for rows in told for row in rows) == list(range(len(LENGTHS)))  # each once
    if step == "features":  # of one segment at a time, all of which fit
        assert encode.stats["budget_s"] == 100.0
        return
    if (family, step) == ("bert", "first convolution"):  # it has none
        return
    budget_s = encode.stats["budget_s"]
    assert budget_s < 17_000 / 16_000 * 1.2
    encode(table)  # and it stays so: nothing is too large again
    assert encode.stats["budget_s"] == budget_s


@pytest.mark.parametrize("step", STEPS)
def test_a_segment_that_does_not_fit_is_done_in_windows(
    tiny_checkpoint: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode_module, "_LEAST_WINDOW_S", 0.5)
    head = Head(task="transcribe", model=str(tiny_checkpoint))
    encode = stage(tiny_checkpoint)
    table = table_of([sound(64_000), sound(8_000, 1)])
    whole, short = values_of(encode(table), head)
    assert whole is not None
    assert short is not None
    # Half of it does not fit either; a quarter does. The head sees the whole segment, and never fits.
    limit(step, encode, 20_000, monkeypatch)
    table = encode(table)
    ours = values_of(table, head)
    assert_near(ours[1], short, head)
    if step == "head":
        (error, fine) = table["error"].to_pylist()
        assert error["message"] == f"the encoder failed on a segment of 4.0 s: {MESSAGE.splitlines()[0]}"
        assert error["error_class"] == "EncodeError"
        assert fine is None
        return
    assert table["error"].null_count == 2
    assert ours[0] is not None
    assert ours[0].shape == whole.shape
    windows = stage(tiny_checkpoint, chunk_length_s=1.0)
    (expected, _) = values_of(windows(table_of([sound(64_000), sound(8_000, 1)])), head)
    assert expected is not None
    assert_near(ours[0], expected, head)


def test_windows_are_halved_from_where_they_are(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segment that is in windows already is never tried in longer ones."""
    monkeypatch.setattr(encode_module, "_LEAST_WINDOW_S", 0.5)
    encode = stage(tiny_checkpoint, chunk_length_s=2.0, stride_length_s=0.2)
    heard: list[int] = []
    computed = EncoderHeads.encode

    def encode_some(self: EncoderHeads, inputs: Any) -> Any:
        heard.append(sum(map(len, inputs)))
        if heard[-1] > 20_000:
            raise torch.OutOfMemoryError(MESSAGE)
        return computed(self, inputs)

    monkeypatch.setattr(EncoderHeads, "encode", encode_some)
    table = encode(table_of([sound(160_000)]))
    assert table["error"].to_pylist() == [None]
    assert max(heard) == 32_000
    assert heard[:3] == [32_000, 32_000, 16_000]  # again, as memory may have been short for a moment


def test_a_segment_that_never_fits_is_rejected_with_its_reason(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = stage(tiny_checkpoint)
    limit("attention", encode, 9_000, monkeypatch)
    table = encode(table_of([sound(16_000), sound(8_000), sound(48_000), sound(4_000)]))
    errors = table["error"].to_pylist()
    assert [error is None for error in errors] == [False, True, False, True]
    for row, seconds in ((0, "1.0"), (2, "3.0")):
        reason = "CUDA out of memory. Tried to allocate 20.00 GiB."
        assert errors[row]["message"] == f"the encoder failed on a segment of {seconds} s: {reason}"
    assert table["num_frames"].to_pylist() == [None, 24, None, 12]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(failing=st.sets(st.integers(0, 20), max_size=12), deterministic=st.booleans())
def test_whichever_calls_fail_no_row_is_lost(
    tiny_checkpoint: Path, failing: set[int], deterministic: bool
) -> None:
    """Also those of the retries; what is not rejected has the numbers that it has alone."""
    encode = stage(tiny_checkpoint, deterministic=deterministic)
    head = Head(task="transcribe", model=str(tiny_checkpoint))
    table = table_of([sound(length, seed) for seed, length in enumerate(LENGTHS)])
    expected = values_of(encode(table), head)
    calls, computed = count(), EncoderHeads.encode

    def encode_or_fail(self: EncoderHeads, inputs: Any) -> Any:
        if next(calls) in failing:
            raise torch.OutOfMemoryError(MESSAGE)
        return computed(self, inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EncoderHeads, "encode", encode_or_fail)
        found = encode(table)
    errors = found["error"].to_pylist()
    for ours, wanted, error in zip(values_of(found, head), expected, errors, strict=True):
        assert (ours is None) == (error is not None)
        if error is None:
            assert wanted is not None
            assert_near(ours, wanted, head)
        else:
            assert "CUDA out of memory" in error["message"]
    # One segment is lost where two calls in a row fail on it alone.
    in_a_row = sum(call + 1 in failing for call in failing)
    assert sum(error is not None for error in errors) <= in_a_row


def test_a_failure_is_not_blamed_on_what_was_made_ready_for_the_next_batch(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, what the next batch hears goes there while this one is computed."""
    encode = stage(tiny_checkpoint, max_batch_seconds=1.0)
    monkeypatch.setattr(encode, "_is_cuda", True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    extract = encode._extract

    def extract_or_fail(samples: np.ndarray, **options: Any) -> Any:
        if len(samples) == 9_000:
            raise ValueError("nobody can hear this")
        return extract(samples, **options)

    monkeypatch.setattr(encode, "_extract", extract_or_fail)
    lengths = (16_000, 12_000, 9_000, 8_000)
    table = encode(table_of([sound(length, seed) for seed, length in enumerate(lengths)]))
    messages = [error and error["message"] for error in table["error"].to_pylist()]
    assert messages == [
        None,
        None,
        "the encoder failed on a segment of 0.6 s: ValueError: nobody can hear this",
        None,
    ]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("could not create a primitive"),
        MemoryError(),
    ],
)
def test_every_way_in_which_memory_ends_is_seen(
    tiny_checkpoint: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = stage(tiny_checkpoint)
    table = table_of([sound(length, seed) for seed, length in enumerate(LENGTHS)])
    expected = encode(table)
    computed = EncoderHeads.encode

    def encode_some(self: EncoderHeads, inputs: Any) -> Any:
        if len(inputs) > 2:
            raise error
        return computed(self, inputs)

    monkeypatch.setattr(EncoderHeads, "encode", encode_some)
    found = encode(table)
    assert found["error"].null_count == len(LENGTHS)
    assert encode.stats["budget_s"] < 2
    head = Head(task="transcribe", model=str(tiny_checkpoint))
    for ours, wanted in zip(values_of(found, head), values_of(expected, head), strict=True):
        assert wanted is not None
        assert_near(ours, wanted, head)


@pytest.mark.parametrize("family", ["group", "bert"])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError(MESSAGE), ValueError("nobody can hear this")])
def test_rows_of_a_padded_batch_that_fails_have_its_numbers_all_the_same(
    tmp_path: Path, family: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = Head(task="transcribe", model=str(checkpoint(tmp_path / "model", family, "transcribe")))
    encode = Encode(EncodeConfig(heads=(head,), num_threads=1, reference_batch=3))
    table = table_of(
        [sound(length, seed) for seed, length in enumerate((9_000, 3_000, 16_000, 5_000, 7_000))]
    )
    expected = values_of(encode(table), head)
    shorter = values_of(encode(table_of([sound(3_000, 1)])), head)[0]
    computed = EncoderHeads.encode_padded

    def encode_some(self: EncoderHeads, values: torch.Tensor, mask: torch.Tensor | None) -> Any:
        if len(values) > 1:
            raise error
        return computed(self, values, mask)

    monkeypatch.setattr(EncoderHeads, "encode_padded", encode_some)
    found = encode(table)
    assert found["error"].null_count == len(found)
    for ours, wanted in zip(values_of(found, head), expected, strict=True):
        assert wanted is not None
        assert_near(ours, wanted, head)
    if family == "group":  # of which padding changes the numbers
        assert expected[1] is not None
        assert shorter is not None
        assert len(expected[1]) > len(shorter)


LIMITED = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
import torch
from tests.encoder_cases import sound, table_of
from w2v_ray.stages.encode import Encode
from w2v_ray.stages.encode_config import EncodeConfig


def limit(bytes):
    taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    most = resource.RLIM_INFINITY if bytes is None else taken + bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def run(encode, table):
    found = encode(table)
    assert found["error"].null_count == len(found), found["error"].to_pylist()
    return found["log_probs"].to_pylist()


def near(rows, expected):
    numbers = (torch.frombuffer(bytearray(b"".join(r)), dtype=torch.float16) for r in (rows, expected))
    torch.testing.assert_close(*numbers, atol=0.02, rtol=0)


def in_smaller_batches():
    # A smaller limit each time, up to one in which the shard does not fit at once.
    table = table_of([sound(160_000 + 7 * seed, seed) for seed in range(8)])
    expected, megabytes = run(other, table), 400.0
    while limited.stats["budget_s"] == 1000.0:
        limit(int(megabytes * 2**20))
        rows = run(limited, table)
        limit(None)
        megabytes /= 1.2
    print(limited.stats["budget_s"])
    near(rows, expected)


config = EncodeConfig(model=sys.argv[1], num_threads=1, max_batch_seconds=1000.0)
encode, other, limited = (Encode(config) for _ in range(3))

# There is no memory for a kernel in this thread, and then there is.
weights = torch.ops.mkldnn._reorder_linear_weight(torch.ones(64, 64))
inputs = [torch.ones(count, 64) for count in range(1, 1000)]
try:
    limit(0)
    for one in inputs:
        torch.ops.mkldnn._linear_pointwise(one, weights, None, "none", [], "none")
except RuntimeError as error:
    print(error)
limit(None)
table = table_of([sound(50_000 + 350 * seed, seed) for seed in range(8)])
rows = run(encode, table)
with ThreadPoolExecutor(1) as thread:
    near(rows, thread.submit(run, other, table).result())
    thread.submit(in_smaller_batches).result()
"""


@pytest.mark.slow
def test_a_shard_that_does_not_fit_is_done_in_smaller_batches(tmp_path: Path) -> None:
    """Of real memory, bounded for the process; a batch takes 130 MB of it in one piece."""
    folder = checkpoint(tmp_path / "model", "group", "transcribe", intermediate_size=8192)
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, str(folder)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert result.returncode == 0, result.stderr
    error, budget_s = result.stdout.splitlines()
    assert float(budget_s) < 100
    assert error == "could not create a primitive"


def test_a_device_that_fails_in_a_window_ends_the_worker(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(code: int) -> None:
        raise SystemExit(code)

    errors: Any = iter(
        [torch.OutOfMemoryError(MESSAGE)] * 2 + [torch.AcceleratorError("it fell off the bus")]
    )

    def fail(*_: Any) -> None:
        raise next(errors)

    encode = stage(tiny_checkpoint)
    monkeypatch.setattr(encode_module.os, "_exit", leave)
    monkeypatch.setattr(EncoderHeads, "encode", fail)
    with pytest.raises(SystemExit):
        encode(table_of([sound(200_000)]))


LONG = """
import resource, sys
import numpy as np
from tests.encoder_cases import table_of
from w2v_ray.stages.encode import Encode
from w2v_ray.stages.encode_config import EncodeConfig

for minutes, options in ((3, {"chunk_length_s": 60.0}), (30, {})):
    # All scores of 30 minutes would be 8 GB.
    encode = Encode(EncodeConfig(model=sys.argv[1], num_threads=1, attn_implementation="eager", **options))
    noise = np.random.default_rng(0).standard_normal(minutes * 60 * 16_000, dtype=np.float32)
    (row,) = encode(table_of([noise])).to_pylist()
    print(row["num_frames"], row["error"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_half_an_hour_is_encoded_in_the_memory_of_minutes(tmp_path: Path) -> None:
    tiny = {"num_hidden_layers": 1, "num_attention_heads": 1}
    convolutions = {"conv_dim": [8] * 3, "conv_kernel": [10, 8, 8], "conv_stride": [10, 8, 8]}
    folder = checkpoint(tmp_path / "model", "group", "transcribe", **tiny, **convolutions)
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", LONG, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        cwd=root,
    )
    short, long = (line.split() for line in result.stdout.splitlines())
    assert [int(short[0]), int(long[0])] == [3 * 60 * 25, 30 * 60 * 25]
    assert short[1] == long[1] == "None"
    # 104 MB of samples more, in the table, in what made it, normalized, and of each once for a moment.
    assert int(long[2]) - int(short[2]) < 550
