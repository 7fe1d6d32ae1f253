"""The command ``doctor``: what is here and what is amiss, a line for each finding."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from w2v_ray.cli_decode import add_store_arguments, quieten_ray
from w2v_ray.errors import ConfigError

if TYPE_CHECKING:
    from w2v_ray.doctor import Finding

__all__ = ["add_commands", "doctor"]

_EPILOG = """\
examples:
  w2v-ray doctor
  w2v-ray doctor s3://bucket/archive --model facebook/wav2vec2-base-960h
  w2v-ray doctor s3://bucket/out --write --address auto

exit codes:
  0  no problems, perhaps notes
  1  problems, each with its fix
  2  the arguments cannot be used
"""
_COLOURS = {"ok": "green", "note": "yellow", "problem": "red"}
_LEVEL_WIDTH = 7
_NAME_WIDTH = 17


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to an argument parser's others; ``common`` has the options of every command."""
    parser = commands.add_parser(
        "doctor",
        parents=[common],
        help="check what is installed, the machine, stores and a cluster, with the fix for each finding",
        description="Check Python, packages, GPUs, codecs and limits of this machine, the places of a\n"
        "job, and the nodes of a Ray cluster. Ray is not started, credentials are not shown.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "places", nargs="*", metavar="PATH_OR_URL", help="files or folders that have to be readable"
    )
    parser.add_argument(
        "--write",
        action="store_true",
        help="see that they can be written too, by a small file that is removed again",
    )
    parser.add_argument(
        "--address",
        metavar="ADDRESS",
        help="Ray cluster to ask: auto, HOST:PORT or ray://HOST:PORT (default: RAY_ADDRESS, or none)",
    )
    parser.add_argument("--model", metavar="M", help="checkpoint folder or hub id that has to be readable")
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of a hub id")
    add_store_arguments(parser)


def doctor(args: argparse.Namespace) -> int:
    """Makes the checks and shows what they find; 1 where there is a problem."""
    from w2v_ray.doctor import checks, diagnose

    if args.write and not args.places:
        raise ConfigError("--write is given without a place; name the folder or URL that is to be written")
    if args.stores or args.allow_http:
        from w2v_ray import stores
        from w2v_ray.store_config import store_config_of

        stores.use(store_config_of(args.stores, allow_http=args.allow_http))
    quieten_ray(args)
    asked = checks(
        args.places,
        write=args.write,
        address=args.address,
        model=args.model,
        revision=args.revision,
    )
    show = _printer() if not args.json else None
    found: list[Finding] = []
    for finding in diagnose(asked):
        found.append(finding)
        if show is not None:
            show(finding)
    num_problems = sum(finding.level == "problem" for finding in found)
    num_notes = sum(finding.level == "note" for finding in found)
    if show is None:
        findings = [dataclasses.asdict(finding) for finding in found]
        print(json.dumps({"num_problems": num_problems, "num_notes": num_notes, "findings": findings}))
    else:
        counts = [_count(num_problems, "problem"), _count(num_notes, "note")]
        print(f"{counts[0]}, {counts[1]}" if num_problems else f"no problems, {counts[1]}")
    return 1 if num_problems else 0


def _printer() -> Callable[[Finding], None]:
    """Shows a finding: in columns in a terminal, on lines that can be searched elsewhere."""
    if not sys.stdout.isatty():
        return _print_plain
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, markup=False, emoji=False)

    def show(finding: Finding) -> None:
        row = Table.grid(padding=(0, 1), expand=False)
        row.add_column(width=_LEVEL_WIDTH, no_wrap=True)
        if console.width >= 60:
            row.add_column(width=_NAME_WIDTH, overflow="fold")
        row.add_column(overflow="fold")
        names = [finding.check] if console.width >= 60 else []
        text = finding.text if names else f"{finding.check}: {finding.text}"
        row.add_row(Text(finding.level, _COLOURS[finding.level]), *names, text)
        if finding.fix:
            row.add_row("", *[""] * len(names), Text(f"fix: {finding.fix}", "bold"))
        console.print(row)

    return show


def _print_plain(finding: Finding) -> None:
    fix = f" | fix: {finding.fix}" if finding.fix else ""
    print(f"{finding.level:{_LEVEL_WIDTH}} {finding.check:{_NAME_WIDTH}} {finding.text}{fix}", flush=True)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
