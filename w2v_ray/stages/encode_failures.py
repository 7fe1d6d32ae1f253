"""What the failures of an encoder mean: whether memory ended, and what is told of the segment.

Memory ends on a CPU only where it is bounded (``ulimit -v``, or a kernel that does not overcommit), and torch
has no class for that: its allocator says so in a RuntimeError, what is of C++ alone says std::bad_alloc, and
oneDNN that it could not create a primitive, the code that it makes for each shape. After that it makes none
in the same thread, however much memory there is.
"""

from __future__ import annotations

import numpy as np
import torch

from w2v_ray.errors import EncodeError, TooShortError
from w2v_ray.schema import SAMPLE_RATE_HZ

__all__ = ["encode_error", "is_out_of_memory", "needs_thread", "too_short"]

_NEEDS_THREAD = ("could not create a primitive", "can't start new thread")
_OUT_OF_MEMORY = ("can't allocate memory", "std::bad_alloc", *_NEEDS_THREAD)


def is_out_of_memory(error: Exception) -> bool:
    """Whether less at once may go well."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


def needs_thread(error: Exception) -> bool:
    """Whether nothing goes well in this thread again."""
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NEEDS_THREAD)


def encode_error(wave: np.ndarray, error: Exception) -> EncodeError:
    """What is told of a segment on which the encoder failed."""
    seconds = len(wave) / SAMPLE_RATE_HZ
    reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
    if not isinstance(error, RuntimeError | MemoryError):
        reason = f"{type(error).__name__}: {reason}"
    return EncodeError(f"the encoder failed on a segment of {seconds:.1f} s: {reason}")


def too_short(wave: np.ndarray, shortest: int) -> TooShortError:
    """What is told of a segment of which the encoder makes no frame."""
    return TooShortError(
        f"the segment has {len(wave)} samples, the encoder needs {shortest} for one frame; nothing can be "
        "recognised in so short a sound"
    )
