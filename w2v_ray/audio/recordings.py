"""A recording in whatever form somebody has it, as mono samples at the rate that a model hears."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike, fspath
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from w2v_ray.audio.channels import take_channels
from w2v_ray.audio.codecs import open_audio
from w2v_ray.audio.condition import Condition
from w2v_ray.audio.resample import Resampler
from w2v_ray.errors import ReadError

__all__ = ["Recording", "read_recording"]

_NOT_EXTRA = {"raw", "array", "bytes", "path", "sampling_rate", "stride"}


@dataclass(frozen=True, slots=True)
class Recording:
    """Samples to recognise, and what was said about them."""

    samples: NDArray[np.float32]
    """Mono, shape (samples,), at the rate that was asked for."""
    stride: tuple[int, int] | None = None
    """Samples at the beginning and at the end that are only there for context."""
    extra: dict[str, Any] = field(default_factory=dict)
    """The caller's own keys."""


def read_recording(item: Any, sampling_rate: int) -> Recording:
    """Reads a recording and brings it to a rate.

    Args:
        item: A path or an http(s) URL, the bytes of a file, an array or tensor of samples at that rate, or
            a mapping: of ``raw`` or ``array`` with ``sampling_rate`` and at will ``stride``, a pair of
            samples at the array's own rate; or of ``bytes`` or ``path``. Arrays have shape (samples,), or
            (channels, samples) with one or two channels.
        sampling_rate: In Hz.

    Raises:
        ItemError: It cannot be fetched or decoded.
        ValueError: An array or mapping is not as described.
        TypeError: It is something else.
    """
    if not isinstance(item, Mapping):
        return Recording(_samples(item, sampling_rate))
    extra = {name: value for name, value in item.items() if name not in _NOT_EXTRA}
    values = next((item[name] for name in ("raw", "array") if item.get(name) is not None), None)
    stride = item.get("stride")
    if values is None:
        encoded = next((item[name] for name in ("bytes", "path") if item.get(name) is not None), None)
        if encoded is None or stride is not None:
            raise ValueError(
                f"the recording is a mapping of {', '.join(map(str, item)) or 'nothing'}, expected raw or "
                "array with sampling_rate and at will stride, or bytes, or path; name its samples so"
            )
        return Recording(_samples(encoded, sampling_rate), None, extra)
    source_rate = item.get("sampling_rate")
    if source_rate is None:
        raise ValueError("the recording is an array without sampling_rate; say how many samples a second has")
    samples = _mono(values)
    if stride is not None:
        left, right = stride
        if min(left, right) < 0 or left + right > len(samples):
            raise ValueError(
                f"stride is {left} and {right} of {len(samples)} samples, expected two numbers from 0 whose "
                "sum is at most that; shorten it"
            )
        ratio = sampling_rate / source_rate
        stride = round(left * ratio), round(right * ratio)
    if source_rate != sampling_rate:
        resampler = Resampler(int(source_rate), sampling_rate)
        samples = np.concatenate([resampler.push(samples), resampler.flush()])
    return Recording(samples, stride, extra)


def _samples(item: Any, sampling_rate: int) -> NDArray[np.float32]:
    if isinstance(item, bytes | bytearray | memoryview):
        return _decode(io.BytesIO(item), sampling_rate)
    if not isinstance(item, str | PathLike):
        return _mono(item)
    name = fspath(item)
    try:
        if name.startswith(("http://", "https://")):
            return _decode(io.BytesIO(_fetch(name)), sampling_rate)
        with open(name, "rb") as file:
            return _decode(file, sampling_rate)
    except OSError as error:
        raise ReadError(f"{name} cannot be read ({error.strerror or error}); check the path") from error


def _fetch(url: str) -> bytes:
    import httpx2

    try:
        return httpx2.get(url, follow_redirects=True).raise_for_status().content
    except httpx2.HTTPError as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ReadError(f"{url} cannot be fetched ({reason}); check the address, or try again") from error


def _decode(file: BinaryIO, sampling_rate: int) -> NDArray[np.float32]:
    with open_audio(file) as reader:
        resampler, condition = Resampler(reader.sample_rate_hz, sampling_rate), Condition()
        mono = (take_channels(block, [None])[:, 0] for block in reader.blocks())
        parts = [resampler.push(condition.take(block)) for block in mono]
        condition.check()
        if reader.truncation is not None:  # there is no row here that could be marked
            raise reader.truncation
        return np.concatenate([*parts, resampler.flush()])


def _mono(values: Any) -> NDArray[np.float32]:
    if hasattr(values, "detach"):  # a tensor, of which numpy takes none that needs gradients or is on a GPU
        values = values.detach().cpu()
    elif not isinstance(values, np.ndarray | list | tuple):
        raise TypeError(
            f"a recording is of type {type(values).__name__}, expected a path, bytes, an array or a mapping"
        )
    samples = np.asarray(values, dtype=np.float32)
    if samples.ndim == 1:
        return samples
    if samples.ndim != 2 or samples.shape[0] > 2:
        # Of (samples, channels) the mean over the first axis would be nonsense, without a word.
        raise ValueError(
            f"samples have shape {samples.shape}, expected (samples,), or (channels, samples) with one or "
            "two channels; transpose or mix them"
        )
    return samples.mean(axis=0)  # type: ignore[no-any-return]
