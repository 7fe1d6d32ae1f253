"""What a job found against what is right: turns against RTTM files, labels against tables of labels."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from w2v_ray.errors import ConfigError, InputError
from w2v_ray.exports.classes import merged_turns
from w2v_ray.exports.recordings import Recording, read_recordings
from w2v_ray.exports.rows import read_planned
from w2v_ray.inputs.named_files import open_text, read_lines
from w2v_ray.metrics import (
    ClassificationReport,
    DiarizationErrors,
    classification_report,
    diarization_errors,
    top_k_accuracy,
)
from w2v_ray.recording_names import match_names
from w2v_ray.rttm import Turn, read_rttm, read_uem

__all__ = ["LabelComparison", "TurnComparison", "compare_labels", "compare_turns", "read_labels"]

_ID_KEYS = ("recording_id", "id", "audio_filepath", "file_name", "file", "path")
_DELIMITERS = {"csv": ",", "tsv": "\t"}


@dataclasses.dataclass(frozen=True, slots=True)
class TurnComparison:
    """How much of who speaks when is wrong."""

    total: DiarizationErrors
    recordings: dict[str, DiarizationErrors]
    """By recording, as the reference calls it, in its order."""
    num_missing: int
    """Recordings of the reference left out, as the output has no rows of them."""
    num_unknown: int
    """Recordings of the hypothesis left out, as the reference has no lines of them."""


@dataclasses.dataclass(frozen=True, slots=True)
class LabelComparison:
    """How many labels are right."""

    report: ClassificationReport
    top_k: dict[int, float]
    """By k, the share of references among the k likeliest labels."""
    num_missing: int
    """References left out, as the output has no rows of their recordings."""


def compare_turns(
    hypothesis: str,
    reference: str,
    *,
    collar: float = 0.0,
    skip_overlap: bool = False,
    uem: str | None = None,
    skip_missing: bool = False,
) -> TurnComparison:
    """Compares the turns of an output, or of an RTTM file, with those of a reference.

    Args:
        hypothesis: The output of a job that has the table ``frames``, or an RTTM file, whose name ends in
            ``.rttm``. Of an output, turns of one class that touch are one, and channels have classes of
            their own.
        reference: An RTTM file. It names recordings by their ids or the ends of these.
        collar: As of `w2v_ray.metrics.diarization_errors`.
        skip_overlap: The same.
        uem: A UEM file: only recordings and times in it count.
        skip_missing: Whether recordings that an output has no rows of are left out; else they are an error.
            An RTTM file without lines of a recording says that nobody speaks.

    Raises:
        ConfigError: ``collar`` is negative.
        InputError: A file cannot be read, a recording has no rows or a name may mean several, or nothing is
            left to compare.
        OutputError: The output cannot be read or has no such table.
        MissingExtraError: The package scipy is not installed.
    """
    if not collar >= 0:
        raise ConfigError(f"collar is {collar}, expected seconds from 0, such as 0.5")
    right = read_rttm(reference)
    regions = None if uem is None else read_uem(uem)
    if regions is not None:
        right = {name: right.get(name, []) for name in regions}
    num_missing = 0
    if _is_rttm(hypothesis):
        given = read_rttm(hypothesis)
        places = match_names(list(right), zip(given, range(len(given)), strict=True), source=repr(reference))
        turns = list(given.values())
        found: dict[str, Sequence[Turn]] = {name: turns[place] for name, place in places.items()}
        num_unknown = len(given) - len(set(places.values()))
        compared = [name for name in right if right[name] or name in found]
    else:
        found, num_unknown = _turns_of_output(hypothesis, right, reference)
        compared = [name for name in right if name in found]
        missing = [name for name in right if name not in found and right[name]]
        num_missing = len(missing)
        if missing and not skip_missing:
            raise InputError(_missing(missing, right, reference, hypothesis))
    if not compared:
        raise InputError(
            f"{hypothesis!r} and {reference!r} have no recording in common; check that the names in the "
            "reference are recording ids or ends of them"
        )
    errors = {
        name: diarization_errors(
            right[name],
            found.get(name, []),
            collar=collar,
            skip_overlap=skip_overlap,
            regions=None if regions is None else regions[name],
        )
        for name in compared
    }
    return TurnComparison(sum(errors.values(), DiarizationErrors()), errors, num_missing, num_unknown)


def compare_labels(
    output: str,
    reference: str,
    *,
    label_key: str = "label",
    per: str = "recording",
    top: int = 5,
    skip_missing: bool = False,
) -> LabelComparison:
    """Compares the labels of an output with those that are right.

    Args:
        output: The output of a job that has the table ``labels``.
        reference: A table of recordings and labels, as of `read_labels`.
        label_key: Its column, or key, of labels.
        per: ``recording``: the label of a recording is the one with the highest score, where the scores of
            its segments are averaged by their length, and count nothing for labels that a segment does not
            name. ``segment``: every segment is compared with the label of its recording.
        top: The largest k to give the share of references among the k likeliest labels for.
        skip_missing: Whether recordings without rows are left out; else they are an error.

    Raises:
        ConfigError: ``per`` or ``top`` cannot be.
        InputError: The table cannot be read, a recording has no rows, or a name may mean several.
        OutputError: The output cannot be read or has no such table.
    """
    if per not in ("recording", "segment"):
        raise ConfigError(f"per is {per!r}, expected recording or segment; choose one")
    if top < 1:
        raise ConfigError(f"top is {top}, expected at least 1")
    right = read_labels(reference, label_key=label_key)
    recordings, _ = _recordings(output, "labels", right, reference)
    references: list[str] = []
    rankings: list[list[str]] = []
    labels: list[str | None] = []
    for name, recording in recordings.items():
        if per == "recording":
            ranking = _ranking(recording)
            references.append(right[name])
            rankings.append(ranking)
            labels.append(ranking[0] if ranking else None)
        else:
            for segment in recording.segments:
                references.append(right[name])
                rankings.append([label for label, _ in segment.labels or []])
                labels.append(segment.words[0].text if segment.words else None)
    missing = [name for name in right if name not in recordings]
    if missing and (not skip_missing or not recordings):
        raise InputError(_missing(missing, right, reference, output))
    longest = max(map(len, rankings))
    top_k = {k: top_k_accuracy(references, rankings, k=k) for k in range(1, min(top, longest) + 1)}
    return LabelComparison(classification_report(references, labels), top_k, len(missing))


def read_labels(path: str, *, label_key: str = "label") -> dict[str, str]:
    """The label of each recording, from a table.

    Args:
        path: CSV or TSV with a header, or JSON lines, plain or gzip; path or URL. Recordings are in
            ``recording_id``, ``id``, ``audio_filepath``, ``file_name``, ``file`` or ``path``, the first that
            is there.
        label_key: The column or key of labels.

    Raises:
        InputError: It cannot be read, has no such columns, or a recording twice with different labels.
    """
    found: dict[str, str] = {}
    for number, row in _table_rows(path):
        key = next((key for key in _ID_KEYS if row.get(key)), None)
        label = row.get(label_key)
        if key is None or label is None or label == "":
            raise InputError(
                f"{path!r} line {number} has {', '.join(map(str, row)) or 'nothing'}, expected {label_key!r} "
                f"and one of {', '.join(_ID_KEYS)}; name the key of labels, or add the recording"
            )
        if found.setdefault(str(row[key]), str(label)) != str(label):
            raise InputError(
                f"{path!r} line {number} gives {row[key]!r} the label {str(label)!r}, and an earlier line "
                f"{found[str(row[key])]!r}; keep one"
            )
    if not found:
        raise InputError(f"{path!r} holds no labels; give a line for each recording")
    return found


def _table_rows(path: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    kind = path.removesuffix(".gz").rpartition(".")[2].lower()
    if kind in ("jsonl", "json"):
        for number, line in read_lines(path):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(f"{path!r} line {number} is not JSON ({error}); correct it") from error
            if not isinstance(row, dict):
                raise InputError(f"{path!r} line {number} is not a JSON object; write one for each recording")
            yield number, row
    elif kind in _DELIMITERS:
        with open_text(path) as lines:
            reader = csv.DictReader(lines, delimiter=_DELIMITERS[kind])
            for row in reader:
                yield reader.line_num, {key: value for key, value in row.items() if isinstance(key, str)}
    else:
        raise InputError(f"{path!r} is no table that is read here; name a .csv, .tsv or .jsonl file")


def _turns_of_output(
    output: str, right: Collection[str], reference: str
) -> tuple[dict[str, Sequence[Turn]], int]:
    recordings, num_unknown = _recordings(output, "frames", right, reference)
    found: dict[str, Sequence[Turn]] = {}
    for name, recording in recordings.items():
        found[name] = [
            Turn(turn.text if channel is None else f"{turn.text}#c{channel}", turn.start_s, turn.end_s)
            for channel, turn in merged_turns(recording)
        ]
    return found, num_unknown


def _recordings(
    output: str, table: str, wanted: Collection[str], reference: str
) -> tuple[dict[str, Recording], int]:
    """The recordings with rows that a reference names, by that name; and how many it does not name."""
    planned = read_planned(output)._replace(table=table)
    ids = planned.recording_ids
    places = match_names(list(wanted), zip(ids, range(len(ids)), strict=True), source=repr(reference))
    names: dict[str, str] = {}
    for name, place in places.items():
        if names.setdefault(ids[place], name) != name:
            raise InputError(
                f"{reference!r} calls {ids[place]!r} both {names[ids[place]]!r} and {name!r}; keep one name"
            )
    found = {
        names[recording.recording_id]: recording
        for recording in read_recordings(planned, list(names), min_confidence=None)
        if recording.segments
    }
    return {name: found[name] for name in wanted if name in found}, len(ids) - len(names)


def _ranking(recording: Recording) -> list[str]:
    totals: dict[str, float] = defaultdict(float)
    for segment in recording.segments:
        for label, score in segment.labels or []:
            totals[label] += score * (segment.end_s - segment.start_s)
    return sorted(totals, key=lambda label: -totals[label])


def _missing(missing: Sequence[str], right: Collection[str], reference: str, output: str) -> str:
    return (
        f"{len(missing):,} of {len(right):,} recordings of {reference!r} have no rows in {output!r}, such as "
        f"{missing[0]!r}; see its rejects, or leave them out with --skip-missing"
    )


def _is_rttm(path: str) -> bool:
    return path.removesuffix(".gz").lower().endswith(".rttm")
