"""What the columns of an emission stand for in each language of a checkpoint."""

from __future__ import annotations

from copy import deepcopy

from w2v_ray.errors import CheckpointError, LanguageError
from w2v_ray.text.greedy import CTCLabels
from w2v_ray.text.tokenizer import Wav2Vec2CTCTokenizer

__all__ = ["LanguageLabels", "Tokenizers", "check_head"]


class Tokenizers:
    """The tokenizer of a checkpoint in each of its languages, made as it is first asked for.

    Args:
        tokenizer: That of the checkpoint, of whatever language.

    Attributes:
        names: The languages of its vocabulary, sorted; None: it has one vocabulary for all.
    """

    def __init__(self, tokenizer: Wav2Vec2CTCTokenizer) -> None:
        self._tokenizers: dict[str | None, Wav2Vec2CTCTokenizer] = {None: tokenizer}
        nested = [name for name, value in tokenizer.vocab.items() if isinstance(value, dict)]
        self.names = tuple(sorted(nested)) if nested else None

    def __call__(self, language: str | None) -> Wav2Vec2CTCTokenizer:
        """The tokenizer of a language; None: the one of the checkpoint's settings.

        Raises:
            LanguageError: The vocabulary has no such language.
        """
        own = self._tokenizers[None]
        if self.names is None or language is None or language == own.target_lang:
            return own
        if language not in self.names:
            raise LanguageError(
                f"language is {language!r}, expected one of the languages of the vocabulary: "
                f"{', '.join(self.names[:12])}; correct the language, or leave the recording out"
            )
        if language not in self._tokenizers:
            made = deepcopy(own, {id(own.vocab): own.vocab})  # of all languages, and never changed
            made.set_target_lang(language)
            self._tokenizers[language] = made
        return self._tokenizers[language]


class LanguageLabels:
    """The labels of the columns of emissions, by language and number of columns, each worked out once.

    Args:
        tokenizer: That of the checkpoint, of whatever language.
    """

    def __init__(self, tokenizer: Wav2Vec2CTCTokenizer) -> None:
        self._tokenizers = Tokenizers(tokenizer)
        self._labels: dict[tuple[str | None, int], CTCLabels] = {}

    def __call__(self, language: str | None, size: int) -> CTCLabels:
        """The labels of an emission with ``size`` columns.

        Raises:
            LanguageError: The vocabulary has no such language.
            CheckpointError: The vocabulary does not fit the columns.
        """
        if (language, size) not in self._labels:
            self._labels[language, size] = CTCLabels(self._tokenizers(language), size)
        return self._labels[language, size]


def check_head(tokenizer: Wav2Vec2CTCTokenizer, rows: int, source: str, language: str) -> None:
    """Sees that the head of a language's adapter has a row for each token, and no more.

    Args:
        tokenizer: Of that language.
        rows: Of the head.
        source: The adapter's file, for the message.
        language: For the message.

    Raises:
        CheckpointError: It has not; the message names both sizes.
    """
    size = max(tokenizer.decoder) + 1
    # Heads of special tokens that the vocabulary lacks have rows as well, beyond the vocabulary's.
    ids = tokenizer.convert_tokens_to_ids(tokenizer.all_special_tokens)
    assert isinstance(ids, list)
    most = max(size, *(index + 1 for index in ids if index is not None))
    if not size <= rows <= most:
        raise CheckpointError(
            f"the adapter of language {language!r} has {rows} rows in lm_head ({source}) and its vocabulary "
            f"{size} tokens; use the adapter and the vocab.json of one checkpoint"
        )
