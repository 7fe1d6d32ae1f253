"""The command ``status``: what of an output is done, or how far the run is that is under way."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from w2v_ray.errors import JobError, OutputError

__all__ = ["add_status", "status"]

_LEAST_S, _MOST_S = 0.1, 3600.0
_EPILOG = """\
examples:
  w2v-ray status out
  w2v-ray status --follow s3://bucket/out

exit codes of --follow, when the run has ended:
  0    it is done
  1    it failed, was interrupted, or has said nothing for a minute
"""


def add_status(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to the parser's others."""
    parser = commands.add_parser(
        "status",
        parents=[common],
        help="say what is done, pending and rejected, in hours of audio",
        description="Say what of a job's output is done, pending and rejected, in hours of audio; or follow\n"
        "the run that is under way, from any machine that reads the output.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("output", metavar="OUT", help="the output folder of a job")
    parser.add_argument(
        "--follow", action="store_true", help="show the progress of the last run until it ends"
    )
    parser.add_argument(
        "--interval",
        type=_seconds,
        default=5.0,
        metavar="S",
        help="seconds from one look at it to the next, with --follow (default: %(default)g)",
    )


def status(args: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from w2v_ray import console
    from w2v_ray.plan import status

    if args.follow:
        return _follow(args)
    found = status(args.output)
    if args.json:
        print(found.to_json())
    else:
        console.show_status(args.output, found)
    return 0


def _follow(args: argparse.Namespace) -> int:
    from w2v_ray.console import LiveLine, record_line
    from w2v_ray.run_record import newest_run, state_of

    line = LiveLine(sys.stdout)
    while True:
        record = newest_run(args.output)
        if record is None:
            raise OutputError(f"output {args.output!r} has no run to follow; start its job first")
        record["state"] = state = state_of(record, datetime.now(UTC))
        if args.json:
            print(_as_json(record), flush=True)
        else:
            line.show(record_line(record))
        if state != "running":
            break
        time.sleep(args.interval)
    if not args.json:
        line.end(keep=True)
    if state == "done":
        return 0
    raise JobError(_what_ended(record))


def _what_ended(record: Mapping[str, Any]) -> str:
    again = "run the same command again to go on from there"
    if record["state"] == "lost":
        return f"run {record['run']} has said nothing since {record['updated_at']}, so it is lost; {again}"
    if record["state"] == "interrupted":
        return f"run {record['run']} was interrupted; {again}"
    return f"run {record['run']} failed: {record['error']}"


def _as_json(record: Mapping[str, Any]) -> str:
    names = ("run", "state", "updated_at", "error")
    return json.dumps({name: record[name] for name in names} | record["progress"])


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number; write seconds, as 5") from None
    if not _LEAST_S <= value <= _MOST_S:
        raise argparse.ArgumentTypeError(f"{text} is not from {_LEAST_S:g} to {_MOST_S:g} seconds")
    return value
