"""Opening an n-gram language model: ARPA, compiled, or KenLM's binary files, from a path or a URL."""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from w2v_ray import stores
from w2v_ray.errors import LanguageModelError, ReadError
from w2v_ray.text._beam import NgramBuilder, NgramModel

__all__ = ["KenlmModel", "NgramModel", "cache_folder", "open_language_model"]

_COMPILED_MAGIC = b"\x93W2VLM\r\n"
_GZIP_MAGIC = b"\x1f\x8b"
_KENLM_MAGIC = b"mmap lm http://kheafield.com/code"
_BLOCK_BYTES = 1 << 20


class KenlmModel:
    """A model in KenLM's binary format, read by the package kenlm. It does not list its words.

    Args:
        path: The file.

    Raises:
        LanguageModelError: kenlm cannot read it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        import kenlm

        self.path = os.path.abspath(path)
        """Where the file is; instances are pickled as this."""
        try:
            self.model: Any = kenlm.Model(self.path)
        except (OSError, RuntimeError) as error:
            raise LanguageModelError(
                f"{self.path}: kenlm cannot read it ({stores.explain(error)[:300]}); build it again"
            ) from error

    @property
    def order(self) -> int:
        """The number of words of the longest n-grams."""
        return int(self.model.order)

    @property
    def begin_state(self) -> Any:
        """The ``kenlm.State`` after ``<s>``."""
        import kenlm

        state = kenlm.State()
        self.model.BeginSentenceWrite(state)
        return state

    @property
    def null_state(self) -> Any:
        """The ``kenlm.State`` without context."""
        import kenlm

        state = kenlm.State()
        self.model.NullContextWrite(state)
        return state

    def __contains__(self, word: str) -> bool:
        return word in self.model

    def score(self, state: Any, word: str) -> tuple[float, Any]:
        """The log10 probability of ``word`` after ``state``, and the ``kenlm.State`` after it."""
        import kenlm

        after = kenlm.State()
        return self.model.BaseScore(state, word, after), after

    def __reduce__(self) -> tuple[type[KenlmModel], tuple[str]]:
        return KenlmModel, (self.path,)


def open_language_model(path: str | os.PathLike[str]) -> NgramModel | KenlmModel:
    """Opens a language model; what kind it is shows in its first bytes, not in its name.

    A file made by ``w2v-ray lm compile`` is mapped: it opens in milliseconds, and all processes of a machine
    share its memory. ARPA files, plain or gzip, are read into the memory of this process. What a URL names is
    copied to `cache_folder` first, once for all processes of the machine.

    Args:
        path: A path or URL of an ARPA file, a compiled model, or a KenLM binary file.

    Raises:
        LanguageModelError: The file is missing, damaged, or none of these.
    """
    name = os.fspath(path)
    if (reason := stores.refusal(name)) is not None:
        raise LanguageModelError(f"{name!r} {reason}")
    local = stores.local_path(name) if stores.is_local(name) else _fetched(name)
    try:
        with open(local, "rb") as file:
            head = file.read(len(_KENLM_MAGIC))
            if head.startswith(_COMPILED_MAGIC):
                return NgramModel.map(local)
            if head.startswith(_KENLM_MAGIC):
                return KenlmModel(local)
            file.seek(0)
            return _read_arpa(file, is_gzip=head.startswith(_GZIP_MAGIC))
    except FileNotFoundError as error:
        raise LanguageModelError(f"{name!r} does not exist; name a language model") from error
    except IsADirectoryError as error:
        raise LanguageModelError(f"{name!r} is a folder; name a file") from error
    except LanguageModelError:
        raise
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise LanguageModelError(
            f"{name!r} cannot be read ({stores.explain(error)}); copy or make it again"
        ) from error


def _read_arpa(file: BinaryIO, *, is_gzip: bool) -> NgramModel:
    builder = NgramBuilder()
    source: Any = gzip.GzipFile(fileobj=file) if is_gzip else file
    first = source.read(_BLOCK_BYTES)
    if is_gzip and first.startswith((_COMPILED_MAGIC, _KENLM_MAGIC)):
        raise LanguageModelError(f"{file.name}: it is a compressed binary model; run gunzip on it")
    while first:
        builder.feed(first)
        first = source.read(_BLOCK_BYTES)
    return builder.finish()


def cache_folder() -> Path:
    """Where models from URLs are kept: ``$W2V_RAY_CACHE``, or ``w2v-ray`` in the user's cache folder."""
    if folder := os.environ.get("W2V_RAY_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "w2v-ray"


def _fetched(url: str) -> str:
    """The copy of a file of a store on this machine, made by the first process that asks."""
    url = stores.canonical(url)
    try:
        found = stores.info(url)
    except Exception as error:  # each store has its own errors
        raise LanguageModelError(
            f"{url!r} cannot be read ({stores.explain(error)}); check the store"
        ) from error
    if found is None or found.kind == "folder":
        raise LanguageModelError(f"{url!r} does not exist or is a folder; name a language model")
    folder = cache_folder() / "language-models"
    # Another version of the file has another name, so whoever maps the old one keeps it.
    name = hashlib.sha256(f"{url}\n{found.version}\n{found.size}".encode()).hexdigest()[:32]
    target = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            with _locked(folder / f"{name}.lock"):
                if not target.exists():
                    _copy(url, found.size, target)
    except ReadError as error:
        raise LanguageModelError(str(error)) from error
    except OSError as error:
        raise LanguageModelError(
            f"{url!r} cannot be copied to {str(folder)!r} ({stores.explain(error)}); "
            "set W2V_RAY_CACHE to a folder with room"
        ) from error
    return str(target)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock between processes, which ends with its holder even where that is killed."""
    with open(path, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _copy(url: str, size: int | None, target: Path) -> None:
    handle, temporary = tempfile.mkstemp(prefix=f"{target.name}.", dir=target.parent)
    try:
        with open(handle, "wb") as to, stores.open_range(url, None, size, block_bytes=1 << 24) as source:
            shutil.copyfileobj(source, to, 1 << 24)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
