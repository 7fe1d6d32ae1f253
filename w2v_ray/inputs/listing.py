"""What each INPUT argument means, and the entries behind it in a fixed order.

Folders give tars, Parquet files and what looks like audio by its name, unless they are datasets as a whole; a
file that is named itself is always taken.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from typing import TypeVar

from w2v_ray import stores
from w2v_ray.errors import InputError, W2vRayError
from w2v_ray.inputs.entries import AUDIO_EXTENSIONS, Entry, extension, file_entry
from w2v_ray.inputs.hf_datasets import SCHEME, is_saved_dataset, read_named_dataset, read_saved_dataset
from w2v_ray.inputs.kaldi import is_kaldi, read_scp
from w2v_ray.inputs.lhotse import is_shar, read_shar
from w2v_ray.inputs.manifests import read_list, read_manifest
from w2v_ray.inputs.parquet import read_parquet
from w2v_ray.inputs.tables import read_table
from w2v_ray.inputs.tars import index_tar, is_tar

__all__ = ["list_inputs"]

_CONTAINER_THREADS = 8
_AHEAD = 64  # files looked at while a tar or Parquet file before them is being looked into
_ROWS_AHEAD = 1024  # of each of these Parquet files
_LISTS = (".txt", ".lst")
_TABLES = (".csv", ".tsv", ".tab", ".csv.gz", ".tsv.gz")
_MANIFESTS = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".ndjson")
_LEFT_OUT = {
    "hidden": "names that begin with . or _",
    "hidden folder": "folders whose names begin with . or _, and all below",
    "special": "links or devices",
}
_NOT_READ = {".arrow", ".zip", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar"}

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Parquet:
    """A Parquet file to be looked into."""

    file: stores.FileInfo
    is_named: bool


_Found = stores.FileInfo | _Parquet | Entry | None  # or what is known of a recording; None: planned already
_Inside = tuple[Iterable[Entry | None], Counter[str]]  # what is in a container, and what of it is not taken


@dataclass(frozen=True, slots=True)
class _Listing:
    """What listing needs to know everywhere."""

    skipped: Counter[str]
    planned: Collection[tuple[str, str | None, str | None]]
    audio_column: str | None


def list_inputs(
    inputs: Sequence[str],
    *,
    skipped: Counter[str],
    planned: Collection[tuple[str, str | None, str | None]] = (),
    audio_column: str | None = None,
) -> Iterator[Entry]:
    """Every recording that the inputs name, in order; one that is named twice is yielded twice.

    Args:
        inputs: Paths and URLs of folders, globs, audio files, ``.txt``/``.lst`` lists, CSV, TSV, JSON and
            JSONL manifests, tars, Parquet files, saved Hugging Face datasets, Kaldi's and Lhotse's folders
            and files; or ``hf-dataset://NAME``.
        skipped: Receives the number of files that were not taken, by reason.
        planned: Uri, version and container of tars and Parquet or Arrow files that need not be looked into
            again.
        audio_column: The column of tables and key of manifests that holds or names the audio; None: found
            by its name and type.

    Raises:
        InputError: An input does not exist, cannot be listed, or holds no audio.
    """
    if not inputs:
        raise InputError("no inputs are named; name a folder, a file, a list, a manifest or a tar")
    listing = _Listing(skipped, planned, audio_column)
    for text in inputs:
        if not text.startswith(SCHEME) and (reason := stores.refusal(text)) is not None:
            raise InputError(f"input {text!r} {reason}")
        skipped_before = Counter(skipped)
        is_empty = True
        for entry in _contents(_named(text, listing), listing):
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


def _named(text: str, listing: _Listing) -> Iterator[_Found]:
    """The files and finished entries behind one input."""
    if text.startswith(SCHEME):
        yield from read_named_dataset(text, column=listing.audio_column, planned=listing.planned)
        return
    file = _ask(text, lambda: stores.info(text))
    if file is not None:
        yield from _opened(file, listing, is_named=True)
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
            yield from _opened(match, listing, is_named=is_named)


def _opened(file: stores.FileInfo, listing: _Listing, *, is_named: bool) -> Iterator[_Found]:
    """What is in a folder, list, manifest or table, or else the file itself."""
    name, column = file.uri.lower(), listing.audio_column
    if file.kind == "folder":
        yield from _in_folder(file.uri, listing)
    elif not is_named:
        yield from _taken(file, listing)
    elif file.kind != "file":
        raise InputError(f"input {file.uri!r} is not a regular file; name a file or folder")
    elif name.endswith(_LISTS):
        for found in read_list(file.uri):
            yield _listed(found)
    elif name.endswith(_TABLES):
        yield from read_table(file.uri, path_key=column)
    elif name.endswith(_MANIFESTS):
        yield from read_manifest(file.uri, path_key=column)
    elif name.endswith(".scp"):
        yield from read_scp(file.uri)
    elif extension(name) in _NOT_READ and not is_tar(name):
        raise InputError(
            f"input {file.uri!r} is a {extension(name)} file, which is not read; give a folder, an audio "
            "file, a .txt list, a .csv or .jsonl manifest, a .parquet, a .tar or a .tar.gz"
        )
    else:
        yield _listed(file)


def _in_folder(folder: str, listing: _Listing) -> Iterator[_Found]:
    """What is in a folder: that of a dataset, or whatever lies below."""
    column, planned = listing.audio_column, listing.planned
    try:
        if is_saved_dataset(folder):
            yield from read_saved_dataset(folder, column=column, planned=planned)
        elif is_kaldi(folder):
            yield from read_scp(stores.join(folder, "wav.scp"))
        elif is_shar(folder):
            yield from read_shar(folder, listing.skipped)
        else:
            for found in stores.list_files(folder):
                yield from _taken(found, listing)
    except W2vRayError:
        raise
    except Exception as error:  # each store has its own errors
        place = getattr(error, "filename", None) or folder
        message = f"{place!r} cannot be listed ({stores.explain(error)}); make it readable, or leave it out"
        raise InputError(message) from error


def _taken(file: stores.FileInfo, listing: _Listing) -> Iterator[_Found]:
    """A file that was not named itself, if its name says audio; else it is counted."""
    kind, skipped = extension(file.uri), listing.skipped
    if file.kind == "file" and (kind in AUDIO_EXTENSIONS or is_tar(file.uri)):
        yield file
    elif file.kind == "file" and kind == ".parquet":
        yield _Parquet(file, is_named=False)
    elif file.kind == "file":
        skipped[f"{kind} files" if kind else "files without an extension"] += 1
    elif file.kind != "folder":
        skipped[_LEFT_OUT[file.kind]] += 1


def _listed(file: stores.FileInfo) -> _Found:
    """A file that was named, by the user or in a list."""
    return _Parquet(file, is_named=True) if extension(file.uri) == ".parquet" else file


def _begin_parquet(found: _Parquet, listing: _Listing) -> _Inside:
    """The rows of a Parquet file, the first of them read already."""
    skipped: Counter[str] = Counter()
    rows = read_parquet(
        found.file,
        column=listing.audio_column,
        skipped=skipped,
        planned=listing.planned,
        is_named=found.is_named,
    )
    return chain(list(islice(rows, _ROWS_AHEAD)), rows), skipped


def _contents(files: Iterable[_Found], listing: _Listing) -> Iterator[Entry | None]:
    """The entries of the files in their order, several looked into at once; None for what is planned."""
    queue: deque[Entry | Future[_Inside]] = deque()

    def first() -> Iterable[Entry | None]:
        head = queue.popleft()
        if isinstance(head, Entry):
            return [head]
        entries, counts = head.result()
        listing.skipped.update(counts)
        return entries

    pool = ThreadPoolExecutor(_CONTAINER_THREADS)
    try:
        for file in files:
            if file is None:
                yield None
            elif isinstance(file, Entry):
                queue.append(file)
            elif isinstance(file, _Parquet):
                queue.append(pool.submit(_begin_parquet, file, listing))
            elif not is_tar(file.uri):
                queue.append(file_entry(file))
            elif any((file.uri, file.version, container) in listing.planned for container in (None, "gzip")):
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
