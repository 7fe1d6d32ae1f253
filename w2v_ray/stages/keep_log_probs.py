"""Log-probabilities kept for decoding again: one stage adds what is small of them, one reads it back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from w2v_ray import stores
from w2v_ray.errors import ItemError, OutputError
from w2v_ray.schema import EMISSION_DTYPE, ENCODED, ERROR, KEPT, LOG_PROBS, error_value
from w2v_ray.stages.emissions import emission_of
from w2v_ray.stages.take_language import languages_of
from w2v_ray.text.languages import LanguageLabels
from w2v_ray.text.tokenizer import Wav2Vec2CTCTokenizer
from w2v_ray.text.top_tokens import keep_top_tokens, restore_emission

__all__ = ["KeepLogProbs", "ReadLogProbs", "ReadLogProbsConfig"]

_DTYPE = np.dtype(EMISSION_DTYPE).newbyteorder("<")


class KeepLogProbs:
    """Adds the columns of KEPT to a table of encoded segments; they are null where there is no emission.

    Args:
        tokenizer: Says which column is the blank.
        count: Tokens kept of each frame, the blank included.
    """

    def __init__(self, tokenizer: Wav2Vec2CTCTokenizer, *, count: int) -> None:
        self._labels = LanguageLabels(tokenizer)
        self._count = count

    def __call__(self, table: pa.Table) -> pa.Table:
        kept: list[tuple[bytes | None, bytes | None, int | None]] = []
        languages = languages_of(table)
        for i in range(table.num_rows):
            try:
                emission = emission_of(table, i)
            except ItemError:  # decode_text will say so
                kept.append((None, None, None))
                continue
            columns = emission.shape[1]
            blank = self._labels(languages[i], columns).blank if len(emission) else 0
            kept.append((*keep_top_tokens(emission, count=self._count, blank=blank), columns))
        for field, values in zip(KEPT, zip(*kept, strict=True) if kept else [[], [], []], strict=True):
            table = table.append_column(field, pa.array(values, field.type))
        return table


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadLogProbsConfig:
    """Whose log-probabilities to read."""

    source: str
    """The output of the job that kept them."""
    job_fingerprint: str
    """Of that job."""
    tokenizer: Wav2Vec2CTCTokenizer
    """Of its model."""


class ReadLogProbs:
    """Turns a table with the ``log_probs_file`` of a shard into the encoded segments that were kept of it.

    Raises:
        OutputError: Nothing was kept of the shard, or it is of another job.
    """

    def __init__(self, config: ReadLogProbsConfig) -> None:
        self._source = stores.canonical(config.source)
        self._job_fingerprint = config.job_fingerprint
        self._labels = LanguageLabels(config.tokenizer)

    def __call__(self, shard: pa.Table) -> pa.Table:
        path = stores.join(self._source, shard.column("log_probs_file")[0].as_py())
        try:
            file = pq.ParquetFile(pa.BufferReader(stores.read_bytes(path)))
            found = file.metadata.metadata[b"w2v_ray.job_fingerprint"].decode()
            table = file.read().cast(LOG_PROBS)
        except Exception as error:  # each store has its own errors, and Arrow and JSON theirs
            raise OutputError(
                f"{path!r} cannot be read ({stores.explain(error)}); delete that shard's transcripts and run "
                "the job that made them again"
            ) from error
        if found != self._job_fingerprint:
            raise OutputError(
                f"{path!r} is of job {found}, expected {self._job_fingerprint}; restore the file"
            )
        errors = table.column("error").to_pylist()
        emissions: list[bytes | None] = [None] * len(errors)
        names = [*(field.name for field in KEPT), "num_frames", "language"]
        for i, row in enumerate(table.select(names).to_pylist()):
            if errors[i] is None:
                try:
                    emissions[i] = self._emission(row)
                except ItemError as failure:
                    errors[i] = error_value("read_log_probs", failure)
        table = table.drop_columns([*(field.name for field in KEPT), "error"])
        table = table.append_column(ENCODED[0], pa.array(emissions, ENCODED[0].type))
        return table.append_column("error", pa.array(errors, ERROR))

    def _emission(self, row: dict[str, object]) -> bytes:
        ids, log_probs, columns, frames, language = row.values()
        assert isinstance(ids, bytes)
        assert isinstance(log_probs, bytes)
        assert isinstance(columns, int)
        assert isinstance(frames, int)
        assert language is None or isinstance(language, str)
        blank = self._labels(language, columns).blank if frames else 0
        emission = restore_emission(ids, log_probs, num_frames=frames, num_columns=columns, blank=blank)
        return emission.astype(_DTYPE).tobytes()
