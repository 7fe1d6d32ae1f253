"""The CTC tokenizer: texts to ids, and the ids of a best path back to text with the frames of each word.

It spells; it makes no scores and knows no seconds. ``greedy`` builds on it for that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from w2v_ray.errors import CheckpointError, OutputError
from w2v_ray.hub import checkpoint_file, upload_saved
from w2v_ray.text.added import AddedToken, AddedTokens
from w2v_ray.text.batch import BatchEncoding, BatchRules, make_batch, make_options, pad_batch, plain
from w2v_ray.text.rows import read_rows
from w2v_ray.text.vocabulary import (
    SETTINGS,
    SPECIAL_TOKENS,
    VOCABULARY_FILE,
    read_settings,
    read_vocabulary,
    vocabulary_of,
    write_json,
    write_settings,
)
from w2v_ray.text.words import (
    Wav2Vec2CTCTokenizerOutput,
    clean_up_spaces,
    collapse,
    join_outputs,
    join_words,
    offsets,
)

__all__ = ["Wav2Vec2CTCTokenizer", "Wav2Vec2CTCTokenizerOutput"]

_NO_MAX_LENGTH = int(1e30)  # how transformers writes "no limit"


class Wav2Vec2CTCTokenizer:
    """Spells texts in the characters of a vocabulary, and reads CTC paths back.

    Args:
        vocab_file: A JSON object of token to id, or of language to such an object.
        bos_token: Begins a sentence; CTC has no use for it, but it has an id.
        eos_token: Ends a sentence; likewise.
        unk_token: Stands for characters outside the vocabulary.
        pad_token: Fills rows up, and is the CTC blank.
        word_delimiter_token: What a space is spelled as; null: as itself.
        replace_word_delimiter_char: What the delimiter is read back as.
        do_lower_case: Whether texts are raised to the vocabulary's capitals, and lowered when read back.
        target_lang: Which language of a nested vocabulary to use.
        sep_token: A special token like cls_token, mask_token and extra_special_tokens; names are not kept.
        added_tokens_decoder: Tokens that texts are cut at, by id.
        model_max_length: The longest row in tokens; null: no limit.
        padding_side: ``right`` or ``left``, as is truncation_side.
        clean_up_tokenization_spaces: Whether spaces before English punctuation go when read back.

    Raises:
        CheckpointError: The vocabulary is malformed, or ``target_lang`` does not fit it.
    """

    model_input_names = ("input_ids", "attention_mask")

    def __init__(
        self,
        vocab_file: str | PathLike[str],
        bos_token: str | None = "<s>",
        eos_token: str | None = "</s>",
        unk_token: str | None = "<unk>",
        pad_token: str | None = "<pad>",
        word_delimiter_token: str | None = "|",
        replace_word_delimiter_char: str = " ",
        do_lower_case: bool = False,
        target_lang: str | None = None,
        *,
        sep_token: str | None = None,
        cls_token: str | None = None,
        mask_token: str | None = None,
        extra_special_tokens: Sequence[str] | Mapping[str, str] = (),
        added_tokens_decoder: Mapping[int, AddedToken] | None = None,
        model_max_length: float | None = None,
        padding_side: str = "right",
        truncation_side: str = "right",
        clean_up_tokenization_spaces: bool = False,
    ) -> None:
        self.bos_token, self.eos_token, self.unk_token = bos_token, eos_token, unk_token
        self.sep_token, self.cls_token, self.mask_token = sep_token, cls_token, mask_token
        self.pad_token = pad_token
        self.word_delimiter_token = word_delimiter_token
        extra = extra_special_tokens
        self.extra_special_tokens = list(extra.values() if isinstance(extra, Mapping) else extra)
        self.replace_word_delimiter_char = replace_word_delimiter_char
        self.do_lower_case = do_lower_case
        self.model_max_length = _NO_MAX_LENGTH if model_max_length is None else model_max_length
        self.padding_side, self.truncation_side = padding_side, truncation_side
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces

        self.vocab = read_vocabulary(Path(vocab_file))
        self._added = AddedTokens(added_tokens_decoder or {})
        try:
            self._choose(target_lang)
        except ValueError as error:
            raise CheckpointError(f"{vocab_file}: {error}") from None
        absent = [token for token in self.all_special_tokens if token not in self._added.ids]
        self._register(AddedToken(token, special=True) for token in absent)
        self._register_long_tokens()

    @classmethod
    def from_pretrained(
        cls, model: str | PathLike[str], *, revision: str | None = None, **overrides: Any
    ) -> Wav2Vec2CTCTokenizer:
        """Loads a folder or hub id; ``overrides`` are constructor arguments that replace what its files say.

        Raises:
            CheckpointError: A file is missing or malformed, or is of another tokenizer class.
        """
        path = checkpoint_file(str(model), VOCABULARY_FILE, revision=revision)
        assert path is not None  # it is required
        return cls(path, **(read_settings(str(model), revision=revision) | overrides))

    def save_pretrained(
        self,
        save_directory: str | PathLike[str],
        *,
        processor_class: str | None = None,
        push_to_hub: bool = False,
        **hub: Any,
    ) -> tuple[str, ...]:
        """Writes the files that ``from_pretrained`` and transformers read; returns their paths.

        Args:
            processor_class: Named in them, for AutoProcessor.
            hub: With push_to_hub, as of ``hub.upload_saved``: ``repo_id``, ``commit_message``, ``token``, ...

        Raises:
            OutputError: ``save_directory`` is a file, or the hub does not take it.
        """
        folder = Path(save_directory)
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder} is a file; name a folder to save the tokenizer in")
        folder.mkdir(parents=True, exist_ok=True)
        names = (*SPECIAL_TOKENS, "word_delimiter_token", "extra_special_tokens", *SETTINGS)
        settings = {name: getattr(self, name) for name in names}
        if processor_class:
            settings["processor_class"] = processor_class
        written = write_settings(folder, settings, self.added_tokens_decoder, vocab_size=self.vocab_size)
        written += self.save_vocabulary(folder)
        upload_saved(written, push_to_hub, hub)
        return written

    def save_vocabulary(
        self, save_directory: str | PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Writes the vocabulary alone, every language of a nested one, and returns its path.

        Raises:
            OutputError: ``save_directory`` is not a folder.
        """
        folder = Path(save_directory)
        if not folder.is_dir():
            raise OutputError(f"{folder} is not a folder; name an existing one to save the vocabulary in")
        name = f"{filename_prefix}-{VOCABULARY_FILE}" if filename_prefix else VOCABULARY_FILE
        return (write_json(folder / name, self.vocab),)

    def set_target_lang(self, target_lang: str) -> None:
        """Changes to another language of a nested vocabulary.

        Raises:
            ValueError: The vocabulary is flat, or has no such language.
        """
        self._choose(target_lang)
        # An added token whose id is now a letter's would be spelled as that letter.
        self._added.forget(self.decoder)
        self._register_long_tokens()

    def _choose(self, language: str | None) -> None:
        self.encoder = vocabulary_of(self.vocab, language)
        self.decoder = {index: token for token, index in self.encoder.items()}
        self.target_lang = language

    @property
    def vocab_size(self) -> int:
        """Ids in the vocabulary, without added tokens."""
        return len(self.decoder)

    def __len__(self) -> int:
        return len(self.get_vocab())

    def get_vocab(self) -> dict[str, int]:
        """Token to id, added tokens included."""
        return self.encoder | self.added_tokens_encoder

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """Added token to id, by id."""
        return {token.content: index for index, token in self._added.by_id.items()}

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Id to added token, by id."""
        return self._added.by_id

    @property
    def all_special_tokens(self) -> list[str]:
        """What ``skip_special_tokens`` leaves out when it decodes, and the word delimiter."""
        named = [*(getattr(self, name) for name in SPECIAL_TOKENS), self.word_delimiter_token]
        return [*dict.fromkeys(token for token in named + self.extra_special_tokens if token is not None)]

    @property
    def all_special_ids(self) -> list[int | None]:
        """The ids of ``all_special_tokens``."""
        return [self._id_of(token) for token in self.all_special_tokens]

    def _special_id(self, token: str | None) -> int | None:
        return None if token is None else self._id_of(token)

    # Each an id, or null.
    bos_token_id = property(lambda self: self._special_id(self.bos_token))
    eos_token_id = property(lambda self: self._special_id(self.eos_token))
    unk_token_id = property(lambda self: self._special_id(self.unk_token))
    sep_token_id = property(lambda self: self._special_id(self.sep_token))
    pad_token_id = property(lambda self: self._special_id(self.pad_token))
    cls_token_id = property(lambda self: self._special_id(self.cls_token))
    mask_token_id = property(lambda self: self._special_id(self.mask_token))
    word_delimiter_token_id = property(lambda self: self._special_id(self.word_delimiter_token))

    def _id_of(self, token: str) -> int | None:
        unknown = None if self.unk_token is None else self.encoder.get(self.unk_token)
        return self._added.ids.get(token, self.encoder.get(token, unknown))

    def _token_of(self, index: int) -> str:
        if index in self.decoder:
            return self.decoder[index]
        return self._added.content_of(index) or self.unk_token or ""

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> int | list[int | None] | None:
        """The id of a token, or of each; that of ``unk_token``, or null, where it has none."""
        return self._id_of(tokens) if isinstance(tokens, str) else [self._id_of(token) for token in tokens]

    def convert_ids_to_tokens(
        self, ids: int | Iterable[int], skip_special_tokens: bool = False
    ) -> str | list[str]:
        """The token of an id, or of each; ids beyond the vocabulary are the unknown token."""
        if isinstance(ids, int):
            return self._token_of(ids)
        skipped = set(self.all_special_ids) if skip_special_tokens else ()
        return [self._token_of(index) for index in map(int, ids) if index not in skipped]

    def add_tokens(
        self, new_tokens: str | AddedToken | Sequence[str | AddedToken], special_tokens: bool = False
    ) -> int:
        """Makes tokens that texts are cut at, and returns how many of them got a new id."""
        listed = [new_tokens] if isinstance(new_tokens, str | AddedToken) else new_tokens
        made = [AddedToken(token) if isinstance(token, str) else token for token in listed]
        return self._register(replace(token, special=True) if special_tokens else token for token in made)

    def add_special_tokens(self, special_tokens: Mapping[str, str | Sequence[str]]) -> int:
        """Names special tokens by attribute (``extra_special_tokens`` takes a list), adding absent ones.

        Raises:
            ValueError: A name is none of a special token.
        """
        added: list[str] = []
        for name, value in special_tokens.items():
            if name in SPECIAL_TOKENS and isinstance(value, str):
                setattr(self, name, value)
                added.append(value)
            elif name == "extra_special_tokens" and not isinstance(value, str | Mapping):
                self.extra_special_tokens = list(value) or self.extra_special_tokens
                added += value
            else:
                allowed = f"{', '.join(SPECIAL_TOKENS)}, or a list for extra_special_tokens"
                raise ValueError(f"{name} is given {value!r}, expected a token for one of {allowed}")
        return self.add_tokens(added, special_tokens=True)

    def _register(self, tokens: Iterable[AddedToken]) -> int:
        kept = []
        for token in tokens:
            if self.do_lower_case and token.normalized and not token.special:
                token = replace(token, content=token.content.lower())
            if token.special and token.content not in ["", *self.all_special_tokens]:
                self.extra_special_tokens.append(token.content)
            if token.content:
                kept.append(token)
        return self._added.register(kept, self.get_vocab())

    def _register_long_tokens(self) -> None:
        # Vocabulary entries of several characters would otherwise be spelled in single ones.
        long = [token for token in self.encoder if len(token) > 1]
        self._register(AddedToken(token, lstrip=True, rstrip=True) for token in long)

    def tokenize(self, text: str) -> list[str]:
        """Cuts a text at added tokens and spells the rest: a token per character, the delimiter per space."""
        whole = self._added.ids.keys() | set(self.all_special_tokens)
        space = " " if self.word_delimiter_token is None else self.word_delimiter_token
        tokens: list[str] = []
        for piece in self._added.cut(text):
            if piece in whole:
                tokens.append(piece)
            else:
                spelled = piece.upper() if self.do_lower_case else piece
                tokens += [space if character == " " else character for character in spelled]
        return tokens

    def __call__(
        self,
        text: str | Sequence[Any] | None = None,
        text_pair: str | Sequence[Any] | None = None,
        *,
        text_target: str | Sequence[Any] | None = None,
        text_pair_target: str | Sequence[Any] | None = None,
        is_split_into_words: bool = False,
        **options: Any,
    ) -> BatchEncoding:
        """Turns a text, or a list of texts, into ids.

        Args:
            text: A text or a list of them; lists of words with ``is_split_into_words``; lists of ids.
            text_pair: The same, whose ids follow those of ``text``.
            text_target, text_pair_target: The same, whose ids come as ``labels`` beside those of ``text``.
            is_split_into_words: Whether texts are lists of words, spelled with nothing between them.
            options: Fields of BatchOptions: padding, truncation, max_length, return_tensors and others.

        Returns:
            ``input_ids``, ``attention_mask`` and what else was asked for: a row for each text of a list,
            and no batch axis for a text alone unless as arrays or tensors.

        Raises:
            TypeError: There is no such option.
            ValueError: A character is not in the vocabulary and neither is ``unk_token``; options contradict
                each other; or rows of different lengths were asked for as tensors.
        """
        chosen = make_options(options)

        def encode(texts: Any, pairs: Any) -> BatchEncoding:
            rows, one_row = read_rows(texts, pairs, self._spell, is_split_into_words)
            return make_batch(rows, chosen, self._rules(), one_row=one_row)

        if text is None and text_target is None:
            raise ValueError("neither text nor text_target is given; pass a text or a list of texts")
        if text is None:
            return encode(text_target, text_pair_target)
        encoded = encode(text, text_pair)
        if text_target is not None:
            encoded["labels"] = encode(text_target, text_pair_target)["input_ids"]
        return encoded

    def encode(self, text: str | Sequence[Any], text_pair: Any = None, **options: Any) -> Any:
        """The ids of a text; options and errors as of calling the tokenizer."""
        return self(text, text_pair, **options)["input_ids"]

    def pad(
        self,
        encoded: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        padding: bool | str = True,
        **options: Any,
    ) -> BatchEncoding:
        """Pads one encoding, a batch or a list of encodings; arrays and tensors come back as such.

        Args:
            encoded: ``input_ids`` and what goes with them.
            options: Like padding, fields of BatchOptions that concern it.

        Raises:
            TypeError: An option does not concern padding.
            ValueError: There are no ``input_ids``, or as of calling the tokenizer.
        """
        return pad_batch(encoded, make_options({"padding": padding} | options, to_pad=True), self._rules())

    def _rules(self) -> BatchRules:
        return BatchRules(self.pad_token_id, self.padding_side, self.truncation_side, self.model_max_length)

    def _spell(self, text: str) -> list[int]:
        ids = []
        for token in self.tokenize(text):
            index = self._id_of(token)
            if index is None:
                raise ValueError(
                    f"{token!r} is not in the vocabulary and neither is unk_token {self.unk_token!r}; "
                    "take it out of the text"
                )
            ids.append(index)
        return ids

    def decode(
        self,
        token_ids: ArrayLike,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        output_char_offsets: bool = False,
        output_word_offsets: bool = False,
        *,
        group_tokens: bool = True,
        spaces_between_special_tokens: bool = False,
    ) -> str | Wav2Vec2CTCTokenizerOutput:
        """Reads a path of ids, one a frame, as text.

        Args:
            token_ids: Ids, shape (frames,).
            skip_special_tokens: Whether special tokens but the delimiter are left out before equal
                neighbours are merged, as in transformers. The blank is one of them, so letters that
                only a blank parts are merged too: leave it false for a CTC path.
            clean_up_tokenization_spaces: Overrides the tokenizer's own setting.
            output_char_offsets: Whether to return the frames of characters.
            output_word_offsets: Whether to return the frames of words.
            group_tokens: Whether equal neighbours are merged, as CTC does.
            spaces_between_special_tokens: Whether all tokens are joined by spaces.
        """
        ids = plain(token_ids)
        tokens = [self._token_of(int(index)) for index in (ids if isinstance(ids, list) else [ids])]
        if skip_special_tokens:
            left_out = set(self.all_special_tokens) - {self.word_delimiter_token}
            tokens = [token for token in tokens if token not in left_out]
        spans = collapse(tokens, blank=self.pad_token, group=group_tokens)
        characters = [replace(span, text=self.read_back(span.text)) for span in spans]
        joiner = " " if spaces_between_special_tokens else ""
        text = self.finish_text(joiner.join(span.text for span in characters), clean_up_tokenization_spaces)
        if not (output_char_offsets or output_word_offsets):
            return text
        words = join_words(characters, self.replace_word_delimiter_char)
        empty = not tokens  # of which transformers says both
        return Wav2Vec2CTCTokenizerOutput(
            text,
            offsets("char", characters) if output_char_offsets or empty else None,
            offsets("word", words) if output_word_offsets or empty else None,
        )

    def batch_decode(self, sequences: Iterable[ArrayLike], *args: Any, **options: Any) -> Any:
        """Reads a path a row; arguments as of ``decode``. Offsets come in one output of lists."""
        outputs: list[Any] = [self.decode(row, *args, **options) for row in sequences]
        return outputs if not outputs or isinstance(outputs[0], str) else join_outputs(outputs)

    def read_back(self, token: str) -> str:
        """What a token adds to a text: itself, or the space that a delimiter stands for."""
        return self.replace_word_delimiter_char if token == self.word_delimiter_token else token

    def finish_text(self, text: str, clean_up: bool | None = None) -> str:
        """Strips joined characters, lowers them and removes spaces before punctuation, where set so."""
        text = text.strip()
        if self.do_lower_case:
            text = text.lower()
        if self.clean_up_tokenization_spaces if clean_up is None else clean_up:
            text = clean_up_spaces(text)
        return text
