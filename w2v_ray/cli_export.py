"""The command ``w2v-ray export``: tables of an output in the formats of other programs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from w2v_ray.exports import ExportSummary

__all__ = ["add_export", "main"]

_NOUNS = {"frames": "turn", "labels": "label"}
_NAMED = 5  # missing parts that are shown one by one
_FORMATS = """\
formats:
  srt vtt        captions of two lines at most, a file for each recording
  txt            the text, a file for each recording
  tsv            start_ms, end_ms and text of each segment, a file for each recording
  textgrid       words, and characters where the table has them, for Praat, a file for each recording
  jsonl          a line for each recording with all that is known of it, in recordings.jsonl
  ctm            NIST's times of words, in words.ctm
  rttm           a SPEAKER line for each segment with words, in segments.rttm
  nemo           a manifest of NeMo with a line for each segment with text, in manifest.jsonl
  hf             a folder for datasets.load_from_disk

of frames: rttm (turns.rttm), jsonl (turns.jsonl), and tsv with a file for each recording
of labels: tsv (labels.tsv) and jsonl (labels.jsonl) with all recordings in one file

examples:
  w2v-ray export out --format srt --output captions
  w2v-ray export out --format vtt --words --output captions --recording /archive/a.wav
  w2v-ray export s3://bucket/out --format ctm --output s3://bucket/scoring --min-confidence 0.5
  w2v-ray export out --table frames --format rttm --output turns

exit codes:
  0    all that is published is exported
  1    the export failed
  2    the arguments, or what they name, cannot be used
  3    with --strict: something of a recording is rejected or not done yet; the rest is exported
"""
_NAMES = "srt vtt txt tsv jsonl ctm rttm textgrid nemo hf".split()  # noqa: SIM905 - as in the help


def add_export(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to those of an argument parser; ``common`` has the options of every command."""
    parser = commands.add_parser(
        "export",
        parents=[common],
        help="write transcripts as SRT, WebVTT, CTM, TextGrid and others, turns as RTTM, labels as TSV",
        description="Write what a job has found in another format, from its tables alone.",
        epilog=_FORMATS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="OUT", help="the output folder of a job, or its URL")
    parser.add_argument("--format", required=True, choices=_NAMES, help="what to write; see below")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder or URL to write, not in OUT")
    parser.add_argument(
        "--table",
        choices=["transcripts", "alignments", "frames", "labels"],
        help="which table of the output (default: that of the job's own task)",
    )
    parser.add_argument(
        "--recording",
        action="append",
        metavar="ID",
        help="recording_id of a recording to export, any number of times (default: all)",
    )
    parser.add_argument(
        "--min-confidence",
        type=float,
        metavar="N",
        help="leave out segments less sure than this, 0 to 1; of alignments, recordings with a lower score",
    )
    parser.add_argument(
        "--max-line-chars",
        type=int,
        default=42,
        metavar="N",
        help="characters in a line of a caption (default: %(default)s)",
    )
    parser.add_argument(
        "--max-cue-seconds",
        type=float,
        default=7.0,
        metavar="N",
        help="how long a caption is shown at most (default: %(default)s)",
    )
    parser.add_argument("--words", action="store_true", help="for vtt: say when each word begins")
    parser.add_argument(
        "--strict",
        action="store_true",
        help="exit with code 3 if anything of a recording is rejected or not done yet",
    )


def main(args: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from w2v_ray.exports import export

    summary = export(
        args.source,
        format=args.format,
        output=args.output,
        recordings=args.recording,
        min_confidence=args.min_confidence,
        max_line_chars=args.max_line_chars,
        max_cue_seconds=args.max_cue_seconds,
        words=args.words,
        table=args.table,
    )
    if args.json:
        print(summary.to_json())
    else:
        print("\n".join(_lines(summary)))
    if args.strict and not summary.is_complete:
        print("w2v-ray: the export is not complete, and --strict is set", file=sys.stderr)
        return 3
    return 0


def _lines(summary: ExportSummary) -> Iterator[str]:
    """The closing lines: what was written, and what was not."""
    noun = _NOUNS.get(summary.table, "word")
    yield (
        f"exported   {_count(summary.num_recordings, 'recording')} with {_count(summary.num_words, noun)} "
        f"in {_count(summary.num_segments, 'segment')}"
    )
    if summary.num_segments_unsure:
        yield f"unsure     {_count(summary.num_segments_unsure, 'segment')} left out"
    kinds = {
        "rejected": (summary.num_recordings_rejected, "in full, and not exported"),
        "partial": (summary.num_recordings_partial, "exported without what was rejected"),
        "not done": (summary.num_recordings_pending, "exported without what is not published yet"),
    }
    for kind, (number, meaning) in kinds.items():
        if number:
            yield f"{kind:10} {_count(number, 'recording')} {meaning}"
    for part in summary.incomplete[:_NAMED]:
        yield f"  {_printable(part['recording_id'])}{_span(part)}: {part['reason']}"
    if len(summary.incomplete) > _NAMED:
        yield "  and more; --json names the first hundred, and rejects/ has all that is rejected"
    yield f"written to {summary.output}: {_count(summary.num_files, 'file')}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _span(part: dict[str, Any]) -> str:
    start_s, end_s = part["start_s"], part["end_s"]
    if start_s is None and end_s is None:
        return ""
    return f" from {start_s or 0:g} s" + ("" if end_s is None else f" to {end_s:g} s")


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
