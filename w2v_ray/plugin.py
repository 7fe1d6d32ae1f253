"""Transcription as a step of somebody's own Ray Data pipeline: a Dataset in, the same rows with text out.

It keeps every row and every column, stays lazy, and writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from ray.data import ActorPoolStrategy, Dataset

from w2v_ray.decoder_config import DecoderConfig, check_one_language
from w2v_ray.decoding import check_decoder, reachable
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
from w2v_ray.schema import ERROR, WORD
from w2v_ray.stages.decode_text import DecodeText, DecodeTextConfig
from w2v_ray.stages.encode_config import EncodeConfig
from w2v_ray.stages.segment_audio import SegmentAudioConfig
from w2v_ray.text.languages import Tokenizers

__all__ = ["transcribe"]

# Without frames, which count from the start of a segment.
_WORD_OF_RECORDING = pa.struct([WORD.field(name) for name in ("word", "start_s", "end_s", "confidence")])
_ADDED = {
    "text": pa.string(),
    "confidence": pa.float32(),
    "words": pa.list_(_WORD_OF_RECORDING),
    "duration_s": pa.float64(),
    "error": ERROR,
}


def transcribe(
    ds: Dataset,
    *,
    model: str,
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
    channel: str | int = "mix",
    vad: str | None = None,
    keep_non_speech: bool = True,
    rows_per_batch: int = 16,
    num_encoders: int = 1,
    num_cpus: float = 0.25,
    encoder_threads: int | None = None,
    decoder: DecoderConfig | None = None,
    decoder_threads: int = 1,
) -> Dataset:
    """Adds the recognised text to every row of a Dataset that holds audio.

    Args:
        ds: A Dataset with one recording per row.
        model: A folder or hub id with a CTC head.
        revision: Branch, tag or commit of a hub id.
        audio_column: The column with the audio; None: the first there is of audio, bytes, audio_bytes,
            uri, path, amplitude. It holds encoded bytes, a path or URL, a struct of "bytes" and "path"
            or of "array" and "sampling_rate" as Hugging Face datasets have them, or an array of
            samples in [-1, 1] (channels first if there are several) with its rate in the column
            sampling_rate or sample_rate.
        language_column: The column with the language of each row, of a checkpoint with an adapter for each:
            that of eng is adapter.eng.safetensors. Rows of one language follow each other in a batch; sort
            the Dataset by it where there are many.
        language: That of rows whose column is null, or of all rows where there is no such column.
        prefix: Put before the names of the added columns.
        device: "cpu", "cuda", where each encoder takes one GPU, or "auto": "cuda" where the running Ray
            has a GPU.
        attn_implementation: The attention kernel: "auto", "eager", "sdpa", "flash_attention_2" or
            "flex_attention".
        dtype: "float32", "float16", "bfloat16" or "int8", of weights and activations.
        max_batch_seconds: Seconds of audio that are encoded at once; None: 16 on a CPU, tried out on a GPU.
        deterministic: Whether each segment is encoded alone, so that not a bit depends on its neighbours.
        reference_batch: Segments in a batch that is padded as by transformers, with its numbers; None: no
            padding.
        chunk_length_s: Seconds that are heard at once of longer segments, in windows; None: the segment.
        stride_length_s: Seconds at both ends of a window that are not kept, or a pair of them; None: a sixth.
        normalize: What of a segment in windows is normalized at once: each "chunk", or the whole "segment".
        max_segment_seconds: The longest piece the encoder takes at once, in seconds.
        channel: What is taken of recordings with several: "mix", "left", "right" or a number from 0.
        vad: A voice activity detector as "MODULE:FUNCTION", whose pauses are cut at first.
        keep_non_speech: Whether what the detector does not call speech is recognised as well.
        rows_per_batch: Rows that travel together; lower it for long recordings.
        num_encoders: Encoder actors.
        num_cpus: CPUs that each encoder actor reserves. All steps of a Dataset hold theirs at once, and
            need one more for the rows: with too few CPUs the Dataset waits for ever.
        encoder_threads: CPU threads of each encoder; None: torch's default.
        decoder: How to decode text, such as ``DecoderConfig(lm="lm.arpa")``; None: greedily.
        decoder_threads: CPU threads of the text decoder.

    Returns:
        The lazy Dataset with these columns more:
            text: what was recognised, empty where nothing was.
            confidence: in [0, 1], null where nothing was recognised.
            words: list of word, start_s, end_s, confidence; seconds in the recording.
            duration_s: length of the audio in seconds, without what was dropped as no speech; null where
                it could not be decoded.
            error: null, or stage, error_class and message of the first failure in the row; text then
                holds what the rest of the row gave, and is null where nothing else is left.

    Raises:
        CheckpointError: The model's files cannot be found or read.
        ConfigError: A setting is out of bounds. An audio column is absent, or a column that is to
            be added is there already: at once where the Dataset knows its columns, else when it runs.
    """
    vocabulary = vocabulary_of(model, revision=revision)
    model = absolute_model(model)
    decoder = DecoderConfig() if decoder is None else decoder
    languages = row_languages(
        model, vocabulary.tokenizer, revision=revision, column=language_column, default=language
    )
    tokenizer = Tokenizers(vocabulary.tokenizer)(language)
    check_decoder(decoder, tokenizer, model=model, revision=revision)
    if language_column is not None:
        check_one_language(decoder, "language_column")
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
    text = DecodeTextConfig(
        tokenizer=vocabulary.tokenizer,
        seconds_per_frame=vocabulary.seconds_per_frame,
        decoder=reachable(decoder),
        model=model,
        revision=revision,
        num_threads=decoder_threads,
    )
    load = LoadRows(
        caller="transcribe",
        added=tuple(prefix + name for name in _ADDED),
        audio_column=audio_column,
        languages=languages,
        channel=channel,
        segment=SegmentAudioConfig(
            max_segment_seconds=max_segment_seconds, vad=vad, keep_non_speech=keep_non_speech
        ),
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
    """The text of the segments, put together again to one row for each of the user's."""

    def __init__(self, config: DecodeTextConfig, prefix: str) -> None:
        self._decode = DecodeText(config)
        self._prefix = prefix

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows, segments = split_rows(batch)
        values: list[dict[str, Any]] = [dict.fromkeys(_ADDED) for _ in range(rows.num_rows)]
        columns = ["item_index", "text", "words", "duration_s", "error"]
        for segment in self._decode(segments).select(columns).to_pylist():
            value = values[segment["item_index"]]
            value["error"] = value["error"] or segment["error"]
            value["duration_s"] = _add(value["duration_s"], segment["duration_s"])
            if segment["text"] is not None:
                value["text"] = " ".join(filter(None, [value["text"], segment["text"]]))
                words = [{f.name: word[f.name] for f in _WORD_OF_RECORDING} for word in segment["words"]]
                value["words"] = (value["words"] or []) + words
        for value in values:
            if value["words"]:
                # the geometric mean over words, as of a segment
                logs = np.log([max(word["confidence"], 1e-9) for word in value["words"]])
                value["confidence"] = float(np.exp(logs.mean()))
        return append_columns(rows, values, _ADDED.items(), self._prefix)


def _add(total: float | None, seconds: float | None) -> float | None:
    return total if seconds is None else (total or 0.0) + seconds
