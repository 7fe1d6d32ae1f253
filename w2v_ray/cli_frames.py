"""The commands that compare an output with what is right: ``der`` for turns, ``accuracy`` for labels."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from w2v_ray.metrics import DiarizationErrors
    from w2v_ray.references import LabelComparison, TurnComparison

__all__ = ["COMMANDS", "accuracy", "add_commands", "der"]

_SHOWN = 20

_DER_EPILOG = """\
missed, false alarm and confusion are in percent of the speech of the reference;
the error rate (DER) is their sum. Speakers are matched so that it is least.
Of an output, turns of one class that touch are one.

examples:
  w2v-ray der out reference.rttm
  w2v-ray der out reference.rttm --collar 0.5 --skip-overlap
  w2v-ray der theirs.rttm reference.rttm --uem evaluated.uem --json
"""
_ACCURACY_EPILOG = """\
The table names recordings by their ids or the ends of these, in a column
recording_id, id, audio_filepath, file_name, file or path.

examples:
  w2v-ray accuracy out labels.csv
  w2v-ray accuracy out manifest.jsonl --label-key language --skip-missing
"""


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the commands to an argument parser's others; ``common`` has the options of every command."""
    parser = commands.add_parser(
        "der",
        parents=[common],
        help="compare turns with a reference: diarization error rate",
        description="Compare the turns of an output, or of an RTTM file, with those of a reference: the\n"
        "diarization error rate. Needs the extra speakers: pip install 'w2v-ray[speakers]'.",
        epilog=_DER_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("hypothesis", metavar="OUT|HYP.rttm", help="output folder of a job, or an RTTM file")
    parser.add_argument("reference", metavar="REFERENCE.rttm", help="what is right")
    parser.add_argument(
        "--collar",
        type=float,
        default=0.0,
        metavar="S",
        help="seconds around each start and end of the reference that do not count, half before and half "
        "after, as pyannote.metrics has it: 0.5 for what md-eval calls 0.25 (default: %(default)g)",
    )
    parser.add_argument(
        "--skip-overlap",
        action="store_true",
        help="do not count where turns of the reference overlap",
    )
    parser.add_argument("--uem", metavar="FILE", help="count only the recordings and times of this UEM file")
    _add_skip_missing(parser)

    parser = commands.add_parser(
        "accuracy",
        parents=[common],
        help="compare labels with a table of those that are right",
        description="Compare the labels of an output with those of a table: accuracy, and for each label\n"
        "precision, recall and F1.",
        epilog=_ACCURACY_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="OUT", help="output folder of a job, or URL")
    parser.add_argument("reference", metavar="TABLE", help=".csv or .tsv with a header, or .jsonl")
    parser.add_argument(
        "--label-key",
        default="label",
        metavar="KEY",
        help="column or key of the right label (default: %(default)s)",
    )
    parser.add_argument(
        "--per",
        default="recording",
        choices=["recording", "segment"],
        help="what has one label; the scores of a recording are the mean of its segments', weighted by "
        "length (default: %(default)s)",
    )
    parser.add_argument(
        "--top",
        type=int,
        default=5,
        metavar="K",
        help="say how often the right label is among the first 2 to K, where the table has so many "
        "(default: %(default)s)",
    )
    _add_skip_missing(parser)


def _add_skip_missing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--skip-missing",
        action="store_true",
        help="leave out recordings of the reference that OUT has no rows of; else an error",
    )


def der(args: argparse.Namespace) -> int:
    """Compares turns with a reference and shows the errors."""
    from w2v_ray.references import compare_turns

    found = compare_turns(
        args.hypothesis,
        args.reference,
        collar=args.collar,
        skip_overlap=args.skip_overlap,
        uem=args.uem,
        skip_missing=args.skip_missing,
    )
    if args.json:
        print(
            json.dumps(
                _seconds(found.total)
                | {
                    "num_missing": found.num_missing,
                    "num_unknown": found.num_unknown,
                    "recordings": [
                        {"recording": name} | _seconds(errors) for name, errors in found.recordings.items()
                    ],
                }
            )
        )
    else:
        print("\n".join(_turn_lines(found)))
    return 0


def accuracy(args: argparse.Namespace) -> int:
    """Compares labels with those that are right and shows how they fare."""
    from w2v_ray.references import compare_labels

    found = compare_labels(
        args.source,
        args.reference,
        label_key=args.label_key,
        per=args.per,
        top=args.top,
        skip_missing=args.skip_missing,
    )
    if args.json:
        report = found.report
        values = {
            "num": report.num,
            "num_missing": found.num_missing,
            "accuracy": report.accuracy,
            "balanced_accuracy": report.balanced_accuracy,
            "macro_f1": report.macro_f1,
            "top_k": {str(k): share for k, share in found.top_k.items()},
            "labels": {name: scores._asdict() for name, scores in report.labels.items()},
            "confusions": [
                {"label": right, "given": given, "count": count} for right, given, count in report.confusions
            ],
        }
        print(json.dumps(values))
    else:
        print("\n".join(_label_lines(found, args.per)))
    return 0


COMMANDS = {"accuracy": accuracy, "der": der}


def _seconds(errors: DiarizationErrors) -> dict[str, float]:
    return {
        "der": errors.rate,
        "total_s": errors.total_s,
        "correct_s": errors.correct_s,
        "missed_s": errors.missed_s,
        "false_alarm_s": errors.false_alarm_s,
        "confusion_s": errors.confusion_s,
    }


def _turn_lines(found: TurnComparison) -> Iterator[str]:
    yield f"{'DER':>8} {'missed':>8} {'false':>8} {'confused':>8} {'speech':>10}"
    worst = sorted(found.recordings.items(), key=lambda entry: -entry[1].rate)[:_SHOWN]
    for name, errors in [("all", found.total), *worst]:
        speech_s = errors.total_s or 1.0
        parts = (errors.missed_s, errors.false_alarm_s, errors.confusion_s)
        shares = " ".join(f"{seconds / speech_s:8.2%}" for seconds in parts)
        yield f"{errors.rate:8.2%} {shares} {errors.total_s:8.1f} s  {_printable(name)}"
    if len(found.recordings) > _SHOWN:
        rest = _count(len(found.recordings) - _SHOWN, "recording")
        yield f"and {rest} with fewer errors; --json names all"
    if found.num_missing:
        yield f"left out: {_count(found.num_missing, 'recording')} of which the output has no rows"
    if found.num_unknown:
        yield f"left out: {_count(found.num_unknown, 'recording')} that the reference does not name"


def _label_lines(found: LabelComparison, per: str) -> Iterator[str]:
    report = found.report
    hits = round(report.accuracy * report.num)
    yield f"accuracy  {report.accuracy:.2%}, {hits:,} of {_count(report.num, per)}"
    for k, share in found.top_k.items():
        if k > 1:
            yield f"top {k:<5} {share:.2%}"
    yield f"balanced  {report.balanced_accuracy:.2%}, the mean recall of the labels"
    yield f"macro F1  {report.macro_f1:.4f}"
    if found.num_missing:
        yield f"missing   {_count(found.num_missing, 'more recording')}, left out as there are no rows"
    width = max(5, *(len(_printable(name)) for name in report.labels))
    yield f"\n{'label':{width}} {'precision':>10} {'recall':>10} {'F1':>10} {'number':>8}"
    for name, scores in sorted(report.labels.items(), key=lambda entry: -entry[1].support):
        yield (
            f"{_printable(name):{width}} {scores.precision:10.2%} {scores.recall:10.2%} {scores.f1:10.4f} "
            f"{scores.support:8,}"
        )
    if report.confusions:
        yield "\nmost frequent confusions"
    for right, given, count in report.confusions[:_SHOWN]:
        label = "no label" if given is None else _printable(given)
        yield f"  {count:6,}  {_printable(right)} as {label}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
