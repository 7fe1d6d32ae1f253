"""Slow, obvious references, written from the definitions and used by no part of the package."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Span = tuple[int, int]
NO_SPAN: Span = (-1, -1)


@dataclass(frozen=True)
class Beam:
    """A prefix: whole words, the letters after them, the last frame's label, and where it all was."""

    words: tuple[str, ...] = ()
    part: str = ""
    last: str | None = None
    spans: tuple[Span, ...] = ()
    span: Span = NO_SPAN
    logp: float = 0.0
    score: float = 0.0


@dataclass(frozen=True)
class Fusion:
    """An n-gram model (``score(state, word)``, ``word in model``) with its weights."""

    model: Any
    unigrams: frozenset[str]
    alpha: float = 0.5
    beta: float = 1.5
    unk_score_offset: float = -10.0
    score_boundary: bool = True

    def word_score(self, words: tuple[str, ...], *, ends: bool = False) -> float:
        """The last of the words after the others, in natural logarithm and with its weights."""
        state = self.model.begin_state if self.score_boundary else self.model.null_state
        for word in words[:-1]:
            _, state = self.model.score(state, word)
        log10, state = self.model.score(state, words[-1])
        if words[-1] not in (self.unigrams or self.model):
            log10 += self.unk_score_offset
        if ends and self.score_boundary:
            log10 += self.model.score(state, "</s>")[0]
        return self.alpha * log10 * math.log(10) + self.beta

    def part_score(self, part: str) -> float:
        """An unfinished word counts as unknown unless some known word begins so, more so if it is long."""
        if not part or any(word.startswith(part) for word in self.unigrams):
            return 0.0
        return self.unk_score_offset * max(1.0, len(part) / 6)


def search_beams(
    logits: NDArray[Any],
    labels: list[str],
    *,
    fusion: Fusion | None = None,
    beam_width: int = 100,
    beam_prune_logp: float = -10.0,
    token_min_logp: float = -5.0,
    prune_history: bool = False,
    hotwords: tuple[str, ...] = (),
    hotword_weight: float = 10.0,
) -> list[tuple[str, list[tuple[str, Span]], float, float]]:
    """CTC prefix beam search over characters: ``""`` is the blank, ``" "`` ends a word.

    Returns text, words with frames, summed log-probability and score of each beam, the best first.
    """
    hot = [word for phrase in hotwords for word in phrase.split()]

    def prefix_score(words: tuple[str, ...], part: str) -> float:
        score = hotword_weight * sum(word in hot for word in words)
        if fusion:
            score += sum(fusion.word_score(words[: n + 1]) for n in range(len(words)))
        longer = [len(word) for word in hot if word.startswith(part)]
        if part and longer:
            score += hotword_weight * len(part) / min(longer)
        elif part and fusion:
            score += fusion.part_score(part)
        return score

    def ranked(beams: list[Beam]) -> list[Beam]:
        best = max(beam.score for beam in beams)
        beams = [beam for beam in beams if beam.score >= best + beam_prune_logp]
        return sorted(beams, key=lambda beam: -beam.score)[:beam_width]

    beams = [Beam()]
    for frame, row in enumerate(logits.astype(np.float64)):
        logp = np.clip(row - np.logaddexp.reduce(row), math.log(1e-15), 0)
        merged: dict[tuple[tuple[str, ...], str, str | None], Beam] = {}
        for column in sorted({*np.flatnonzero(logp >= token_min_logp), int(logp.argmax())}):
            for beam in beams:
                new = follow(beam, labels[column], frame)
                new = replace(new, logp=beam.logp + float(logp[column]))
                key = (new.words, new.part, new.last)
                if key in merged:  # the frames of the later one, the probability of both
                    new = replace(new, logp=float(np.logaddexp(merged[key].logp, new.logp)))
                merged[key] = new
        beams = ranked([replace(b, score=b.logp + prefix_score(b.words, b.part)) for b in merged.values()])
        if prune_history:
            length = max(1, (fusion.model.order if fusion else 1) - 1)
            first: dict[Any, Beam] = {}
            for beam in beams:
                first.setdefault((beam.words[-length:], beam.part, beam.last), beam)
            beams = list(first.values())
    ended: dict[tuple[str, ...], Beam] = {}
    for beam in beams:
        words = (*beam.words, beam.part) if beam.part else beam.words
        spans = (*beam.spans, beam.span) if beam.part else beam.spans
        before = ended.get(words)
        total = float(np.logaddexp(before.logp, beam.logp)) if before else beam.logp
        # What the last word is, in the eyes of the model: after a space it is "", which no model knows.
        score = hotword_weight * sum(word in hot for word in words)
        if fusion:
            score += sum(fusion.word_score(beam.words[: n + 1]) for n in range(len(beam.words)))
            score += fusion.word_score((*beam.words, beam.part), ends=True)
        ended[words] = replace(beam, words=words, spans=spans, logp=total, score=total + score)
    return [
        (" ".join(b.words), list(zip(b.words, b.spans, strict=True)), b.logp, b.score)
        for b in ranked(list(ended.values()))
    ]


def follow(beam: Beam, label: str, frame: int) -> Beam:
    """The prefix after one more frame with this label."""
    if label == "":
        return replace(beam, last="")
    if label == beam.last:
        return replace(beam, span=(beam.span[0], frame + 1))
    if label == " ":
        if not beam.part:
            return replace(beam, last=" ", span=NO_SPAN)
        words, spans = (*beam.words, beam.part), (*beam.spans, beam.span)
        return replace(beam, words=words, part="", last=" ", spans=spans, span=NO_SPAN)
    start = frame if beam.span[0] < 0 else beam.span[0]
    return replace(beam, part=beam.part + label, last=label, span=(start, frame + 1))
