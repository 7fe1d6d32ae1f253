"""Greedy CTC decoding: the best path of an emission as text and words, with frames and confidences.

The text is what the tokenizer makes of the best path; nothing is searched.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from w2v_ray.errors import CheckpointError, EncodeError
from w2v_ray.text.confidence import SpelledWord, Token, score_characters, score_words, text_confidence
from w2v_ray.text.tokenizer import Wav2Vec2CTCTokenizer
from w2v_ray.text.transcript import Transcript

__all__ = ["CTCLabels", "checked_emission", "decode_greedy"]


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
        self.blank = int(np.flatnonzero(self.is_blank)[0])
        self.is_space = np.array([text == tokenizer.replace_word_delimiter_char for text in self.texts])


def checked_emission(
    log_probs: NDArray[np.floating[Any]], labels: CTCLabels
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """An emission as float32, which numpy is fastest with, and the best column of each frame.

    Raises:
        EncodeError: The emission does not fit the labels, or holds a NaN.
    """
    if log_probs.ndim != 2 or log_probs.shape[1] != labels.size:
        raise EncodeError(f"the emission has shape {log_probs.shape}, expected (frames, {labels.size})")
    scores = log_probs.astype(np.float32)
    path = scores.argmax(axis=1)
    best = np.take_along_axis(scores, path[:, None], axis=1)[:, 0]
    if np.isnan(best).any():  # argmax stops at the first NaN of a frame
        raise EncodeError(f"the emission holds NaN in {np.isnan(best).sum()} of {len(best)} frames")
    return scores, path


def decode_greedy(
    log_probs: NDArray[np.floating[Any]], *, labels: CTCLabels, characters: bool = False
) -> Transcript:
    """Reads the best label of each frame, merges equal neighbours, and leaves out blanks.

    The text equals ``tokenizer.decode(log_probs.argmax(axis=1))``. Unknown and other special tokens that
    are not the blank are part of it, as they are there. Words lie between delimiters; without any, the
    text is one word. Confidences are those of ``score_words``, and for the text their geometric mean.

    Args:
        log_probs: Natural log-probabilities, shape (frames, columns).
        labels: What the columns stand for.
        characters: Whether to score characters too.

    Returns:
        The text, and words from the first frame of their first token to the end of the last frame of
        their last.

    Raises:
        EncodeError: The emission does not fit the labels, or holds a NaN.
    """
    scores, path = checked_emission(log_probs, labels)
    if not len(scores):
        return Transcript(text="", confidence=None, words=[], characters=[] if characters else None)
    merged = labels.merged[path]
    starts = np.flatnonzero(np.concatenate([[True], merged[1:] != merged[:-1]]))
    ends = np.append(starts[1:], len(merged))
    kept = ~labels.is_blank[merged[starts]]
    columns, starts, ends = path[starts][kept], starts[kept], ends[kept]
    texts = [labels.texts[column] for column in columns]

    is_space = labels.is_space[columns]
    edges = np.flatnonzero(np.diff(np.concatenate([[True], is_space, [True]])))
    change = str.lower if labels.tokenizer.do_lower_case else str
    tokens = [
        Token(change(text), column, start, end)
        for text, column, start, end in zip(
            texts, columns.tolist(), starts.tolist(), ends.tolist(), strict=True
        )
    ]
    spelled = []
    for first, end in edges.reshape(-1, 2).tolist():
        if word := "".join(texts[first:end]).strip():
            spelled.append(SpelledWord(change(word), tuple(tokens[first:end])))
    words = score_words(scores, spelled, blank=labels.blank)
    return Transcript(
        text=labels.tokenizer.finish_text("".join(texts)),
        confidence=text_confidence(words),
        words=words,
        characters=score_characters(scores, spelled) if characters else None,
    )
