"""The text stage: the log-probabilities of each segment in, its text, words and confidence out.

It decodes greedily and loads only a tokenizer: no torch, so that its workers are small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from w2v_ray.errors import ConfigError, EncodeError, ItemError
from w2v_ray.schema import EMISSION_DTYPE, ERROR, TRANSCRIPT, error_value
from w2v_ray.text.greedy import CTCLabels, GreedyResult, decode_greedy
from w2v_ray.text.tokenizer import Wav2Vec2CTCTokenizer

__all__ = ["DecodeText", "DecodeTextConfig"]

_DTYPE = np.dtype(EMISSION_DTYPE).newbyteorder("<")


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeTextConfig:
    """Whose tokenizer reads the emissions, and how far apart their frames are."""

    model: str
    """A folder or hub id with a tokenizer."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    seconds_per_frame: float
    """From one frame of the emission to the next, in seconds of audio."""

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("model is '', expected a folder or a hub id; name one")
        if not (math.isfinite(self.seconds_per_frame) and self.seconds_per_frame > 0):
            raise ConfigError(
                f"seconds_per_frame is {self.seconds_per_frame}, expected above 0; it is 0.02 for wav2vec 2.0"
            )


class DecodeText:
    """Adds ``text``, ``confidence`` and ``words`` to a table of encoded segments and drops ``log_probs``.

    The times of words are seconds in the recording. Rows with an error stay, without a text.

    Args:
        config: Whose tokenizer, and the frame rate.

    Raises:
        CheckpointError: The tokenizer cannot be loaded, or does not fit the model's outputs; the latter
            shows at the first segment.
    """

    def __init__(self, config: DecodeTextConfig) -> None:
        self._tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(config.model, revision=config.revision)
        self._seconds_per_frame = config.seconds_per_frame
        self._labels: dict[int, CTCLabels] = {}  # by columns of the emission: one entry for one model

    def __call__(self, table: pa.Table) -> pa.Table:
        errors = table.column("error").to_pylist()
        results: list[dict[str, Any]] = []
        for i, error in enumerate(errors):
            result: dict[str, Any] = {"text": None, "confidence": None, "words": None}
            if error is None:
                try:
                    start_s, end_s = (table.column(name)[i].as_py() for name in ("start_s", "end_s"))
                    decoded = self._decode(
                        table.column("log_probs")[i].as_buffer(), table.column("num_frames")[i].as_py()
                    )
                    result = _in_recording(decoded, start_s, end_s)
                except ItemError as failure:
                    errors[i] = error_value("decode_text", failure)
            results.append(result)

        table = table.drop_columns(["log_probs"])
        table = table.set_column(
            table.column_names.index("error"), pa.field("error", ERROR), pa.array(errors, ERROR)
        )
        for name in ("text", "confidence", "words"):
            field = TRANSCRIPT.field(name)
            table = table.append_column(field, pa.array([result[name] for result in results], field.type))
        return table

    def _decode(self, emission: pa.Buffer | None, num_frames: int | None) -> GreedyResult:
        if emission is None or num_frames is None:
            raise EncodeError("the segment has neither an emission nor an error; encode it again")
        if num_frames == 0:
            return GreedyResult("", None, [])
        size, rest = divmod(emission.size, num_frames * _DTYPE.itemsize)
        if num_frames < 0 or rest or not size:
            raise EncodeError(
                f"the emission has {emission.size} bytes, expected a multiple of {_DTYPE.itemsize} for each "
                f"of its {num_frames} frames"
            )
        if size not in self._labels:
            self._labels[size] = CTCLabels(self._tokenizer, size)
        return decode_greedy(
            np.frombuffer(emission, _DTYPE).reshape(num_frames, size),
            labels=self._labels[size],
            seconds_per_frame=self._seconds_per_frame,
        )


def _in_recording(result: GreedyResult, start_s: float, end_s: float) -> dict[str, Any]:
    words = [
        {
            "word": word.word,
            # The last frame reaches beyond the last sample, by less than a frame.
            "start_s": min(start_s + word.start_s, end_s),
            "end_s": min(start_s + word.end_s, end_s),
            "confidence": word.confidence,
        }
        for word in result.words
    ]
    return {"text": result.text, "confidence": result.confidence, "words": words}
