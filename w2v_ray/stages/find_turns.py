"""The turn stage: the scores of the classes in each frame in, where each class is active out.

A class becomes active where its score reaches the onset and stays so until it falls below the offset.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from w2v_ray.errors import CheckpointError, ConfigError
from w2v_ray.schema import EMISSION_DTYPE, FRAME

__all__ = ["FindTurns", "FindTurnsConfig", "active_spans"]

_DTYPE = np.dtype(EMISSION_DTYPE).newbyteorder("<")


@dataclass(frozen=True, kw_only=True, slots=True)
class FindTurnsConfig:
    """What the scores stand for, how far apart they are, and when a class counts as active."""

    classes: tuple[str, ...]
    """In the order of the model's outputs."""
    seconds_per_frame: float
    """From one frame to the next, in seconds of audio."""
    onset: float = 0.5
    """A turn begins where the score reaches this."""
    offset: float = 0.5
    """A turn ends where the score falls below this."""
    min_on_seconds: float = 0.0
    """Turns that are shorter are dropped."""
    min_off_seconds: float = 0.0
    """Pauses that are shorter are closed, before short turns are dropped."""

    def __post_init__(self) -> None:
        if not self.classes:
            raise ConfigError(
                "classes is empty, expected the names of the model's outputs; take its id2label"
            )
        if not (math.isfinite(self.seconds_per_frame) and self.seconds_per_frame > 0):
            raise ConfigError(
                f"seconds_per_frame is {self.seconds_per_frame}, expected above 0; it is 0.02 for wav2vec 2.0"
            )
        if not 0 <= self.offset <= self.onset <= 1:
            raise ConfigError(
                f"onset is {self.onset} and offset {self.offset}, expected 0 <= offset <= onset <= 1; try 0.5"
            )


class FindTurns:
    """Adds ``activity``, ``turns``, ``classes`` and ``seconds_per_frame`` and drops ``frame_scores``.

    Times are seconds in the recording, never beyond the segment.

    Raises:
        CheckpointError: The scores are of another number of classes.
    """

    def __init__(self, config: FindTurnsConfig) -> None:
        self._config = config

    def __call__(self, table: pa.Table) -> pa.Table:
        config = self._config
        count = len(config.classes)
        activities: list[np.ndarray | None] = []
        turns: list[list[dict[str, Any]] | None] = []
        times = (table.column(name).to_pylist() for name in ("start_s", "end_s", "num_frames"))
        for scores, start_s, end_s, num_frames in zip(table.column("frame_scores"), *times, strict=True):
            buffer = scores.as_buffer()
            if buffer is None:
                activities.append(None)
                turns.append(None)
                continue
            if buffer.size != num_frames * count * _DTYPE.itemsize:
                found = buffer.size // _DTYPE.itemsize // max(1, num_frames)
                raise CheckpointError(
                    f"the model gives {found} scores a frame, and its config.json names {count} classes; "
                    "correct id2label"
                )
            activity = np.frombuffer(buffer, _DTYPE).reshape(num_frames, count)
            activities.append(activity)
            turns.append(sorted(self._turns(activity, start_s, end_s), key=lambda turn: turn["start_s"]))
        columns = {
            "seconds_per_frame": [config.seconds_per_frame] * table.num_rows,
            "classes": [list(config.classes)] * table.num_rows,
            "activity": _lists(activities, count),
            "turns": turns,
        }
        table = table.drop_columns(["frame_scores"])
        for name, values in columns.items():
            array = values if isinstance(values, pa.Array) else pa.array(values, FRAME.field(name).type)
            table = table.append_column(FRAME.field(name).with_type(array.type), array)
        return table

    def _turns(self, activity: np.ndarray, start_s: float, end_s: float) -> Iterator[dict[str, Any]]:
        config = self._config
        for index, label in enumerate(config.classes):
            scores = activity[:, index].astype(np.float32)
            for begin, end in active_spans(
                scores,
                onset=config.onset,
                offset=config.offset,
                min_on=config.min_on_seconds / config.seconds_per_frame,
                min_off=config.min_off_seconds / config.seconds_per_frame,
            ):
                yield {
                    "label": label,
                    "start_s": min(start_s + begin * config.seconds_per_frame, end_s),
                    # The last frame reaches beyond the last sample, by less than a frame.
                    "end_s": min(start_s + end * config.seconds_per_frame, end_s),
                    "score": float(scores[begin:end].mean()),
                }


def active_spans(
    scores: np.ndarray, *, onset: float, offset: float, min_on: float = 0.0, min_off: float = 0.0
) -> list[tuple[int, int]]:
    """The runs of frames in which a class is active.

    Args:
        scores: One for each frame, in [0, 1].
        onset: A run begins where the score reaches this.
        offset: A run ends before the score is below this; at most ``onset``.
        min_on: Shorter runs are dropped, in frames.
        min_off: Shorter pauses between two runs are closed, in frames, before that.

    Returns:
        The first frame of each, and the frame after its last.
    """
    # Each frame is as the last one was that said something: 1 reaches the onset, 0 is below the offset.
    says = np.where(scores >= np.float32(onset), 1, np.where(scores < np.float32(offset), 0, -1))
    last = np.maximum.accumulate(np.where(says >= 0, np.arange(len(says)), -1))
    active = np.where(last >= 0, says[last], 0)
    edges = np.flatnonzero(np.diff(active, prepend=0, append=0))
    spans: list[tuple[int, int]] = []
    for begin, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if spans and begin - spans[-1][1] < min_off:
            spans[-1] = spans[-1][0], end
        else:
            spans.append((begin, end))
    return [(begin, end) for begin, end in spans if end - begin >= min_on]


def _lists(activities: list[np.ndarray | None], count: int) -> pa.Array:
    """For each segment the scores of its frames, as lists of lists of a fixed size."""
    found = [np.zeros((0, count), _DTYPE) if a is None else a for a in activities]
    numbers = pa.array(np.concatenate([np.zeros((0, count), _DTYPE), *found]).ravel(), pa.float16())
    frames = pa.FixedSizeListArray.from_arrays(numbers, type=pa.list_(pa.float16(), count))
    offsets = np.concatenate([[0], np.cumsum([len(a) for a in found])]).astype(np.int32)
    missing = pa.array([a is None for a in activities], pa.bool_())
    return pa.ListArray.from_arrays(pa.array(offsets), frames, mask=missing)
