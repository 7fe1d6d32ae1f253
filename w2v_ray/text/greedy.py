"""Greedy CTC decoding: the best path of an emission as text, words with times, and confidences.

The text is what the tokenizer makes of the best path; nothing is searched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from w2v_ray.errors import CheckpointError, EncodeError
from w2v_ray.text.tokenizer import Wav2Vec2CTCTokenizer

__all__ = ["CTCLabels", "GreedyResult", "Word", "decode_greedy"]


@dataclass(frozen=True, slots=True)
class Word:
    """A recognised word, with times in seconds from the start of the emission."""

    word: str
    start_s: float
    end_s: float
    confidence: float


@dataclass(frozen=True, slots=True)
class GreedyResult:
    """What was recognised."""

    text: str
    confidence: float | None
    """In [0, 1]; null where there are no words."""
    words: list[Word]


class CTCLabels:
    """What each column of an emission stands for, worked out once for many emissions.

    Args:
        tokenizer: Names the ids.
        size: Columns of the emissions. Columns beyond the tokenizer's ids are its unknown token.

    Raises:
        CheckpointError: The vocabulary has ids for which there are no columns, or the blank has none.
    """

    def __init__(self, tokenizer: Wav2Vec2CTCTokenizer, size: int) -> None:
        # Added tokens often lie beyond the model's outputs: transformers adds <s> and </s> wherever a
        # vocabulary lacks them. Letters must not.
        last = max(tokenizer.decoder)
        if last >= size:
            raise CheckpointError(
                f"the model has {size} outputs and the tokenizer's vocabulary has ids up to {last} "
                f"({tokenizer.decoder[last]!r}); use the vocab.json that belongs to the model"
            )
        tokens = [tokenizer.convert_ids_to_tokens(column) for column in range(size)]
        if tokenizer.pad_token not in tokens:
            raise CheckpointError(
                f"the tokenizer's pad_token {tokenizer.pad_token!r}, the CTC blank, is none of the model's "
                f"{size} outputs; use the tokenizer_config.json that belongs to the model"
            )
        first: dict[Any, int] = {}
        self.size = size
        self.tokenizer = tokenizer
        self.texts = [tokenizer.read_back(str(token)) for token in tokens]
        # Columns of one token are one label: they merge as equal neighbours do.
        self.merged = np.array([first.setdefault(token, i) for i, token in enumerate(tokens)], dtype=np.intp)
        self.is_blank = np.array([token == tokenizer.pad_token for token in tokens])
        self.is_space = np.array([text == tokenizer.replace_word_delimiter_char for text in self.texts])


def decode_greedy(
    log_probs: NDArray[np.floating[Any]], *, labels: CTCLabels, seconds_per_frame: float
) -> GreedyResult:
    """Reads the best label of each frame, merges equal neighbours, and leaves out blanks.

    The text equals ``tokenizer.decode(log_probs.argmax(axis=1))``. Unknown and other special tokens that
    are not the blank are part of it, as they are there. Words lie between delimiters; without any, the
    text is one word.

    The confidence of a token is the highest probability in its run of frames, that of a word the
    geometric mean over its tokens, and that of the text the geometric mean over its words.

    Args:
        log_probs: Natural log-probabilities, shape (frames, columns).
        labels: What the columns stand for.
        seconds_per_frame: From one frame to the next.

    Returns:
        The text, and words from the first frame of their first token to the end of the last frame of
        their last.

    Raises:
        EncodeError: The emission does not fit the labels, or holds a NaN.
    """
    if log_probs.ndim != 2 or log_probs.shape[1] != labels.size:
        raise EncodeError(f"the emission has shape {log_probs.shape}, expected (frames, {labels.size})")
    if not len(log_probs):
        return GreedyResult("", None, [])
    scores = log_probs.astype(np.float32)  # numpy has no fast float16 argmax
    path = scores.argmax(axis=1)
    best = np.take_along_axis(scores, path[:, None], axis=1)[:, 0]
    if np.isnan(best).any():  # argmax stops at the first NaN of a frame
        raise EncodeError(f"the emission holds NaN in {np.isnan(best).sum()} of {len(best)} frames")

    merged = labels.merged[path]
    starts = np.flatnonzero(np.concatenate([[True], merged[1:] != merged[:-1]]))
    ends = np.append(starts[1:], len(merged))
    peaks = np.minimum(np.maximum.reduceat(best, starts), 0).astype(np.float64)  # rounding may go above 0
    kept = ~labels.is_blank[merged[starts]]
    run_labels, starts, ends, peaks = merged[starts][kept], starts[kept], ends[kept], peaks[kept]
    texts = [labels.texts[label] for label in run_labels]

    is_space = labels.is_space[run_labels]
    edges = np.flatnonzero(np.diff(np.concatenate([[True], is_space, [True]])))
    words, scores_of_words = [], []
    for first, end in edges.reshape(-1, 2).tolist():
        word = "".join(texts[first:end]).strip()
        if not word:
            continue
        score = float(peaks[first:end].mean())
        scores_of_words.append(score)
        words.append(
            Word(
                word.lower() if labels.tokenizer.do_lower_case else word,
                float(starts[first] * seconds_per_frame),
                float(ends[end - 1] * seconds_per_frame),
                math.exp(score),
            )
        )
    text = labels.tokenizer.finish_text("".join(texts))
    return GreedyResult(text, math.exp(sum(scores_of_words) / len(words)) if words else None, words)
