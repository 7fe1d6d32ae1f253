"""The commands that work on an output: ``audit``, ``compact`` and the arguments of ``retry-errors``."""

from __future__ import annotations

import argparse
from typing import Any

from w2v_ray.cli_job_files import add_dry_run

__all__ = ["add_commands", "audit", "compact"]

_NOT_PROVED = 4

_AUDIT_EPILOG = """\
exit codes:
  0  every planned item has one outcome, and every file is whole and the job's own
  2  OUT is no output, or its plan cannot be read
  4  something is wrong, or items are still pending
"""
_RETRY_EPILOG = """\
examples:
  w2v-ray retry-errors out --dry-run
  w2v-ray retry-errors out
  w2v-ray retry-errors out --reason ReadError --stage encode
  w2v-ray retry-errors out device=cuda num_encoders=2

The settings are those that the job left in OUT; key=value replaces one of them.
Those that decide what the rows are must stay as they were. If it is killed, it
goes on when the job or this command is run again.
"""


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the commands to an argument parser's others; ``common`` has the options of every command."""
    parser = commands.add_parser(
        "audit",
        parents=[common],
        help="prove that every item has one outcome and every file is whole",
        description="Read every published byte of a job's output and compare it with the plan: the\n"
        "items planned are those with rows and those rejected, nothing is there twice,\n"
        "and no file is foreign, missing or damaged.",
        epilog=_AUDIT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("output", metavar="OUT", help="the output folder of a job")

    parser = commands.add_parser(
        "compact",
        parents=[common],
        help="merge the files of an output into fewer, larger ones",
        description="Merge the files of a job's table into files of about a size. Rows, status, audit\n"
        "and resuming stay as they are; rejects and log-probabilities are not touched.\n"
        "It may be killed and run again; run it when nobody reads the table.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("output", metavar="OUT", help="the output folder of a job")
    parser.add_argument(
        "--target-mb",
        type=float,
        default=512.0,
        metavar="N",
        help="size of a file in MB, about as much memory is needed (default: %(default)g)",
    )

    parser = commands.add_parser(
        "retry-errors",
        parents=[common],
        help="do rejected items again",
        description="Plan the rejected items of a job's output again and run them. What comes of an item\n"
        "takes the place of what it gave before, its rows and its rejects.",
        epilog=_RETRY_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("output", metavar="OUT", help="the output folder of a job")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to replace")
    parser.add_argument(
        "--reason",
        action="append",
        default=[],
        metavar="CLASS",
        help="only items with such an error, as rejects name it; may be repeated",
    )
    parser.add_argument(
        "--stage",
        action="append",
        default=[],
        metavar="STAGE",
        help="only items that failed in this stage; may be repeated",
    )
    add_dry_run(parser)


def audit(args: argparse.Namespace) -> int:
    """Audits an output and shows what it found; 4 where it is not proved complete."""
    from w2v_ray import console
    from w2v_ray.output import audit

    found = audit(args.output)
    if args.json:
        print(found.to_json())
    else:
        console.show_audit(found)
    return 0 if found.is_complete else _NOT_PROVED


def compact(args: argparse.Namespace) -> int:
    """Merges the files of an output and says what became of them."""
    from w2v_ray import console
    from w2v_ray.output import compact

    done = compact(args.output, target_mb=args.target_mb)
    if args.json:
        print(done.to_json())
    else:
        before, after = console.size_text(done.bytes_before), console.size_text(done.bytes)
        print(f"{done.num_files_before} files of {before} are now {done.num_files} of {after}")
    return 0
