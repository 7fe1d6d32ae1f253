"""Where the language model of a job comes from, and one copy of it for all decoders of a machine."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from w2v_ray import stores
from w2v_ray.errors import ConfigError, LanguageModelError
from w2v_ray.hub import checkpoint_folder
from w2v_ray.text.fusion import LanguageModel
from w2v_ray.text.language_model import KenlmModel, NgramModel, cache_folder, open_language_model

_FLAT_VERSION = 2  # kVersion of _ngram.hpp: what another version left in the cache is not opened
__all__ = [
    "CHECKPOINT",
    "LanguageModelSource",
    "check_letters",
    "content_of",
    "find_language_model",
    "load_language_model",
    "read_words",
    "sampled_words",
]

CHECKPOINT = "checkpoint"  # as the name of a language model: the one that lies in the model's own folder
_FOLDER = "language_model"
_SETTINGS = ("alpha", "beta", "unk_score_offset", "score_boundary")
_SAMPLED_BYTES = 1 << 20
_HEAD_BYTES = 1 << 16
_SAMPLED_WORDS = 20_000
_GZIP_MAGIC = b"\x1f\x8b"
_FITTING_SHARE = 0.5  # of sampled words: far below what any language model of the right script has


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageModelSource:
    """A language model's file, and what lies beside it in a checkpoint."""

    path: str
    """The file, or a URL of it."""
    unigrams: str | None = None
    """A file of the words that count as known, one a line."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the checkpoint says of alpha, beta, unk_score_offset and score_boundary."""


def find_language_model(lm: str, *, model: str = "", revision: str | None = None) -> LanguageModelSource:
    """Says which files make up a language model.

    Args:
        lm: A path or URL, or "checkpoint".
        model: The folder or hub id of the checkpoint that "checkpoint" means.
        revision: Branch, tag or commit of a hub id.

    Raises:
        CheckpointError: The checkpoint cannot be fetched.
        ConfigError: The file, or the language model of the checkpoint, does not exist.
    """
    if lm != CHECKPOINT:
        if (reason := stores.refusal(lm)) is not None:
            raise ConfigError(f"lm {lm!r} {reason}")
        _check_exists("lm", lm)
        return LanguageModelSource(path=stores.canonical(lm))
    inner = checkpoint_folder(model, [f"{_FOLDER}/*"], revision=revision) / _FOLDER
    files = sorted(inner.iterdir()) if inner.is_dir() else []
    models = [path for path in files if path.name not in ("attrs.json", "unigrams.txt") and path.is_file()]
    if len(models) != 1:
        found = f"holds {', '.join(path.name for path in files)}" if files else "does not exist"
        raise ConfigError(
            f"lm is 'checkpoint' and {str(inner)!r} {found}, expected a folder with one language model; "
            "name the file of one as lm"
        )
    settings = {}
    if (inner / "attrs.json").is_file():
        read = json.loads((inner / "attrs.json").read_text(encoding="utf-8"))
        settings = {name: read[name] for name in _SETTINGS if name in read}
    unigrams = inner / "unigrams.txt"
    return LanguageModelSource(
        path=str(models[0]), unigrams=str(unigrams) if unigrams.is_file() else None, settings=settings
    )


def load_language_model(
    source: LanguageModelSource,
    *,
    unigrams: str | None = None,
    alpha: float | None = None,
    beta: float | None = None,
) -> LanguageModel:
    """Opens a language model for a search.

    An ARPA is compiled once on each machine, into the cache, and mapped by every process from there.

    Args:
        source: Its files.
        unigrams: A file or URL of the words that count as known, instead of the source's.
        alpha: The weight of the model, instead of the source's.
        beta: What each word adds, instead of the source's.

    Raises:
        LanguageModelError: A file is missing or damaged.
    """
    model = _opened(source.path)
    known = unigrams or source.unigrams
    given = {name: value for name, value in (("alpha", alpha), ("beta", beta)) if value is not None}
    weights = dict(source.settings) | given
    if known is None and isinstance(model, NgramModel):
        return LanguageModel.of_all_words(model, **weights)
    return LanguageModel(model, read_words(known) if known else None, **weights)


def read_words(path: str) -> list[str]:
    """The words of a text file or URL, one a line.

    Raises:
        ConfigError: It does not exist, or is no UTF-8.
    """
    _check_exists("unigrams", path)
    try:
        return stores.read_bytes(stores.canonical(path)).decode("utf-8").split()
    except UnicodeDecodeError as error:
        raise ConfigError(f"unigrams {path!r} is not UTF-8 ({error}); write it in UTF-8") from error


def content_of(path: str) -> str:
    """What tells two versions of a file apart: a hash of a local one, the version that a store knows.

    Raises:
        ConfigError: It does not exist.
    """
    path = stores.canonical(path)
    if stores.is_local(path):
        with open(stores.local_path(path), "rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()[:32]}"
    found = stores.info(path)
    assert found is not None
    return f"{found.version}:{found.size}"


def check_letters(name: str, words: Iterable[str], labels: Sequence[str]) -> None:
    """Sees that a model can spell what it is to find.

    Args:
        name: What the words are, for the message.
        words: All of them, or some of a language model's.
        labels: Texts of the vocabulary's tokens.

    Raises:
        ConfigError: Most of the words have letters that the vocabulary lacks; the message says so where
            only their case differs.
    """
    letters = set("".join(labels))
    sample = [word for word, _ in zip(_plain(words), range(_SAMPLED_WORDS), strict=False)]

    def share(change: Any) -> float:
        return sum(letters.issuperset(change(word)) for word in sample) / max(1, len(sample))

    if not sample or share(str) >= _FITTING_SHARE:
        return
    odd = next(word for word in sample if not letters.issuperset(word))
    for change, case in ((str.upper, "upper"), (str.lower, "lower")):
        if share(change) >= _FITTING_SHARE:
            raise ConfigError(
                f"{name} spells {odd!r} where the vocabulary has {change(odd)!r}; write it in {case} case"
            )
    fix = (
        "spell them with its letters, or name a file of them that exists"
        if name == "hotwords"
        else "name one that was made of texts like those the model was trained on"
    )
    raise ConfigError(
        f"{name} spells {odd!r}, of which the vocabulary lacks {sorted(set(odd) - letters)}; {fix}"
    )


def sampled_words(path: str) -> list[str]:
    """Words of a language model: the first ones of an ARPA, those of a compiled one; none of other kinds.

    Raises:
        LanguageModelError: A local file is no language model.
        ReadError: The file cannot be read.
    """
    path = stores.canonical(path)
    with stores.open_range(path, None, None) as file:
        head = file.read(_SAMPLED_BYTES)
    if head[:2] == _GZIP_MAGIC:
        head = zlib.decompressobj(31).decompress(head)
    _, found, lines = head.partition(b"\\1-grams:")
    if found:
        fields = (line.split() for line in lines.split(b"\n")[1:-1])
        return [field[1].decode("utf-8", "replace") for field in fields if len(field) > 1]
    if not stores.is_local(path):
        return []
    model = open_language_model(path)
    return model.words() if isinstance(model, NgramModel) else []


def _plain(words: Iterable[str]) -> Iterable[str]:
    return (word for word in words if word and not (word[0] in "<[" and word[-1] in ">]"))


def _check_exists(name: str, path: str) -> None:
    try:
        found = stores.info(stores.canonical(path))
    except Exception as error:  # each store has its own errors
        raise ConfigError(f"{name} {path!r} cannot be read ({stores.explain(error)}); check it") from error
    if found is None:
        raise ConfigError(f"{name} {path!r} does not exist; name a file")
    if found.kind == "folder":
        raise ConfigError(f"{name} {path!r} is a folder; name a file")


def _opened(path: str) -> NgramModel | KenlmModel:
    found = stores.info(stores.canonical(path))
    if found is None:
        raise LanguageModelError(f"{path!r} does not exist; name a language model")
    if not _is_arpa(found.uri):
        return open_language_model(found.uri)  # a file that processes share as it is
    key = hashlib.sha256(f"compiled\n{found.uri}\n{found.version}\n{found.size}".encode()).hexdigest()[:32]
    folder = cache_folder() / "language-models"
    target = folder / f"{key}-{_FLAT_VERSION}.w2vlm"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{key}.lock", "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # ends with its holder, even where that is killed
            if not target.exists():
                _compile(found.uri, target)
    except OSError as error:
        raise LanguageModelError(
            f"{path!r} cannot be compiled into {str(folder)!r} ({stores.explain(error)}); "
            "set W2V_RAY_CACHE to a folder with room"
        ) from error
    return open_language_model(target)


def _is_arpa(path: str) -> bool:
    with stores.open_range(path, None, None) as file:
        head = file.read(_HEAD_BYTES)
    return head[:2] == _GZIP_MAGIC or b"\\data\\" in head


def _compile(path: str, target: Path) -> None:
    model = open_language_model(path)
    assert isinstance(model, NgramModel)
    handle, temporary = tempfile.mkstemp(prefix=f"{target.stem}.", dir=target.parent)
    os.close(handle)
    try:
        model.save(temporary)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
