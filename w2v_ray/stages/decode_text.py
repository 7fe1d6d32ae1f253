"""The text stage: the log-probabilities of each segment in, its text, words and confidences out.

It decodes greedily, or by a beam search with or without a language model, and loads no torch, so that its
workers are small.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from w2v_ray.decoder_config import DecoderConfig
from w2v_ray.errors import ConfigError, ItemError
from w2v_ray.schema import DECODED_TEXT, ERROR, TRANSCRIPT, error_value
from w2v_ray.stages.emissions import Emission, drop_emissions, emission_of
from w2v_ray.stages.take_language import languages_of, with_language
from w2v_ray.text.greedy import CTCLabels, checked_emission, decode_greedy
from w2v_ray.text.languages import LanguageLabels
from w2v_ray.text.lm_source import find_language_model, load_language_model
from w2v_ray.text.search import BeamSearch, SearchOptions
from w2v_ray.text.tokenizer import Wav2Vec2CTCTokenizer
from w2v_ray.text.transcript import Character, Transcript, Word

__all__ = ["DecodeText", "DecodeTextConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeTextConfig:
    """What the columns of the emissions stand for, how far apart their frames are, and how to decode them."""

    tokenizer: Wav2Vec2CTCTokenizer
    """Names the columns, in each language of its vocabulary."""
    seconds_per_frame: float
    """From one frame of the emission to the next, in seconds of audio."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """Greedy or a search, and its settings."""
    model: str = ""
    """The folder or hub id whose own language model is used where ``decoder.lm`` is ``checkpoint``."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    num_threads: int = 1
    """Segments that are searched at once."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.seconds_per_frame) and self.seconds_per_frame > 0):
            raise ConfigError(
                f"seconds_per_frame is {self.seconds_per_frame}, expected above 0; it is 0.02 for wav2vec 2.0"
            )
        if self.num_threads < 1:
            raise ConfigError(f"num_threads is {self.num_threads}, expected at least 1; try 1")


class DecodeText:
    """Adds the columns of text to a table of encoded segments, and ``language`` if need be, and drops
    ``log_probs``.

    Where a segment has ``top_tokens``, ``log_probs`` is of these alone. The times of words are seconds in the
    recording, never beyond the segment. Rows with an error stay, without a text.

    Args:
        config: Whose tokenizer, the frame rate, and the settings of the decoder.

    Raises:
        CheckpointError: The tokenizer does not fit the model's outputs, which shows at the first segment.
        W2vRayError: The language model cannot be read.
    """

    def __init__(self, config: DecodeTextConfig) -> None:
        self._config = config
        self._labels = LanguageLabels(config.tokenizer)
        # By language and columns of the emission: one entry for one model without languages.
        self._decoders: dict[tuple[str | None, int], tuple[CTCLabels, BeamSearch | None]] = {}
        self._language_model = None
        wanted = config.decoder
        if wanted.lm is not None:
            self._language_model = load_language_model(
                find_language_model(wanted.lm, model=config.model, revision=config.revision),
                unigrams=wanted.unigrams,
                alpha=wanted.alpha,
                beta=wanted.beta,
            )

    def __call__(self, table: pa.Table) -> pa.Table:
        errors = table.column("error").to_pylist()
        emissions: dict[int, Emission] = {}
        for i, error in enumerate(errors):
            if error is None:
                try:
                    emissions[i] = emission_of(table, i)
                except ItemError as failure:
                    errors[i] = error_value("decode_text", failure)
        transcripts = self._decode(emissions, languages_of(table), errors)
        times = [table.column(name).to_pylist() for name in ("start_s", "end_s")]
        rows = [
            self._row(transcripts[i], start_s, end_s) if i in transcripts else dict.fromkeys(DECODED_TEXT)
            for i, (start_s, end_s) in enumerate(zip(*times, strict=True))
        ]
        table = with_language(drop_emissions(table))
        table = table.set_column(
            table.column_names.index("error"), pa.field("error", ERROR), pa.array(errors, ERROR)
        )
        for name in DECODED_TEXT:
            column = TRANSCRIPT.field(name)
            table = table.append_column(column, pa.array([row[name] for row in rows], column.type))
        return table

    def _decode(
        self, emissions: dict[int, Emission], languages: Sequence[str | None], errors: list[Any]
    ) -> dict[int, Transcript]:
        """The transcript of each emission; of one that cannot be decoded, the error in its place."""
        characters = self._config.decoder.characters
        empty = Transcript(text="", confidence=None, words=[], characters=[] if characters else None)
        transcripts = {i: empty for i, emission in emissions.items() if not len(emission)}
        groups: defaultdict[tuple[str | None, int], list[int]] = defaultdict(list)
        for i, emission in emissions.items():
            if len(emission):
                groups[languages[i], emission.shape[1]].append(i)
        for (language, size), group in groups.items():
            labels, search = self._decoder(language, size)
            checked = {}
            for i in group:
                try:
                    checked[i] = checked_emission(emissions[i], labels)[0]
                except ItemError as failure:
                    errors[i] = error_value("decode_text", failure)
            if search is None:
                found = [decode_greedy(e, labels=labels, characters=characters) for e in checked.values()]
            else:
                found = search.decode(
                    list(checked.values()), characters=characters, num_threads=self._config.num_threads
                )
            transcripts |= zip(checked, found, strict=True)
        return transcripts

    def _decoder(self, language: str | None, size: int) -> tuple[CTCLabels, BeamSearch | None]:
        if (language, size) not in self._decoders:
            labels = self._labels(language, size)
            search = None
            if self._config.decoder.is_search:
                options = _options(self._config.decoder)
                search = BeamSearch(labels, language_model=self._language_model, options=options)
            self._decoders[language, size] = labels, search
        return self._decoders[language, size]

    def _row(self, transcript: Transcript, start_s: float, end_s: float) -> dict[str, Any]:
        def placed(name: str, spans: Sequence[Word] | Sequence[Character]) -> list[dict[str, Any]]:
            return [
                {
                    name: getattr(span, name),
                    # The last frame reaches beyond the last sample, by less than a frame.
                    "start_s": min(start_s + span.start_frame * self._config.seconds_per_frame, end_s),
                    "end_s": min(start_s + span.end_frame * self._config.seconds_per_frame, end_s),
                    "confidence": span.confidence,
                    "start_frame": span.start_frame,
                    "end_frame": span.end_frame,
                }
                for span in spans
            ]

        row: dict[str, Any] = {name: getattr(transcript, name) for name in DECODED_TEXT}
        row["words"] = placed("word", transcript.words)
        if transcript.characters is not None:
            row["characters"] = placed("char", transcript.characters)
        return row


def _options(decoder: DecoderConfig) -> SearchOptions:
    names = ("beam_width", "beam_prune_logp", "token_min_logp", "hotword_weight")
    given = {name: value for name in names if (value := getattr(decoder, name)) is not None}
    return SearchOptions(hotwords=decoder.hotwords, **given)
