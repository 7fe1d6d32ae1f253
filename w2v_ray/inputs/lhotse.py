"""Lhotse: cuts in JSON lines, and Shar folders, whose recordings lie in tars beside their cuts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, cast

from w2v_ray import stores
from w2v_ray.errors import InputError
from w2v_ray.inputs.entries import Entry, encodable, escape, metadata_json
from w2v_ray.schema import DAMAGE_KEY

__all__ = ["is_cut", "is_shar", "named_cut", "read_shar"]

_CUT_TYPES = {"MonoCut", "MultiCut", "MixedCut", "PaddingCut", "DataCut"}
_WHOLE_S = 0.01  # what a cut may lack of its recording and still be all of it
_SAME_AUDIO = {"Resample"}  # every recording is resampled here as well
_SHAR_CUTS = ("cuts.000000.jsonl.gz", "cuts.000000.jsonl")


class _Source(NamedTuple):
    path: str
    channel: int | None


def is_cut(values: Mapping[str, object]) -> bool:
    """Whether a JSON object is one of Lhotse's cuts."""
    return values.get("type") in _CUT_TYPES or isinstance(values.get("recording"), dict)


def named_cut(where: str, cut: Mapping[str, Any]) -> tuple[str, Callable[[stores.FileInfo], Entry]]:
    """The file of a cut, and what makes its entry: the seconds and the channel that it takes.

    The texts of its supervisions, joined, become ``text``; speaker, language and gender where they agree, and
    the cut's own custom keys, stand beside it.

    Raises:
        InputError: The cut is mixed or padded, transforms its audio, or has no file or URL as its source.
    """
    recording, cut_id = cut.get("recording"), cut.get("id")
    if cut.get("type") in ("MixedCut", "PaddingCut") or not isinstance(recording, dict):
        kind = cut.get("type") or "cut"
        raise InputError(f"{where} is a {kind} without one recording; give cuts of single recordings")
    if not isinstance(cut_id, str) or not cut_id:
        raise InputError(f"{where} has {cut_id!r} as 'id'; give the cut its id")
    _check_transforms(where, recording)
    try:
        start_s, duration_s = float(cut.get("start") or 0.0), float(cut["duration"])
        whole_s = float(recording.get("duration") or 0.0)
        source = _source(where, cut.get("channel"), recording["sources"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where} is not a cut as Lhotse writes it ({error!r}); write it again") from error
    if not (start_s >= 0 and 0 < duration_s < float("inf")):
        raise InputError(f"{where} starts at {start_s:g} s and lasts {duration_s:g} s; give seconds")
    is_whole = start_s == 0 and whole_s and duration_s >= whole_s - _WHOLE_S
    make = partial(
        _make_cut,
        recording_id=encodable(cut_id),
        start_s=None if is_whole else start_s,
        end_s=None if is_whole else round(start_s + duration_s, 6),
        duration_s=duration_s,
        channel=source.channel,
        metadata=metadata_json(_metadata(cut)),
    )
    return source.path, make


def _make_cut(file: stores.FileInfo, **fields: Any) -> Entry:
    return Entry(uri=file.uri, byte_size=file.size, version=file.version, **fields)


def _check_transforms(where: str, recording: Mapping[str, Any]) -> None:
    for transform in recording.get("transforms") or ():
        name = transform.get("name") if isinstance(transform, dict) else transform
        if name not in _SAME_AUDIO:
            raise InputError(
                f"{where} applies {name!r} to its recording, which is not done here; save the cut's audio"
            )


def _source(where: str, channel: object, sources: list[Mapping[str, Any]]) -> _Source:
    """The one file that has the channel, or all channels, of a cut."""
    wanted = channel if isinstance(channel, list) else [channel or 0]
    found = [source for source in sources if set(wanted) <= set(source["channels"])]
    if len(found) != 1:
        raise InputError(f"{where} takes channels {wanted}, which no one file of it has; give mono cuts")
    (source,) = found
    if source["type"] not in ("file", "url"):
        raise InputError(
            f"{where} has a source of type {source['type']!r}, which is not run or read here; give a file or "
            "URL"
        )
    has = list(source["channels"])
    if len(wanted) == len(has):  # all of the file
        return _Source(source["source"], None)
    if len(wanted) > 1:
        raise InputError(f"{where} takes channels {wanted} of {has}; give one of them, or all")
    return _Source(source["source"], has.index(wanted[0]))


def _metadata(cut: Mapping[str, Any]) -> dict[str, object]:
    values: dict[str, object] = dict(cut.get("custom") or {})
    values.pop(DAMAGE_KEY, None)
    supervisions = [one for one in cut.get("supervisions") or () if isinstance(one, dict)]
    texts = [str(one["text"]) for one in supervisions if one.get("text") is not None]
    if texts:
        values["text"] = " ".join(texts)
    for key in ("speaker", "language", "gender"):
        said = {str(one[key]) for one in supervisions if one.get(key) is not None}
        if len(said) == 1:
            values[key] = said.pop()
    return values


def is_shar(folder: str) -> bool:
    """Whether a folder is one that Lhotse's SharWriter wrote."""
    return any(stores.exists(stores.join(folder, name)) for name in _SHAR_CUTS)


def read_shar(folder: str, skipped: Counter[str]) -> Iterator[Entry]:
    """The entries of a Shar folder: the members of its ``recording.*.tar``, named by their cuts.

    Cuts whose recording is not in their tar are counted in ``skipped``.

    Raises:
        InputError: A tar is missing, or a cut has no id.
    """
    from w2v_ray.inputs.manifests import read_objects
    from w2v_ray.inputs.tars import index_tar

    names = set(stores.list_names(folder))
    for name in sorted(name for name in names if name.startswith("cuts.") and ".jsonl" in name):
        cuts_uri = stores.canonical(stores.join(folder, name))
        tar_name = f"recording.{name.split('.')[1]}.tar"
        tar = stores.info(stores.join(folder, tar_name)) if tar_name in names else None
        if tar is None:
            raise InputError(f"{cuts_uri!r} has no {tar_name!r} beside it; write the field 'recording', too")
        entries, counts = index_tar(tar)
        skipped.update(counts)
        members: dict[str, Entry] = {}
        damaged: list[Entry] = []
        for entry in entries:
            if entry.byte_offset is None:
                damaged.append(entry)
            else:
                stem = entry.recording_id.removeprefix(f"{tar.uri}#").rpartition(".")[0]
                members[stem] = entry
        for number, cut in read_objects(cuts_uri):
            where = f"line {number} of {cuts_uri!r}"
            cut_id = cut.get("id")
            if not isinstance(cut_id, str) or not cut_id:
                raise InputError(f"{where} has {cut_id!r} as 'id'; give the cut its id")
            member = members.get(escape(cut_id))
            if member is None and not damaged:
                skipped["cuts without a recording"] += 1
            elif member is not None:
                duration = cut.get("duration")
                yield member._replace(
                    recording_id=encodable(cut_id),
                    duration_s=float(cast(float, duration)) if isinstance(duration, int | float) else None,
                    metadata=metadata_json(_metadata(cut)),
                )
        yield from damaged
