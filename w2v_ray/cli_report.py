"""The command ``w2v-ray report``: one HTML page of what a job has made."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["add_report", "report"]

_EPILOG = """\
The page opens without a server or a network. It shows how much is done, how
fast each run was and how its rows differ from those of earlier runs, lengths,
confidences, speech rates, rejects with examples, a map of embeddings, and a
sample of transcripts with the words that are least sure; and with references,
word error rates.

examples:
  w2v-ray report out
  w2v-ray report out --text-key text --speaker-key speaker
  w2v-ray report out --reference said.csv --clusters speakers.parquet
  w2v-ray report s3://bucket/out --output s3://bucket/report.html
"""


def add_report(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to those of an argument parser; ``common`` has the options of every command."""
    parser = commands.add_parser(
        "report",
        parents=[common],
        help="write a page to look at: totals, throughput, confidence, rejects, drift, transcripts",
        description="Write one HTML page about what a job has made so far, from its tables and the records\n"
        "of its runs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="OUT", help="the output folder of a job, or its URL")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="file or URL to write (default: report.html in OUT, or here where OUT is a URL)",
    )
    parser.add_argument(
        "--reference",
        metavar="TABLE",
        help="what was said: .csv or .tsv with a header, or .jsonl; recordings by their ids or the ends of "
        "these, in recording_id, id, audio_filepath, file_name, file or path",
    )
    parser.add_argument(
        "--text-key",
        metavar="KEY",
        help="column or key of texts in TABLE (default: text); without --reference, the key of the "
        "manifest that holds what was said",
    )
    parser.add_argument("--speaker-key", metavar="KEY", help="key of the manifest that says who speaks")
    parser.add_argument(
        "--clusters",
        metavar="FILE",
        help="speakers as w2v-ray cluster wrote them, to colour the map of embeddings by",
    )


def report(args: argparse.Namespace) -> int:
    """Writes the page and says where it is."""
    from w2v_ray.report import report_place, write_report

    place = args.output or report_place(args.source)
    found = write_report(
        args.source,
        place,
        reference=args.reference,
        text_key=args.text_key,
        speaker_key=args.speaker_key,
        clusters=args.clusters,
    )
    print(found.to_json() if args.json else f"written to {place}")
    return 0
