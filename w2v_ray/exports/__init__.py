"""Transcripts, alignments, labels and turns in the formats of other programs, from the tables alone.

Neither audio nor a model is read, and neither torch nor Ray is loaded. Recordings are read one after another,
each from all shards that hold a part of it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Iterator
from itertools import chain
from typing import Any, Literal, NamedTuple

from w2v_ray import stores
from w2v_ray.errors import ConfigError, InputError, OutputError
from w2v_ray.exports import captions, classes, tables
from w2v_ray.exports.captions import CaptionSettings
from w2v_ray.exports.files import Folder
from w2v_ray.exports.hugging_face import HuggingFaceFolder
from w2v_ray.exports.names import FileNames, recording_id_of
from w2v_ray.exports.recordings import Recording, read_recordings
from w2v_ray.exports.rows import Planned, read_planned
from w2v_ray.exports.textgrid import textgrid

__all__ = ["CLASS_FORMATS", "FORMATS", "ExportSummary", "export", "recording_id_of"]

_MOST_INCOMPLETE = 100  # that a summary names


class Format(NamedTuple):
    """How recordings become files."""

    file: str
    """The extension of the files of recordings, or the name of the one file there is."""
    per: Literal["recording", "channel", "export"]
    """What has a file of its own."""
    render: Callable[[Recording, CaptionSettings], str] | None
    """The file, or the lines in it, of a recording; None: a folder of its own kind."""


FORMATS = {
    "srt": Format(".srt", "channel", captions.srt),
    "vtt": Format(".vtt", "channel", captions.vtt),
    "txt": Format(".txt", "channel", lambda recording, _: tables.txt(recording)),
    "tsv": Format(".tsv", "channel", lambda recording, _: tables.tsv(recording)),
    "textgrid": Format(".TextGrid", "recording", lambda recording, _: textgrid(recording)),
    "jsonl": Format("recordings.jsonl", "export", lambda recording, _: tables.jsonl(recording)),
    "ctm": Format("words.ctm", "export", lambda recording, _: tables.ctm(recording)),
    "rttm": Format("segments.rttm", "export", lambda recording, _: tables.rttm(recording)),
    "nemo": Format("manifest.jsonl", "export", lambda recording, _: tables.nemo(recording)),
    "hf": Format("", "export", None),
}
# What has no text.
CLASS_FORMATS = {
    "frames": {
        "rttm": Format("turns.rttm", "export", lambda recording, _: classes.rttm(recording)),
        "tsv": Format(".tsv", "channel", lambda recording, _: classes.turns_tsv(recording)),
        "jsonl": Format("turns.jsonl", "export", lambda recording, _: classes.turns_jsonl(recording)),
    },
    "labels": {
        "tsv": Format("labels.tsv", "export", lambda recording, _: classes.labels_tsv(recording)),
        "jsonl": Format("labels.jsonl", "export", lambda recording, _: classes.labels_jsonl(recording)),
    },
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExportSummary:
    """What an export wrote, and what of its recordings is missing there."""

    output: str
    table: str
    """Whose rows these are."""
    format: str
    root: str
    """What all recording ids begin with and names of files leave out; empty for formats of one file."""
    num_files: int
    num_recordings: int
    """Those with rows, which are in the export."""
    num_segments: int
    num_words: int
    """Of ``frames`` turns, of ``labels`` labels."""
    num_segments_unsure: int
    """Segments left out for their confidence."""
    num_recordings_rejected: int
    """Those with rejects and no rows, which are not in the export."""
    num_recordings_partial: int
    """Those of the export of which a part is in ``rejects/``."""
    num_recordings_pending: int
    """Those that are not, or not in full, published yet."""
    incomplete: list[dict[str, Any]]
    """What is missing of which recording and why: the first 100 parts."""

    @property
    def is_complete(self) -> bool:
        """Whether all of every recording is in the export."""
        return not (
            self.num_recordings_rejected or self.num_recordings_partial or self.num_recordings_pending
        )

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(dataclasses.asdict(self))


def export(
    source: str,
    *,
    format: str,
    output: str,
    recordings: Collection[str] | None = None,
    min_confidence: float | None = None,
    max_line_chars: int = 42,
    max_cue_seconds: float = 7.0,
    words: bool = False,
    table: str | None = None,
) -> ExportSummary:
    """Writes what a job has recognised, aligned or classified in another format.

    Args:
        source: The output of a job: folder or URL. What it has published so far is exported.
        format: ``srt``, ``vtt``, ``txt``, ``tsv`` or ``textgrid``: a file for each recording; ``jsonl``,
            ``ctm``, ``rttm`` or ``nemo``: one file; ``hf``: a folder for ``datasets.load_from_disk``. Of
            frames ``rttm``, ``tsv`` or ``jsonl``; of labels ``tsv`` or ``jsonl``, both one file.
        output: Folder or URL to write, not in ``source``. Files of the same names are replaced.
        recordings: Ids of the recordings to export; None: all.
        min_confidence: From 0 to 1: segments (of alignments: recordings) less sure than this are left out.
        max_line_chars: Characters in a line of a caption, of which each has two at most.
        max_cue_seconds: How long a caption is shown at most.
        words: Whether WebVTT says when each word begins.
        table: ``transcripts``, ``alignments``, ``frames`` or ``labels``; None: that of the job's own task.

    Raises:
        ConfigError: A setting is out of bounds.
        InputError: There is no recording with one of the ids.
        OutputError: ``source`` is no output that can be read, or ``output`` cannot be written.
        MissingExtraError: ``format`` is ``hf`` and the package datasets is not installed.
    """
    settings = CaptionSettings(max_line_chars=max_line_chars, max_cue_seconds=max_cue_seconds, words=words)
    _check(source, format, output, min_confidence, settings)
    planned = read_planned(source)
    if table is not None:
        planned = planned._replace(table=table)
    chosen = _format(format, planned.table)
    if planned.table == "frames" and min_confidence is not None:
        raise ConfigError(
            f"min_confidence is {min_confidence}, and frames have none; run their job with a higher onset"
        )
    if recordings is not None:
        _check_ids(recordings, planned)
    hugging_face = HuggingFaceFolder() if chosen.render is None else None
    counts = _Counts()
    with Folder(output) as folder:
        found = counts.counted(read_recordings(planned, recordings, min_confidence=min_confidence))
        root = ""
        if hugging_face is not None:
            with hugging_face.saved(found) as paths:
                for path in paths:
                    folder.add_file(path.name, path)
        elif chosen.per == "export":
            head = [classes.LABELS_HEAD] if chosen.file == "labels.tsv" else []
            lines = (_rendered(chosen, recording, settings) for recording in found)
            folder.add_lines(chosen.file, chain(head, lines))
        else:
            names = FileNames(planned.recording_ids, chosen.file)
            root = names.root
            for recording in found:
                for channel, part in _files(chosen, recording):
                    name = names.name(recording.recording_id, channel)
                    folder.add(name, _rendered(chosen, part, settings))
    return ExportSummary(
        output=output,
        table=planned.table,
        format=format,
        root=root,
        num_files=folder.num_files,
        **dataclasses.asdict(counts),
    )


@dataclasses.dataclass
class _Counts:
    """The numbers of a summary, while recordings pass."""

    num_recordings: int = 0
    num_segments: int = 0
    num_words: int = 0
    num_segments_unsure: int = 0
    num_recordings_rejected: int = 0
    num_recordings_partial: int = 0
    num_recordings_pending: int = 0
    incomplete: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def counted(self, recordings: Iterator[Recording]) -> Iterator[Recording]:
        """Those that have rows."""
        for recording in recordings:
            has_rows = bool(recording.segments or recording.num_unsure)
            self.num_recordings += has_rows
            self.num_segments += len(recording.segments)
            self.num_words += sum(len(segment.words) for segment in recording.segments)
            self.num_segments_unsure += recording.num_unsure
            if recording.rejects and has_rows:
                self.num_recordings_partial += 1
            elif recording.rejects:
                self.num_recordings_rejected += 1
            self.num_recordings_pending += bool(recording.is_pending)
            self._name(recording)
            if has_rows:
                yield recording

    def _name(self, recording: Recording) -> None:
        missing = [
            {"start_s": row["start_s"], "end_s": row["end_s"], "reason": row["message"]}
            for row in recording.rejects
        ]
        if recording.is_pending:
            missing.append({"start_s": None, "end_s": None, "reason": "not done yet"})
        room = _MOST_INCOMPLETE - len(self.incomplete)
        self.incomplete += [{"recording_id": recording.recording_id} | part for part in missing[:room]]


def _files(chosen: Format, recording: Recording) -> Iterator[tuple[int | None, Recording]]:
    """What has a file of its own, and the channel in its name where there are several."""
    channels = list(recording.channels())
    if chosen.per == "recording" or len(channels) == 1:
        yield None, recording
    else:
        yield from channels


def _rendered(chosen: Format, recording: Recording, settings: CaptionSettings) -> str:
    assert chosen.render is not None
    return chosen.render(recording, settings)


def _format(name: str, table: str) -> Format:
    if table == "embeddings":
        raise ConfigError(
            "embeddings are not exported; w2v_ray.read_embeddings reads them, as any Parquet reader does"
        )
    formats = CLASS_FORMATS.get(table, FORMATS)
    if name not in formats:
        raise ConfigError(f"format is {name!r}, and {table} have {', '.join(formats)}; choose one")
    return formats[name]


def _check(
    source: str, format: str, output: str, min_confidence: float | None, settings: CaptionSettings
) -> None:
    if format not in FORMATS:
        raise ConfigError(f"format is {format!r}, expected one of {', '.join(FORMATS)}; choose one")
    if min_confidence is not None and not 0 <= min_confidence <= 1:
        raise ConfigError(f"min_confidence is {min_confidence}; give a number from 0 to 1")
    if settings.words and format != "vtt":
        raise ConfigError(f"words is set, and {format} has no times of words in captions; choose vtt")
    if (stores.canonical(output) + "/").startswith(stores.canonical(source) + "/"):
        raise OutputError(
            f"output {output!r} is in {source!r}, which holds the job alone; name another folder"
        )


def _check_ids(recordings: Collection[str], planned: Planned) -> None:
    unknown = sorted(set(recordings) - set(planned.recording_ids))
    if unknown:
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise InputError(
            f"no recording of {planned.output!r} is called {unknown[0]!r}{more}; "
            f"give its recording_id as in the table, such as {planned.recording_ids[0]!r}"
        )
