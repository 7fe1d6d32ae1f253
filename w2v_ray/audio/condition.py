"""The condition of samples: which are no numbers, whether they are clipped, whether they are silent."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from w2v_ray.errors import AudioLimitError

__all__ = ["Condition"]

_FULL_SCALE = 0.999
_CLIPPED_RUN = 3  # samples at full scale in a row
_CLIPPED_SHARE = 1 / 1000  # of the samples in such runs: a single peak is no clipping
_OTHER_SCALE = 2.0  # samples above twice full scale are of a file in another scale, such as of integers
_SILENT = 2.0**-10  # 60 dB below full scale
_TOO_BAD = 1 / 2  # share of samples that are no numbers


class Condition:
    """Takes the samples of an item, block by block, and tells their condition at the end.

    The result does not depend on how they were cut into blocks.
    """

    def __init__(self) -> None:
        self._count = self._bad = self._clipped = 0
        self._peak = 0.0
        self._last = np.zeros(0, np.bool_)  # whether the last samples were at full scale

    def take(self, samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The same samples, shape (samples,), with zeros for those that are NaN."""
        bad = np.isnan(samples)
        if bad.any():
            samples = np.where(bad, np.float32(0), samples)
            self._bad += int(bad.sum())
        self._count += len(samples)
        loud = np.abs(samples)
        self._peak = max(self._peak, float(loud.max(initial=0.0)))
        full = np.concatenate([self._last, loud >= _FULL_SCALE])
        self._clipped += int((full[:-2] & full[1:-1] & full[2:]).sum())
        self._last = full[-(_CLIPPED_RUN - 1) :]
        return samples

    def check(self) -> None:
        """Raises ``AudioLimitError`` where most samples were no numbers."""
        if self._bad > _TOO_BAD * self._count:
            raise AudioLimitError(
                f"{self._bad:,} of {self._count:,} samples are infinite, no numbers or above 1e10 where most "
                "must be sound; encode the file again from its source, or choose another channel"
            )

    def notes(self) -> list[str]:
        """Any of non_finite, clipped and silent, in this order."""
        is_clipped = self._peak < _OTHER_SCALE and self._clipped > _CLIPPED_SHARE * self._count
        found = {"non_finite": self._bad > 0, "clipped": is_clipped, "silent": self._peak < _SILENT}
        return [note for note, is_so in found.items() if is_so]
