"""The rows of somebody's own Dataset on their way through the encoder: each batch of them travels as one row.

Audio is found in the forms that Datasets have it in, and everything else in a row is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset

from w2v_ray.audio_config import check_channel
from w2v_ray.errors import AlignError, ConfigError, ItemError, LanguageError
from w2v_ray.languages import check_languages, known_languages
from w2v_ray.packing import pack, unpack
from w2v_ray.schema import ALIGNMENT, ERROR, READ, error_value
from w2v_ray.stages.decode_audio import DecodeAudio, DecodeAudioConfig
from w2v_ray.stages.encode_config import EncodeConfig
from w2v_ray.stages.read_audio import ReadAudio, ReadAudioConfig
from w2v_ray.stages.segment_audio import SegmentAudio, SegmentAudioConfig
from w2v_ray.stages.take_audio import TakeAudio
from w2v_ray.stages.take_language import with_languages
from w2v_ray.text.tokenizer import Wav2Vec2CTCTokenizer

__all__ = [
    "EncoderOptions",
    "LoadRows",
    "RowLanguages",
    "append_columns",
    "check_options",
    "choose_device",
    "encode_rows",
    "row_languages",
    "split_rows",
]


class EncoderOptions(TypedDict, total=False):
    """How the encoder computes: names, types, defaults and bounds are those of ``EncoderConfig``."""

    attn_implementation: str
    dtype: str
    max_batch_seconds: float | None
    deterministic: bool
    reference_batch: int | None
    chunk_length_s: float | None
    stride_length_s: float | None
    normalize: str


def check_options(caller: str, options: Iterable[str], known: Iterable[str]) -> None:
    """Refuses a keyword that the function that the user called does not have.

    Raises:
        TypeError: With the name and those that there are.
    """
    for name in options:
        if name not in known:
            raise TypeError(f"{caller}() has no option {name!r}; it has {', '.join(known)}")


@dataclass(frozen=True, kw_only=True)
class RowLanguages:
    """Where the language of a row is told, and which there are."""

    column: str | None
    """The column with its name; None: all rows are of the default."""
    default: str | None
    """Of rows whose column is null; None: they fail."""
    known: tuple[str, ...] | None
    """Those that the checkpoint has; None: that shows when one is first used."""

    def add(self, items: pa.Table, rows: pa.Table) -> pa.Table:
        """The items with ``language``; those without one, or of one that is not known, have failed."""
        if self.column is None:
            return with_languages(items, [self.default] * items.num_rows, known=self.known)
        if self.column not in rows.column_names:
            raise ConfigError(
                f"the Dataset has no language column {self.column!r} (its columns are "
                f"{', '.join(rows.column_names)}); name it with language_column="
            )
        missing: object = self.default
        if missing is None:
            missing = LanguageError(
                f"column {self.column!r} is null; fill it in, or pass language= for such rows"
            )
        names = rows.column(self.column).to_pylist()
        found = [missing if name is None else name for name in names]
        return with_languages(items, found, known=self.known)


def row_languages(
    model: str,
    tokenizer: Wav2Vec2CTCTokenizer,
    *,
    revision: str | None,
    column: str | None,
    default: str | None,
) -> RowLanguages | None:
    """Where the languages of rows are told, once the checkpoint is seen to have any; None: nowhere.

    Raises:
        ConfigError: It has not the default.
        CheckpointError: It has no adapters, or one does not fit its vocabulary.
    """
    if column is None and default is None:
        return None
    check_languages(model, tokenizer, revision=revision, language=default, is_one=column is None)
    known = known_languages(model, tokenizer, revision=revision)
    return RowLanguages(column=column, default=default, known=known)


@dataclass(frozen=True, kw_only=True)
class LoadRows:
    """A batch of the user's rows to one packed row: the rows as they are, and their audio as segments."""

    caller: str
    """The function that the user called."""
    added: tuple[str, ...]
    """The columns that it adds, with their prefix."""
    audio_column: str | None
    text_column: str | None = None
    """The column whose text goes with the segments; None: none does."""
    languages: RowLanguages | None = None
    """The language of each row; None: the checkpoint's own."""
    max_item_seconds: float = DecodeAudioConfig().max_item_seconds
    channel: str | int = "mix"
    segment: SegmentAudioConfig

    def __post_init__(self) -> None:
        check_channel(self.channel)
        if self.channel == "split":
            raise ConfigError(
                "channel is 'split', which would make several rows of one; name a channel, or mix"
            )

    def check(self, names: Sequence[str]) -> None:
        """Refuses a Dataset of these columns: there is one that would be added, or none of audio or of text.

        Raises:
            ConfigError: With the name and what to do.
        """
        for name in self.added:
            if name in names:
                raise ConfigError(
                    f"the Dataset has a column {name!r} already, which {self.caller}() would add; "
                    f"rename it, or pass a prefix such as prefix='asr_'"
                )
        TakeAudio(self.audio_column).column_of(names)
        if self.text_column is not None and self.text_column not in names:
            raise ConfigError(
                f"the Dataset has no text column {self.text_column!r} (its columns are {', '.join(names)}); "
                "name it with text_column="
            )

    def __call__(self, rows: pa.Table) -> pa.Table:
        self.check(rows.column_names)
        items = TakeAudio(self.audio_column)(rows)
        if self.text_column is not None:
            items = _with_texts(items, rows, self.text_column)
        if self.languages is not None:
            items = self.languages.add(items, rows)
        decode = DecodeAudio(DecodeAudioConfig(max_item_seconds=self.max_item_seconds, channel=self.channel))
        segments = SegmentAudio(self.segment)(decode(ReadAudio(ReadAudioConfig())(items)))
        return _join(rows, segments)


def choose_device(device: str) -> str:
    """ "cuda" for "auto" where the running Ray has a GPU, and "cpu" where it has none."""
    if device != "auto":
        return device
    gpus = ray.cluster_resources().get("GPU", 0) if ray.is_initialized() else 0  # type: ignore[no-untyped-call]
    return "cuda" if gpus else "cpu"


def encode_rows(
    ds: Dataset,
    load: LoadRows,
    config: EncodeConfig,
    *,
    rows_per_batch: int,
    num_encoders: int,
    num_cpus: float,
) -> Dataset:
    """The Dataset with a row for each batch: its rows and their encoded segments, for ``split_rows``."""
    if rows_per_batch < 1:
        raise ConfigError(f"rows_per_batch is {rows_per_batch}, expected at least 1; try 16")
    if num_encoders < 1:
        raise ConfigError(f"num_encoders is {num_encoders}, expected at least 1; try 1")
    schema = ds.schema(fetch_if_missing=False)
    if schema is not None:  # else the columns are known when the Dataset runs
        load.check(schema.names)
    ds = ds.map_batches(load, batch_size=rows_per_batch, batch_format="pyarrow")  # a batch: one row from here
    return ds.map_batches(
        _EncodeRows,
        fn_constructor_args=(config,),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=num_cpus,
        num_gpus=1 if config.device.startswith("cuda") else 0,
        compute=ActorPoolStrategy(size=num_encoders),
    )


class _EncodeRows:
    def __init__(self, config: EncodeConfig) -> None:
        # torch comes with it, which the workers of other steps spare.
        from w2v_ray.stages.encode import Encode

        self._encode = Encode(config)

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows, segments = split_rows(batch)
        return _join(rows, self._encode(segments))


def split_rows(batch: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The user's rows of a batch, and the segments of their audio, whose item_index counts these rows."""

    def part(prefix: str) -> pa.Table:
        names = [name for name in batch.column_names if name.startswith(prefix)]
        return unpack(batch.select(names).rename_columns([name.removeprefix(prefix) for name in names]))

    return part("row:"), part("segment:")


def append_columns(
    rows: pa.Table, values: list[dict[str, Any]], fields: Iterable[tuple[str, pa.DataType]], prefix: str
) -> pa.Table:
    """The rows with a column more for each field, from one dict of values a row."""
    for name, type_ in fields:
        rows = rows.append_column(prefix + name, pa.array([value[name] for value in values], type_))
    return rows


def _with_texts(items: pa.Table, rows: pa.Table, name: str) -> pa.Table:
    """The items with their texts; those without one have failed."""
    texts = rows.column(name).to_pylist()
    errors = items.column("error").to_pylist()
    for row, text in enumerate(texts):
        if errors[row] is None and not isinstance(text, str):
            problem: ItemError = AlignError(f"column {name!r} holds {text!r:.60}, expected text; fill it in")
            errors[row] = error_value("align_text", problem)
    texts = [text if isinstance(text, str) else None for text in texts]
    items = items.append_column(ALIGNMENT.field("text"), pa.array(texts, pa.string()))
    return items.set_column(items.column_names.index("error"), READ[1], pa.array(errors, ERROR))


def _join(rows: pa.Table, segments: pa.Table) -> pa.Table:
    packed_rows, packed_segments = pack(rows), pack(segments)
    columns = {f"row:{name}": packed_rows.column(name) for name in rows.column_names}
    columns |= {f"segment:{name}": packed_segments.column(name) for name in segments.column_names}
    return pa.table(columns)
