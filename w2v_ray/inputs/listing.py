"""What each INPUT argument means, and the entries behind it in a fixed order.

Folders give tars and what looks like audio by its name; a file that is named itself is always taken.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from w2v_ray import stores
from w2v_ray.errors import InputError
from w2v_ray.inputs.entries import AUDIO_EXTENSIONS, Entry, extension, file_entry
from w2v_ray.inputs.manifests import read_list, read_manifest
from w2v_ray.inputs.tars import index_tar

__all__ = ["list_inputs"]

_TAR_THREADS = 8
_AHEAD = 64  # files looked at while a tar before them is being indexed
_NOT_READ = {".csv", ".tsv", ".parquet", ".scp", ".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"}

_Found = stores.FileInfo | Entry
_T = TypeVar("_T")


def list_inputs(
    inputs: Sequence[str], *, skipped: Counter[str], planned_tars: Collection[tuple[str, str | None]] = ()
) -> Iterator[Entry]:
    """Every recording that the inputs name, in order; one that is named twice is yielded twice.

    Args:
        inputs: Folders, globs, audio files, ``.txt``/``.lst`` lists, ``.jsonl``/``.json`` manifests, tars.
        skipped: Receives the number of files that were not taken, by reason.
        planned_tars: Uri and version of tars that need not be looked into again.

    Raises:
        InputError: An input does not exist, cannot be listed, or holds no audio.
    """
    if not inputs:
        raise InputError("no inputs are named; name a folder, a file, a list, a manifest or a tar")
    for text in inputs:
        if (reason := stores.refusal(text)) is not None:
            raise InputError(f"input {text!r} {reason}")
        skipped_before = Counter(skipped)
        is_empty = True
        for entry in _contents(_named(text, skipped), skipped, planned_tars):
            is_empty = False
            if entry is not None:
                yield entry
        if is_empty:
            counts = sorted((skipped - skipped_before).items())
            reasons = ", ".join(f"{count} {reason}" for reason, count in counts) or "it is empty"
            raise InputError(
                f"input {text!r} holds no audio ({reasons}); name a folder or file that does, or list the "
                "files in a .txt if their names do not end in .wav, .flac, .mp3 or the like"
            )


def _named(text: str, skipped: Counter[str]) -> Iterator[_Found]:
    """The files and finished entries behind one input."""
    file = _ask(text, lambda: stores.info(text))
    if file is not None:
        yield from _opened(file, skipped, is_named=True)
        return
    if not any(character in text for character in "*?["):
        raise InputError(f"input {text!r} does not exist; check the path or URL")
    matches = _ask(text, lambda: stores.list_glob(text))
    if not matches:
        raise InputError(f"input {text!r} matches nothing; check the pattern")
    # "*.jsonl" names manifests; "talks/*" names whatever is there, as a folder does.
    is_named = extension(text)[1:].isalnum()
    for match in matches:
        if match.kind != "folder" or "**" not in text:  # ** matches all that the folder holds, too
            yield from _opened(match, skipped, is_named=is_named)


def _opened(file: stores.FileInfo, skipped: Counter[str], *, is_named: bool) -> Iterator[_Found]:
    """What is in a folder, list or manifest, or else the file itself."""
    kind = extension(file.uri)
    if file.kind == "folder":
        try:
            for found in stores.list_files(file.uri):
                yield from _taken(found, skipped)
        except OSError as error:
            place = error.filename or file.uri
            message = (
                f"{place!r} cannot be listed ({stores.explain(error)}); make it readable, or leave it out"
            )
            raise InputError(message) from error
    elif not is_named:
        yield from _taken(file, skipped)
    elif file.kind != "file":
        raise InputError(f"input {file.uri!r} is not a regular file; name a file or folder")
    elif kind in (".txt", ".lst"):
        yield from read_list(file.uri)
    elif kind in (".jsonl", ".json"):
        yield from read_manifest(file.uri)
    elif kind in _NOT_READ:
        raise InputError(
            f"input {file.uri!r} is a {kind} file, which is not read; give a folder, an audio file, "
            "a .txt list, a .jsonl manifest or an uncompressed .tar"
        )
    else:
        yield file


def _taken(file: stores.FileInfo, skipped: Counter[str]) -> Iterator[stores.FileInfo]:
    """A file that was not named itself, if its name says audio; else it is counted."""
    kind = extension(file.uri)
    if file.kind == "file" and (kind in AUDIO_EXTENSIONS or kind == ".tar"):
        yield file
    elif file.kind == "file":
        skipped[f"{kind} files" if kind else "files without an extension"] += 1
    elif file.kind != "folder":
        skipped["hidden names" if file.kind == "hidden" else "links or devices"] += 1


def _contents(
    files: Iterable[_Found], skipped: Counter[str], planned_tars: Collection[tuple[str, str | None]]
) -> Iterator[Entry | None]:
    """The entries of the files in their order, with several tars indexed at once; None for a planned tar."""
    queue: deque[Entry | Future[tuple[list[Entry], Counter[str]]]] = deque()

    def first() -> list[Entry]:
        head = queue.popleft()
        if isinstance(head, Entry):
            return [head]
        entries, counts = head.result()
        skipped.update(counts)
        return entries

    pool = ThreadPoolExecutor(_TAR_THREADS)
    try:
        for file in files:
            if isinstance(file, Entry):
                queue.append(file)
            elif extension(file.uri) != ".tar":
                queue.append(file_entry(file))
            elif (file.uri, file.version) in planned_tars:
                yield None
            else:
                queue.append(pool.submit(index_tar, file))
            while queue and (isinstance(queue[0], Entry) or len(queue) > _AHEAD):
                yield from first()
        while queue:
            yield from first()
    finally:
        pool.shutdown(cancel_futures=True)


def _ask(text: str, question: Callable[[], _T]) -> _T:
    try:
        return question()
    except Exception as error:  # each store has its own errors
        message = (
            f"input {text!r} cannot be looked up ({stores.explain(error)}); check the name and permissions"
        )
        raise InputError(message) from error
