"""Transcription as a step of somebody's own Ray Data pipeline: a Dataset in, the same rows with text out.

It keeps every row and every column, stays lazy, and writes nothing.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import soundfile
from ray.data import ActorPoolStrategy, Dataset

from w2v_ray.decoder_config import DecoderConfig
from w2v_ray.decoding import check_decoder, reachable
from w2v_ray.errors import ConfigError, ReadError
from w2v_ray.hub import absolute_model
from w2v_ray.job import vocabulary_of
from w2v_ray.packing import pack, unpack
from w2v_ray.schema import ERROR, ITEM, READ, WORD, error_value
from w2v_ray.stages.decode_audio import DecodeAudio, DecodeAudioConfig
from w2v_ray.stages.decode_text import DecodeText, DecodeTextConfig
from w2v_ray.stages.encode import Encode, EncodeConfig
from w2v_ray.stages.read_audio import ReadAudio, ReadAudioConfig
from w2v_ray.stages.segment_audio import SegmentAudio, SegmentAudioConfig

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
# The names under which audio is looked for, where the caller does not say.
_AUDIO_COLUMNS = ("audio", "bytes", "audio_bytes", "uri", "path", "amplitude")
_RATE_COLUMNS = ("sampling_rate", "sample_rate")


def transcribe(
    ds: Dataset,
    *,
    model: str,
    revision: str | None = None,
    audio_column: str | None = None,
    prefix: str = "",
    device: str = "auto",
    attn_implementation: str = "sdpa",
    dtype: str = "float32",
    max_segment_seconds: float = 30.0,
    rows_per_batch: int = 16,
    num_encoders: int = 1,
    num_cpus: float = 0.5,
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
        prefix: Put before the names of the added columns.
        device: "cpu", "cuda", where each encoder takes one GPU, or "auto": "cuda" where the running Ray
            has a GPU.
        attn_implementation: The attention kernel: "auto", "eager", "sdpa", "flash_attention_2" or
            "flex_attention".
        dtype: Of weights and activations.
        max_segment_seconds: The longest piece the encoder takes at once, in seconds.
        rows_per_batch: Rows that travel together; lower it for long recordings.
        num_encoders: Encoder actors.
        num_cpus: CPUs that each encoder actor reserves.
        encoder_threads: CPU threads of each encoder; None: torch's default.
        decoder: How to decode text, such as ``DecoderConfig(lm="lm.arpa")``; None: greedily.
        decoder_threads: CPU threads of the text decoder.

    Returns:
        The lazy Dataset with these columns more:
            text: what was recognised, empty where nothing was.
            confidence: in [0, 1], null where nothing was recognised.
            words: list of word, start_s, end_s, confidence; seconds in the recording.
            duration_s: length of the audio in seconds, null where it could not be decoded.
            error: null, or stage, error_class and message of the first failure in the row; text then
                holds what the rest of the row gave, and is null where nothing else is left.

    Raises:
        CheckpointError: The model's files cannot be found or read.
        ConfigError: A setting is out of bounds. An audio column that is absent, or a column that is to
            be added but is there already, raises it when the Dataset runs.
    """
    if rows_per_batch < 1:
        raise ConfigError(f"rows_per_batch is {rows_per_batch}, expected at least 1; try 16")
    vocabulary = vocabulary_of(model, revision=revision)
    model = absolute_model(model)
    decoder = decoder or DecoderConfig()
    check_decoder(decoder, vocabulary.tokenizer, model=model, revision=revision)
    if device == "auto":
        gpus = ray.cluster_resources().get("GPU", 0) if ray.is_initialized() else 0  # type: ignore[no-untyped-call]
        device = "cuda" if gpus else "cpu"
    on_gpu = device.startswith("cuda")
    encode = EncodeConfig(
        model=model,
        revision=revision,
        device=device,
        attn_implementation=attn_implementation,
        dtype=dtype,
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
    load = _LoadRows(audio_column, prefix, SegmentAudioConfig(max_segment_seconds=max_segment_seconds))

    ds = ds.map_batches(load, batch_size=rows_per_batch, batch_format="pyarrow")  # a batch: one row from here
    ds = ds.map_batches(
        _EncodeRows,
        fn_constructor_args=(encode,),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=num_cpus,
        num_gpus=1 if on_gpu else 0,
        compute=ActorPoolStrategy(size=num_encoders),
    )
    return ds.map_batches(
        _WriteRows,
        fn_constructor_args=(text, prefix),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=min(0.25, num_cpus),
        compute=ActorPoolStrategy(size=1),
    )


@dataclass(frozen=True)
class _LoadRows:
    """A batch of the user's rows to one packed row: the rows as they are, and their audio as segments."""

    audio_column: str | None
    prefix: str
    segment: SegmentAudioConfig

    def __call__(self, rows: pa.Table) -> pa.Table:
        for name in _ADDED:
            if self.prefix + name in rows.column_names:
                raise ConfigError(
                    f"the Dataset has a column {self.prefix + name!r} already, which transcribe() would add; "
                    f"rename it, or pass a prefix such as prefix='asr_'"
                )
        items = _items(rows, self.audio_column)
        segments = SegmentAudio(self.segment)(
            DecodeAudio(DecodeAudioConfig())(ReadAudio(ReadAudioConfig())(items))
        )
        return _join(rows, segments)


class _EncodeRows:
    def __init__(self, config: EncodeConfig) -> None:
        self._encode = Encode(config)

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows, segments = _split(batch)
        return _join(rows, self._encode(segments))


class _WriteRows:
    """The text of the segments, put together again to one row for each of the user's."""

    def __init__(self, config: DecodeTextConfig, prefix: str) -> None:
        self._decode = DecodeText(config)
        self._prefix = prefix

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows, segments = _split(batch)
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
        for name, type_ in _ADDED.items():
            rows = rows.append_column(self._prefix + name, pa.array([v[name] for v in values], type_))
        return rows


def _items(rows: pa.Table, audio_column: str | None) -> pa.Table:
    """One item for each row, in the columns that read_audio takes; bytes that are given are in place."""
    name = audio_column or next((n for n in _AUDIO_COLUMNS if n in rows.column_names), None)
    if name is None or name not in rows.column_names:
        wanted = repr(audio_column) if audio_column else f"one of {', '.join(_AUDIO_COLUMNS)}"
        raise ConfigError(
            f"the Dataset has no audio column {wanted} (its columns are {', '.join(rows.column_names)}); "
            "name it with audio_column="
        )
    rate_column = next((n for n in _RATE_COLUMNS if n in rows.column_names), None)
    rates = rows.column(rate_column).to_pylist() if rate_column else [None] * rows.num_rows
    given: list[bytes | None] = []
    uris: list[str] = []
    errors: list[dict[str, str] | None] = []
    for value, rate in zip(rows.column(name), rates, strict=True):
        source, error = None, None
        try:
            source = _source(value.as_py(), rate)
        except (TypeError, ValueError) as problem:
            error = error_value("read_audio", ReadError(f"column {name!r}: {problem}"))
        given.append(source if isinstance(source, bytes) else None)
        uris.append(source if isinstance(source, str) else "")
        errors.append(error)
    indices = range(rows.num_rows)
    items = pa.Table.from_pylist(
        [{"item_index": i, "recording_id": str(i), "uri": uri} for i, uri in zip(indices, uris, strict=True)],
        schema=ITEM,
    )
    items = items.append_column(READ[0], pa.array(given, READ[0].type))
    return items.append_column(READ[1], pa.array(errors, ERROR))


def _source(value: Any, rate: int | None) -> bytes | str:
    """The encoded bytes of a value, or the place to read them from."""
    if isinstance(value, dict):
        if value.get("bytes") is not None:
            return bytes(value["bytes"])
        if value.get("array") is not None:
            return _wav(value["array"], value.get("sampling_rate"))
        value = value.get("path")
    if isinstance(value, bytes | str) and value:
        return value
    if isinstance(value, list | np.ndarray):
        return _wav(value, rate)
    raise TypeError(
        f"the value is {type(value).__name__} or empty, expected bytes, a path, an Audio struct or samples"
    )


def _wav(samples: Any, rate: int | None) -> bytes:
    """Samples in a container of their own, so that arrays go the way of all audio."""
    array = np.asarray(samples, np.float32)
    if rate is None:
        raise ValueError(f"samples without a rate; add a column {' or '.join(_RATE_COLUMNS)}")
    file = io.BytesIO()
    soundfile.write(file, array.T if array.ndim == 2 else array, int(rate), format="WAV", subtype="FLOAT")
    return file.getvalue()


def _join(rows: pa.Table, segments: pa.Table) -> pa.Table:
    packed_rows, packed_segments = pack(rows), pack(segments)
    columns = {f"row:{name}": packed_rows.column(name) for name in rows.column_names}
    columns |= {f"segment:{name}": packed_segments.column(name) for name in segments.column_names}
    return pa.table(columns)


def _split(batch: pa.Table) -> tuple[pa.Table, pa.Table]:
    def part(prefix: str) -> pa.Table:
        names = [name for name in batch.column_names if name.startswith(prefix)]
        return unpack(batch.select(names).rename_columns([name.removeprefix(prefix) for name in names]))

    return part("row:"), part("segment:")


def _add(total: float | None, seconds: float | None) -> float | None:
    return total if seconds is None else (total or 0.0) + seconds
