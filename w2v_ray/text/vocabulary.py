"""The files of a CTC tokenizer, read, checked and written: its vocabulary, settings and added tokens.

It refuses a vocabulary that is not an object of token to id, and settings of another tokenizer class.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from w2v_ray.errors import CheckpointError
from w2v_ray.hub import checkpoint_file, read_json_file
from w2v_ray.text.added import AddedToken

__all__ = [
    "SETTINGS",
    "SPECIAL_TOKENS",
    "VOCABULARY_FILE",
    "Vocabulary",
    "read_settings",
    "read_vocabulary",
    "vocabulary_of",
    "write_json",
    "write_settings",
]

VOCABULARY_FILE = "vocab.json"
_SETTINGS_FILE = "tokenizer_config.json"
_ADDED_TOKENS_FILE = "added_tokens.json"
_SPECIAL_TOKENS_MAP_FILE = "special_tokens_map.json"  # written by transformers before 5

# In the order in which absent ones get their ids; the word delimiter and extra tokens come after them.
SPECIAL_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)

_TOKENIZER_CLASSES = ("Wav2Vec2CTCTokenizer", "Wav2Vec2Tokenizer")
# The settings that are no tokens, and what a JSON value of each may be.
SETTINGS: dict[str, tuple[type, ...]] = {
    "replace_word_delimiter_char": (str,),
    "do_lower_case": (bool,),
    "target_lang": (str, type(None)),
    "model_max_length": (int, float, type(None)),
    "padding_side": (str,),
    "truncation_side": (str,),
    "clean_up_tokenization_spaces": (bool,),
}

# Where files say special tokens that have no attribute here; transformers 5 has names for some of them.
_EXTRA_TOKENS: dict[str, tuple[type, ...]] = {
    "extra_special_tokens": (list, dict),
    "additional_special_tokens": (list,),
    "model_specific_special_tokens": (dict,),
}

_NULLABLE = ("bos_token", "eos_token", "unk_token", "pad_token", "word_delimiter_token", "target_lang")

Vocabulary = dict[str, int]


def read_vocabulary(path: Path) -> Vocabulary | dict[str, Vocabulary]:
    """Reads a flat vocabulary, or one vocabulary per language.

    Raises:
        CheckpointError: The file is absent, not JSON, or not an object of token to id.
    """
    raw = read_json_file(path)
    if not raw or {} in raw.values():
        raise CheckpointError(f"{path} holds no tokens, expected an object of token to id; fetch it again")
    if not any(isinstance(value, dict) for value in raw.values()):
        _check_ids(raw, str(path))
        return cast(Vocabulary, raw)
    for language, value in raw.items():
        if not isinstance(value, dict):
            raise CheckpointError(
                f"{path} gives {language!r} a {type(value).__name__} beside vocabularies; "
                "expected an object of token to id for each language"
            )
        _check_ids(value, f"{path}, language {language!r},")
    return cast(dict[str, Vocabulary], raw)


def vocabulary_of(vocabulary: Vocabulary | dict[str, Vocabulary], language: str | None) -> Vocabulary:
    """The vocabulary of a language, or a flat one, which has none.

    Raises:
        ValueError: The language does not fit.
    """
    languages = {name: value for name, value in vocabulary.items() if isinstance(value, dict)}
    if languages and language not in languages:
        some = ", ".join(sorted(languages)[:12])
        raise ValueError(
            f"target_lang is {language!r}, expected one of the languages of the vocabulary: {some}"
        )
    if not languages and language is not None:
        raise ValueError(f"target_lang is {language!r}, expected none, as the vocabulary is one flat one")
    if language is not None:
        return languages[language]
    return {token: index for token, index in vocabulary.items() if isinstance(index, int)}


def read_settings(model: str | Path, *, revision: str | None = None) -> dict[str, Any]:
    """What a checkpoint's files say to the tokenizer: the keyword arguments of its constructor.

    Files of transformers 5 say everything in ``tokenizer_config.json``; older ones are completed from
    ``special_tokens_map.json`` and ``added_tokens.json``. Settings that mean nothing to a CTC tokenizer
    are left out.

    Raises:
        CheckpointError: A file is malformed, or is of another tokenizer class.
    """
    path = checkpoint_file(model, _SETTINGS_FILE, revision=revision, required=False)
    raw = read_json_file(path) if path else {}
    found = raw.get("tokenizer_class")
    if found is not None and found not in _TOKENIZER_CLASSES:
        raise CheckpointError(
            f"{path} says tokenizer_class {found!r}, expected {_TOKENIZER_CLASSES[0]!r}; "
            "name a checkpoint with a character CTC tokenizer"
        )
    settings = _known(raw, path)
    if "added_tokens_decoder" in raw:
        settings["added_tokens_decoder"] = _added_tokens(raw["added_tokens_decoder"], path)
        return settings

    path = checkpoint_file(model, _SPECIAL_TOKENS_MAP_FILE, revision=revision, required=False)
    if path:
        named = _known(read_json_file(path), path)
        extra = settings.get("extra_special_tokens", []) + named.get("extra_special_tokens", [])
        settings |= named | {"extra_special_tokens": [*dict.fromkeys(extra)]}
    path = checkpoint_file(model, _ADDED_TOKENS_FILE, revision=revision, required=False)
    if path:
        added = read_json_file(path)
        _check_ids(added, str(path))
        special = {settings.get(name) for name in SPECIAL_TOKENS} | set(
            settings.get("extra_special_tokens", [])
        )
        settings["added_tokens_decoder"] = {
            index: AddedToken(token, normalized=token not in special, special=token in special)
            for token, index in added.items()
        }
    return settings


def write_settings(
    folder: Path, settings: Mapping[str, object], added: Mapping[int, AddedToken], *, vocab_size: int
) -> tuple[str, ...]:
    """Writes what ``read_settings`` reads, in the form of transformers 5; returns the paths."""
    # A null stays where the constructor's default is a token: it would come back otherwise.
    kept = {name: value for name, value in settings.items() if value is not None or name in _NULLABLE}
    kept["tokenizer_class"] = _TOKENIZER_CLASSES[0]
    kept["added_tokens_decoder"] = {str(index): asdict(token) for index, token in added.items()}
    written = [write_json(folder / _SETTINGS_FILE, kept)]
    beyond = {token.content: index for index, token in added.items() if index >= vocab_size}
    if beyond:  # transformers writes, and reads, it besides
        written.append(write_json(folder / _ADDED_TOKENS_FILE, beyond))
    return tuple(written)


def write_json(path: Path, value: Mapping[str, object]) -> str:
    """Writes an object as readable JSON, by key, and returns the path as text."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
    return str(path)


def _check_ids(vocabulary: Mapping[str, object], where: str) -> None:
    for token, index in vocabulary.items():
        if isinstance(index, bool) or not isinstance(index, int) or index < 0:
            raise CheckpointError(
                f"{where} gives token {token!r} the id {index!r}, expected a whole number from 0; "
                "fetch it again"
            )


def _known(raw: Mapping[str, Any], path: Path | None) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name in (*SPECIAL_TOKENS, "word_delimiter_token"):
        if name in raw:
            settings[name] = None if raw[name] is None else _content(raw[name], name, path)
    extra = _extra_tokens(raw, path)
    if extra or "extra_special_tokens" in raw:
        settings["extra_special_tokens"] = extra
    for name, types in SETTINGS.items():
        if name not in raw:
            continue
        if not isinstance(raw[name], types):
            expected = " or ".join(kind.__name__ for kind in types).replace("NoneType", "null")
            raise CheckpointError(f"{path} says {name} {raw[name]!r}, expected {expected}; correct the file")
        settings[name] = raw[name]
    return settings


def _extra_tokens(raw: Mapping[str, Any], path: Path | None) -> list[str]:
    """Further special tokens: first those with names, as transformers 5 orders them."""
    for name, types in _EXTRA_TOKENS.items():
        if not isinstance(raw.get(name), (*types, type(None))):
            expected = " or ".join(kind.__name__ for kind in types)
            raise CheckpointError(f"{path} says {name} {raw[name]!r}, expected {expected}; correct the file")
    extra, specific = raw.get("extra_special_tokens"), raw.get("model_specific_special_tokens")
    named = extra if isinstance(extra, dict) else {}
    listed = extra if isinstance(extra, list) else raw.get("additional_special_tokens")
    beside = {
        name: token for name, token in raw.items() if name.endswith("_token") and isinstance(token, str)
    }
    tokens = [
        _content(token, name, path)
        for name, token in (named | beside | (specific or {})).items()
        if name not in (*SPECIAL_TOKENS, "word_delimiter_token")
    ]
    tokens += [_content(token, "extra_special_tokens", path) for token in listed or []]
    return [*dict.fromkeys(tokens)]


def _content(token: object, name: str, path: Path | None) -> str:
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str):
        raise CheckpointError(f"{path} says {name} {token!r}, expected text; correct the file")
    return content


def _added_tokens(raw: object, path: Path | None) -> dict[int, AddedToken]:
    tokens = {}
    for index, token in raw.items() if isinstance(raw, dict) else [("", raw)]:
        if not (isinstance(token, dict) and isinstance(token.get("content"), str) and index.isdecimal()):
            raise CheckpointError(
                f"{path} says added_tokens_decoder {index!r}: {token!r}, expected an id and an object with "
                "content; correct the file"
            )
        special = bool(token.get("special", False))
        tokens[int(index)] = AddedToken(
            token["content"],
            single_word=bool(token.get("single_word", False)),
            lstrip=bool(token.get("lstrip", False)),
            rstrip=bool(token.get("rstrip", False)),
            normalized=bool(token.get("normalized", not special)),
            special=special,
        )
    return tokens
