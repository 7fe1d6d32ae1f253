"""Embeddings, labels and turns as steps of somebody's own Ray Data pipeline.

Each keeps every row and every column, stays lazy, and writes nothing. A recording that is longer than a
segment is encoded in several, whose results are put together again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

import numpy as np
import pyarrow as pa
from ray.data import Dataset

from w2v_ray.head_config import HeadConfig
from w2v_ray.heads import Head, find_heads
from w2v_ray.plugin_rows import LoadRows, choose_device, encode_rows, split_rows
from w2v_ray.schema import CLASS_SCORES, ERROR, FRAME, LABEL
from w2v_ray.stages.choose_labels import ChooseLabels, ChooseLabelsConfig
from w2v_ray.stages.encode_config import EncodeConfig
from w2v_ray.stages.find_turns import FindTurns, FindTurnsConfig
from w2v_ray.stages.segment_audio import SegmentAudioConfig

__all__ = ["classify", "embed", "label_frames"]

_LABEL_NAMES = ("label", "score", "labels")
_FRAME_NAMES = ("turns", "activity", "classes", "seconds_per_frame")


class Options(TypedDict, total=False):
    """What all functions take that make an encoder a step of a Dataset; meanings as of ``transcribe``."""

    revision: str | None
    audio_column: str | None
    prefix: str
    device: str
    attn_implementation: str
    dtype: str
    max_batch_seconds: float | None
    deterministic: bool
    reference_batch: int | None
    chunk_length_s: float | None
    stride_length_s: float | Sequence[float] | None
    normalize: str
    max_segment_seconds: float
    channel: str | int
    rows_per_batch: int
    num_encoders: int
    num_cpus: float
    encoder_threads: int | None


def embed(
    ds: Dataset,
    *,
    model: str,
    pooling: str = "auto",
    layer: int | None = None,
    embedding_dtype: str = "float32",
    **options: Unpack[Options],
) -> Dataset:
    """Adds to every row of a Dataset that holds audio a vector, by which speakers can be told apart.

    Args:
        ds: A Dataset with one recording per row.
        model: A folder or hub id: with a head for speakers, or any encoder.
        pooling: "xvector" (the head), "mean" or "mean+std" of a layer's frames, or "auto": the head where
            there is one, and the mean where there is none.
        layer: The layer that is pooled, from 0, the input of the first; None: the last.
        embedding_dtype: "float32" or "float16".
        **options: revision, audio_column, prefix, device, attn_implementation, dtype, max_batch_seconds,
            deterministic, reference_batch, chunk_length_s, stride_length_s, normalize, max_segment_seconds,
            channel, rows_per_batch, num_encoders, num_cpus and encoder_threads, as of ``transcribe``.

    Returns:
        The lazy Dataset with these columns more:
            embedding: of unit length, of a fixed size; of a recording of several segments the mean of theirs,
                each weighted by its duration; null where the recording is too short or failed.
            duration_s: length of the audio in seconds; null where it could not be decoded.
            error: null, or stage, error_class and message of the first failure in the row.

    Raises:
        CheckpointError: The model's files cannot be found or read, or it has no such head.
        ConfigError: A setting is out of bounds. An audio column is absent, or a column that is to
            be added is there already: at once where the Dataset knows its columns, else when it runs.
    """
    settings = HeadConfig(task="embed", pooling=pooling, layer=layer, embedding_dtype=embedding_dtype)
    return _flow("embed", options).run(ds, settings, model, ("embedding",), _Embeddings)


def classify(
    ds: Dataset, *, model: str, top_k: int = 5, threshold: float | None = None, **options: Unpack[Options]
) -> Dataset:
    """Adds to every row of a Dataset that holds audio the likeliest labels of a classifier.

    Args:
        ds: A Dataset with one recording per row.
        model: A folder or hub id with a head that classifies recordings.
        top_k: Labels of a row, at most.
        threshold: The least score that is named, each label judged by itself; None: the best ones.
        **options: As of ``embed``.

    Returns:
        The lazy Dataset with these columns more:
            label: the likeliest; null where none reaches the threshold.
            score: of the likeliest, in [0, 1]; of a recording of several segments the mean, each weighted by
                its duration.
            labels: list of label and score, best first.
            duration_s: length of the audio in seconds; null where it could not be decoded.
            error: null, or stage, error_class and message of the first failure in the row.

    Raises:
        CheckpointError: As of ``embed``.
        ConfigError: As of ``embed``.
    """
    settings = HeadConfig(task="classify", top_k=top_k, threshold=threshold)
    return _flow("classify", options).run(ds, settings, model, _LABEL_NAMES, _Labels)


def label_frames(
    ds: Dataset,
    *,
    model: str,
    activation: str = "auto",
    onset: float = 0.5,
    offset: float = 0.5,
    min_on_seconds: float = 0.0,
    min_off_seconds: float = 0.0,
    **options: Unpack[Options],
) -> Dataset:
    """Adds to every row of a Dataset that holds audio what is active when, such as who speaks.

    Args:
        ds: A Dataset with one recording per row.
        model: A folder or hub id with a head that classifies frames.
        activation: "sigmoid" (each class by itself), "softmax" (one at a time), or "auto": sigmoid unless the
            checkpoint says single_label_classification.
        onset: A turn begins where the score reaches this, from 0 to 1.
        offset: A turn ends where the score falls below this, from 0 to 1, at most ``onset``.
        min_on_seconds: Shorter turns are dropped.
        min_off_seconds: Shorter pauses within a turn are closed.
        **options: As of ``embed``.

    Returns:
        The lazy Dataset with these columns more:
            turns: list of label, start_s, end_s and score, by their start; seconds in the recording. A turn
                ends where a segment does.
            activity: the scores of the classes in each frame, segment after segment.
            classes: the names of the classes, in the order of the scores.
            seconds_per_frame: from one frame of a segment to the next.
            duration_s: length of the audio in seconds; null where it could not be decoded.
            error: null, or stage, error_class and message of the first failure in the row.

    Raises:
        CheckpointError: As of ``embed``.
        ConfigError: As of ``embed``.
    """
    settings = HeadConfig(
        task="frames",
        activation=activation,
        onset=onset,
        offset=offset,
        min_on_seconds=min_on_seconds,
        min_off_seconds=min_off_seconds,
    )
    return _flow("label_frames", options).run(ds, settings, model, _FRAME_NAMES, _Turns)


@dataclass(frozen=True, kw_only=True)
class _Flow:
    """The options that all of these functions have, and the flow that they describe."""

    caller: str
    revision: str | None = None
    audio_column: str | None = None
    prefix: str = ""
    device: str = "auto"
    attn_implementation: str = "sdpa"
    dtype: str = "float32"
    max_batch_seconds: float | None = None
    deterministic: bool = False
    reference_batch: int | None = None
    chunk_length_s: float | None = None
    stride_length_s: float | Sequence[float] | None = None
    normalize: str = "chunk"
    max_segment_seconds: float = 30.0
    channel: str | int = "mix"
    rows_per_batch: int = 16
    num_encoders: int = 1
    num_cpus: float = 0.25
    encoder_threads: int | None = None

    def run(
        self,
        ds: Dataset,
        settings: HeadConfig,
        model: str,
        names: tuple[str, ...],
        results: Callable[[HeadConfig, Head], Callable[[pa.Table, int], list[pa.Array]]],
    ) -> Dataset:
        (head,) = find_heads(settings, model, revision=self.revision)
        names = tuple(self.prefix + name for name in (*names, "duration_s", "error"))
        load = LoadRows(
            caller=self.caller,
            added=names,
            audio_column=self.audio_column,
            channel=self.channel,
            segment=SegmentAudioConfig(max_segment_seconds=self.max_segment_seconds),
        )
        encode = EncodeConfig(
            heads=(head,),
            device=choose_device(self.device),
            attn_implementation=self.attn_implementation,
            dtype=self.dtype,
            max_batch_seconds=self.max_batch_seconds,
            deterministic=self.deterministic,
            reference_batch=self.reference_batch,
            chunk_length_s=self.chunk_length_s,
            stride_length_s=self.stride_length_s,
            normalize=self.normalize,
            num_threads=self.encoder_threads,
        )
        ds = encode_rows(
            ds,
            load,
            encode,
            rows_per_batch=self.rows_per_batch,
            num_encoders=self.num_encoders,
            num_cpus=self.num_cpus,
        )
        write = _WriteRows(names, results(settings, head))  # loads nothing, so it needs no actor of its own
        return ds.map_batches(write, batch_size=1, batch_format="pyarrow", num_cpus=min(0.25, self.num_cpus))


def _flow(caller: str, options: Options) -> _Flow:
    for name in options:
        if name not in Options.__annotations__:
            raise TypeError(f"{caller}() has no option {name!r}; it has {', '.join(Options.__annotations__)}")
    return _Flow(caller=caller, **options)


class _WriteRows:
    """The results of the segments, put together again to one row for each of the user's."""

    def __init__(self, names: tuple[str, ...], results: Callable[[pa.Table, int], list[pa.Array]]) -> None:
        self._names = names
        self._results = results

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows, segments = split_rows(batch)
        segments = segments.sort_by([("item_index", "ascending"), ("segment_index", "ascending")])
        seconds: list[float | None] = [None] * rows.num_rows
        errors: list[dict[str, str] | None] = [None] * rows.num_rows
        for segment in segments.select(["item_index", "duration_s", "error"]).to_pylist():
            row = segment["item_index"]
            errors[row] = errors[row] or segment["error"]
            if segment["duration_s"] is not None:
                seconds[row] = (seconds[row] or 0.0) + segment["duration_s"]
        arrays = [*self._results(segments, rows.num_rows), pa.array(seconds, pa.float64())]
        for name, array in zip(self._names, [*arrays, pa.array(errors, ERROR)], strict=True):
            rows = rows.append_column(name, array)
        return rows


def _means(segments: pa.Table, column: str, num_rows: int) -> list[np.ndarray | None]:
    """Of each row the mean of its segments' vectors, weighted by their durations."""
    sums: list[np.ndarray | None] = [None] * num_rows
    totals = [0.0] * num_rows
    columns = (segments.column(name) for name in ("item_index", "duration_s"))
    for row, seconds, vector in zip(*(c.to_pylist() for c in columns), segments.column(column), strict=True):
        if vector.is_valid:
            weighted = vector.values.to_numpy(zero_copy_only=False).astype(np.float64) * seconds
            found = sums[row]
            sums[row] = weighted if found is None else found + weighted
            totals[row] += seconds
    return [None if x is None else x / total for x, total in zip(sums, totals, strict=True)]


class _Embeddings:
    def __init__(self, settings: HeadConfig, head: Head) -> None:
        self._head = head

    def __call__(self, segments: pa.Table, num_rows: int) -> list[pa.Array]:
        type_ = segments.schema.field("embedding").type
        vectors = np.zeros((num_rows, self._head.size))
        missing = np.ones(num_rows, bool)
        for row, mean in enumerate(_means(segments, "embedding", num_rows)):
            if mean is not None:
                vectors[row] = mean / max(float(np.linalg.norm(mean)), 1e-12)
                missing[row] = False
        values = pa.array(vectors.astype(self._head.dtype).ravel(), type_.value_type)
        return [pa.FixedSizeListArray.from_arrays(values, type=type_, mask=pa.array(missing))]


class _Labels:
    def __init__(self, settings: HeadConfig, head: Head) -> None:
        self._choose = ChooseLabels(
            ChooseLabelsConfig(classes=head.classes, top_k=settings.top_k, threshold=settings.threshold)
        )

    def __call__(self, segments: pa.Table, num_rows: int) -> list[pa.Array]:
        means = _means(segments, "class_scores", num_rows)
        scores = [None if mean is None else mean.astype(np.float32) for mean in means]
        table = self._choose(pa.table({CLASS_SCORES.name: pa.array(scores, CLASS_SCORES.type)}))
        return [table.column(name).combine_chunks().cast(LABEL.field(name).type) for name in _LABEL_NAMES]


class _Turns:
    def __init__(self, settings: HeadConfig, head: Head) -> None:
        self._head = head
        self._find = FindTurns(
            FindTurnsConfig(
                classes=head.classes,
                seconds_per_frame=head.seconds_per_frame,
                onset=settings.onset,
                offset=settings.offset,
                min_on_seconds=settings.min_on_seconds,
                min_off_seconds=settings.min_off_seconds,
            )
        )

    def __call__(self, segments: pa.Table, num_rows: int) -> list[pa.Array]:
        found = self._find(segments)
        found = found.filter(found.column("activity").is_valid())
        rows = found.column("item_index").to_numpy()
        turns: list[list[Any] | None] = [None] * num_rows
        for row, some in zip(rows.tolist(), found.column("turns").to_pylist(), strict=True):
            turns[row] = (turns[row] or []) + some
        # The frames of a row's segments lie one after another; what is left is where each row's begin.
        activity = found.column("activity").combine_chunks()
        lengths = np.bincount(rows, weights=found.column("num_frames").to_numpy(), minlength=num_rows)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
        missing = pa.array([some is None for some in turns], pa.bool_())
        return [
            pa.array(turns, FRAME.field("turns").type),
            pa.ListArray.from_arrays(offsets, activity.flatten(), mask=missing),
            pa.array([list(self._head.classes)] * num_rows, FRAME.field("classes").type),
            pa.array([self._head.seconds_per_frame] * num_rows, pa.float64()),
        ]
