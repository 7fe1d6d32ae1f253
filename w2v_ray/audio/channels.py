"""The channels of a recording: which of them are taken, and what of them is no sound.

A frame in which a taken channel holds an infinite sample, none at all, or one out of all proportion is NaN
in what is returned; ``condition`` counts these frames and silences them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from w2v_ray.audio.resample import mix_to_mono
from w2v_ray.errors import AudioLimitError

__all__ = ["choose_channels", "take_channels"]

_MAX_SAMPLE = 1e10  # float files in the scale of 32-bit integers pass; sums of such samples stay finite
_NAMES = {"left": 0, "right": 1}


def choose_channels(channel: str | int, num_channels: int) -> list[int | None]:
    """What is to be taken of a recording: channels from 0, or None for the mean of all.

    Args:
        channel: mix, left, right, split, or a number from 0.
        num_channels: Of the recording.

    Raises:
        AudioLimitError: The recording does not have that channel.
    """
    if channel == "mix":
        return [None]
    if channel == "split":
        return list(range(num_channels))
    index = _NAMES[channel] if isinstance(channel, str) else channel
    if index >= num_channels:
        asked = f"{channel} channel" if isinstance(channel, str) else f"channel {channel}"
        there = "one channel" if num_channels == 1 else f"{num_channels} channels, 0 to {num_channels - 1}"
        raise AudioLimitError(
            f"the {asked} was asked for and the recording has {there}; choose another, or mix"
        )
    return [index]


def take_channels(block: npt.NDArray[np.float32], wanted: list[int | None]) -> npt.NDArray[np.float32]:
    """What ``choose_channels`` chose of a block of shape (frames, channels), one column for each.

    Returns:
        A new array of shape (frames, len(wanted)); what is no sound is NaN.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # of infinite samples of both signs
        columns = [mix_to_mono(block) if index is None else block[:, index] for index in wanted]
        taken = np.stack(columns, axis=1)
        taken[~(np.abs(taken) <= _MAX_SAMPLE)] = np.nan  # NaN compares false
    return taken
