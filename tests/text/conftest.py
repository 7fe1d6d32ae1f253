"""Tokenizers of every kind, the oracle's beside ours, and what is compared of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from w2v_ray.text import Wav2Vec2CTCTokenizer

ENGLISH = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAOINSHRDLU'"])}
ODD = {"<pad>": 0, "|": 1, "a": 2, "<unk>": 3, "sch": 4, " ": 5, "A": 9, "\u00e4": 7}  # gaps, a space, no <s>
UNDERSCORED = {"<pad>": 0, "_": 1, "a": 2, "b": 3, "<unk>": 4}
NESTED = {
    "eng": {"<pad>": 0, "|": 1, "a": 2, "<unk>": 3, "b": 4},
    "deu": {"<pad>": 0, "|": 1, "sch": 2, "<unk>": 3, "a": 4, "\u00e4": 5},
}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "english": (ENGLISH, {}),
    "lower case": (ENGLISH, {"do_lower_case": True}),
    "odd": (ODD, {}),
    "another delimiter": (UNDERSCORED, {"word_delimiter_token": "_"}),
    "another space": (ODD, {"replace_word_delimiter_char": "-", "clean_up_tokenization_spaces": True}),
    "nested": (NESTED, {"target_lang": "deu"}),
    "extra": (ODD, {"cls_token": "[CLS]", "extra_special_tokens": ["<e>"], "pad_token": "[PAD]"}),
    "sides": (ENGLISH, {"padding_side": "left", "truncation_side": "left", "model_max_length": 7}),
}


class Pairs(dict[str, tuple[Any, Wav2Vec2CTCTokenizer]]):
    """The oracle's tokenizer and ours, by kind."""

    def __repr__(self) -> str:
        return "Pairs()"  # hypothesis shows the arguments of what failed, and these are long


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """Each kind of tokenizer, the oracle's and ours."""
    made = Pairs()
    for name, (vocabulary, options) in KINDS.items():
        path = tmp_path_factory.mktemp("vocabulary") / "vocab.json"
        path.write_text(json.dumps(vocabulary))
        made[name] = (
            transformers.Wav2Vec2CTCTokenizer(str(path), **options),
            Wav2Vec2CTCTokenizer(path, **options),
        )
    return made


@pytest.fixture(scope="session", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def facts() -> Callable[[Any], dict[str, Any]]:
    """What a tokenizer says of itself."""
    return lambda tokenizer: {
        "vocab": tokenizer.get_vocab(),
        "size": (len(tokenizer), tokenizer.vocab_size),
        "special": (tokenizer.all_special_tokens, tokenizer.all_special_ids),
        "added": {
            index: (t.content, t.lstrip, t.rstrip, t.single_word, t.normalized, t.special)
            for index, t in tokenizer.added_tokens_decoder.items()
        },
        "named": {
            name: (getattr(tokenizer, f"{name}_token"), getattr(tokenizer, f"{name}_token_id"))
            for name in ("bos", "eos", "unk", "pad", "sep", "cls", "mask", "word_delimiter")
        },
        "settings": (tokenizer.do_lower_case, tokenizer.target_lang),
    }


@pytest.fixture(scope="session")
def plain() -> Callable[[Any], dict[str, Any]]:
    """An encoding as lists, whatever it is made of."""
    return lambda encoding: {name: listed(value) for name, value in encoding.items()}


def listed(value: Any) -> Any:
    if isinstance(value, np.ndarray | torch.Tensor):
        value = value.tolist()  # the rows of a ragged array are arrays still
    return [listed(item) for item in value] if isinstance(value, list | tuple) else value
