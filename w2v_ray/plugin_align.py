"""Alignment as a step of somebody's own Ray Data pipeline: recordings and their texts in, times out.

It keeps every row and every column, stays lazy, and writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from ray.data import ActorPoolStrategy, Dataset

from w2v_ray.hub import absolute_model
from w2v_ray.job import vocabulary_of
from w2v_ray.plugin_rows import (
    LoadRows,
    append_columns,
    choose_device,
    encode_rows,
    row_languages,
    split_rows,
)
from w2v_ray.schema import ALIGNMENT, ERROR
from w2v_ray.stages.align_text import MAX_ITEM_SECONDS, AlignText, AlignTextConfig
from w2v_ray.stages.encode_config import EncodeConfig
from w2v_ray.stages.segment_audio import SegmentAudioConfig

__all__ = ["align"]

_NAMES = ("words", "characters", "score", "ctc_loss", "loss_per_label", "duration_s")
_ADDED = {name: ALIGNMENT.field(name).type for name in _NAMES} | {"error": ERROR}


def align(
    ds: Dataset,
    *,
    model: str,
    text_column: str = "text",
    revision: str | None = None,
    audio_column: str | None = None,
    language_column: str | None = None,
    language: str | None = None,
    prefix: str = "",
    device: str = "auto",
    attn_implementation: str = "sdpa",
    dtype: str = "float32",
    max_batch_seconds: float | None = None,
    deterministic: bool = False,
    reference_batch: int | None = None,
    chunk_length_s: float | None = None,
    stride_length_s: float | Sequence[float] | None = None,
    normalize: str = "chunk",
    max_segment_seconds: float = 30.0,
    rows_per_batch: int = 16,
    num_encoders: int = 1,
    num_cpus: float = 0.25,
    encoder_threads: int | None = None,
) -> Dataset:
    """Adds to every row where the words of its text are in its audio, and how well the text fits.

    Args:
        ds: A Dataset with one recording per row, of an hour at most.
        model: A folder or hub id with a CTC head.
        text_column: The column with what is said.
        revision: Branch, tag or commit of a hub id.
        audio_column: The column with the audio, in the forms that ``transcribe`` takes.
        language_column: The column with the language of each row, of a checkpoint with an adapter for each:
            that of eng is adapter.eng.safetensors. Rows of one language follow each other in a batch; sort
            the Dataset by it where there are many.
        language: That of rows whose column is null, or of all rows where there is no such column.
        prefix: Put before the names of the added columns.
        device: "cpu", "cuda", where each encoder takes one GPU, or "auto": "cuda" where the running Ray
            has a GPU.
        attn_implementation: The attention kernel: auto, eager, sdpa, flash_attention_2 or flex_attention.
        dtype: "float32", "float16", "bfloat16" or "int8", of weights and activations.
        max_batch_seconds: Seconds of audio that are encoded at once; None: 16 on a CPU, tried out on a GPU.
        deterministic: Whether each segment is encoded alone, so that not a bit depends on its neighbours.
        reference_batch: Segments in a batch that is padded as by transformers, with its numbers; None: no
            padding.
        chunk_length_s: Seconds that are heard at once of longer segments, in windows; None: the segment.
        stride_length_s: Seconds at both ends of a window that are not kept, or a pair of them; None: a sixth.
        normalize: What of a segment in windows is normalized at once: each "chunk", or the whole "segment".
        max_segment_seconds: The longest piece the encoder takes at once, in seconds; the text is aligned
            with the whole recording all the same.
        rows_per_batch: Rows that travel together; lower it for long recordings.
        num_encoders: Encoder actors.
        num_cpus: CPUs that each encoder actor reserves. All steps of a Dataset hold theirs at once, and
            need one more for the rows: with too few CPUs the Dataset waits for ever.
        encoder_threads: CPU threads of each encoder; None: torch's default.

    Returns:
        The lazy Dataset with these columns more:
            words: list of word, start_s, end_s, score, aligned: every word of the text in order; seconds
                in the recording; aligned is false where a time was set between neighbours, as the
                vocabulary does not have the characters.
            characters: list of char, start_s, end_s, score, aligned.
            score: in [0, 1], over all words; null where nothing was aligned.
            ctc_loss: the negative logarithm of the probability of the text, in nats.
            loss_per_label: the same for each token of the text: high where the text is wrong.
            duration_s: length of the audio in seconds, null where it could not be decoded.
            error: null, or stage, error_class and message of what failed; the others are null then.

    Raises:
        CheckpointError: The model's files cannot be found or read.
        ConfigError: A setting is out of bounds. An audio or text column is absent, or a column that is
            to be added is there already: at once where the Dataset knows its columns, else when it runs.
    """
    vocabulary = vocabulary_of(model, revision=revision)
    model = absolute_model(model)
    languages = row_languages(
        model, vocabulary.tokenizer, revision=revision, column=language_column, default=language
    )
    encode = EncodeConfig(
        model=model,
        revision=revision,
        device=choose_device(device),
        attn_implementation=attn_implementation,
        dtype=dtype,
        max_batch_seconds=max_batch_seconds,
        deterministic=deterministic,
        reference_batch=reference_batch,
        chunk_length_s=chunk_length_s,
        stride_length_s=stride_length_s,
        normalize=normalize,
        num_threads=encoder_threads,
    )
    text = AlignTextConfig(model=model, revision=revision, seconds_per_frame=vocabulary.seconds_per_frame)
    load = LoadRows(
        caller="align",
        added=tuple(prefix + name for name in _ADDED),
        audio_column=audio_column,
        text_column=text_column,
        languages=languages,
        max_item_seconds=MAX_ITEM_SECONDS,
        segment=SegmentAudioConfig(max_segment_seconds=max_segment_seconds),
    )
    ds = encode_rows(
        ds, load, encode, rows_per_batch=rows_per_batch, num_encoders=num_encoders, num_cpus=num_cpus
    )
    return ds.map_batches(
        _WriteRows,
        fn_constructor_args=(text, prefix),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=min(0.25, num_cpus),
        compute=ActorPoolStrategy(size=1),
    )


class _WriteRows:
    """The alignment of each row's segments, beside the user's row."""

    def __init__(self, config: AlignTextConfig, prefix: str) -> None:
        self._align = AlignText(config)
        self._prefix = prefix

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows, segments = split_rows(batch)
        values: list[dict[str, Any]] = [dict.fromkeys(_ADDED) for _ in range(rows.num_rows)]
        for item in self._align(segments).select(["item_index", *_ADDED]).to_pylist():
            values[item["item_index"]] = item
        return append_columns(rows, values, _ADDED.items(), self._prefix)
