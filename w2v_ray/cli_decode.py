"""The options of text decoders on the command line, and the command ``redecode``."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml

from w2v_ray.cli_job_files import add_dry_run
from w2v_ray.config import RedecodeConfig
from w2v_ray.decoder_config import DecoderConfig
from w2v_ray.errors import ConfigError, JobError, OutputError

__all__ = [
    "add_decoder_arguments",
    "add_decoder_workers",
    "add_redecode",
    "add_store_arguments",
    "decoder_values",
    "quieten_ray",
    "redecode_job",
    "run_redecode",
    "under_way",
    "whole_number",
]

_HELP = {
    "lm": "language model: ARPA, .w2vlm or KenLM file or URL, or 'checkpoint' for the model's own",
    "alpha": "weight of the language model (default: 0.5, or as the checkpoint says)",
    "beta": "what each word adds to a score (default: 1.5, or as the checkpoint says)",
    "unigrams": "file of the words that count as known, one a line (default: those of the language model)",
    "hotwords": "words to prefer: 'first,second', or a file with one a line",
    "hotword_weight": "how much to prefer them (default: 10)",
    "beam_width": "beams kept per frame (default: 100 with --lm or --hotwords; without, greedy decoding)",
    "beam_prune_logp": "drop beams this much below the best (default: -10)",
    "token_min_logp": "do not try tokens below it in a frame (default: -5)",
}
_EPILOG = """\
examples:
  w2v-ray transcribe recordings/ --output out --model ./checkpoint --keep-log-probs
  w2v-ray redecode out --output out-lm --lm model.arpa --alpha 0.7
"""


def add_decoder_arguments(parser: argparse.ArgumentParser, when: str = "") -> None:
    """Adds an option for each field of DecoderConfig, in a group of its own."""
    group = parser.add_argument_group(
        "text decoding" + when, "greedy unless --lm, --hotwords or --beam-width asks for a beam search"
    )
    for name, text in _HELP.items():
        kind = float if name.endswith(("alpha", "beta", "weight", "logp")) else str
        group.add_argument(
            f"--{name.replace('_', '-')}",
            type=int if name == "beam_width" else kind,
            metavar="N" if kind is float or name == "beam_width" else name.upper(),
            help=text,
        )
    group.add_argument("--characters", action="store_true", help="write times of characters too")
    add_decoder_workers(group, "1 for a search, else by the machine's size")


def add_decoder_workers(parser: Any, num_decoders: str = "by the machine's size") -> None:
    """Adds how many workers turn emissions into text, to a parser or a group of one."""
    for name, text in (
        ("num_decoders", f"text decoder workers (default: {num_decoders})"),
        ("decoder_threads", "CPU threads of each (default: as many as the encoders keep busy)"),
    ):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=text)


def add_store_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds how stores are asked."""
    parser.add_argument(
        "--stores",
        type=_mapping,
        metavar="YAML",
        help="limits and options by store, no secrets: '{s3: {endpoint_url: https://HOST, profile: NAME}}'",
    )
    parser.add_argument(
        "--allow-http",
        action="store_true",
        help="read http:// and https:// addresses, which are refused else",
    )


def _mapping(text: str) -> dict[str, Any]:
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("it is no mapping; write '{s3: {endpoint_url: https://HOST}}'")
    return value


def whole_number(text: str) -> int:
    """The type of an option that takes a number or none, and so also an argument that follows it."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no whole number; if it is an argument, put it before this option"
        ) from None


def decoder_values(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of DecoderConfig as they were given.

    Raises:
        ConfigError: The file of hotwords cannot be read.
    """
    values = {field.name: getattr(args, field.name) for field in dataclasses.fields(DecoderConfig)}
    return values | {"hotwords": _hotwords(args.hotwords)}


def add_redecode(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to the parser's others."""
    parser = commands.add_parser(
        "redecode",
        parents=[common],
        help="decode again what a job kept with --keep-log-probs, with another decoder",
        description="Decode the log-probabilities that a job kept again, into a table of their own: no\n"
        "audio is read and no encoder runs. Running it again does only what is missing.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="OUT", help="the output of a job with --keep-log-probs")
    parser.add_argument("--output", required=True, metavar="OUT2", help="folder or URL to write")
    parser.add_argument(
        "--max-reject-rate",
        type=float,
        default=1.0,
        metavar="N",
        help="share of items, 0 to 1, that may be rejected before the exit code is 3 (default: %(default)s)",
    )
    add_store_arguments(parser)
    add_dry_run(parser)
    add_decoder_arguments(parser)


def redecode_job(args: argparse.Namespace) -> RedecodeConfig:
    """The job that the options of the command ask for."""
    names = ("source", "output", "num_decoders", "decoder_threads", "max_reject_rate", "stores", "allow_http")
    return RedecodeConfig(**decoder_values(args) | {name: getattr(args, name) for name in names})


def run_redecode(job: RedecodeConfig, args: argparse.Namespace) -> Any:
    """Plans and runs a job, with its progress on standard error, and returns its summary."""
    from w2v_ray import console
    from w2v_ray.job import prepare_redecode, summarize

    with console.shown_planning(quiet=args.json):
        plan, vocabulary = prepare_redecode(job)
    if not plan.num_pending:
        return summarize(job, plan, [], 0.0)
    if not args.json:
        console.show_plan(plan)
    quieten_ray(args)
    from w2v_ray.pipeline import run_redecode_plan  # torch and Ray load only where there is work for them

    with console.shown_progress(quiet=args.json) as on_progress, under_way():
        return run_redecode_plan(job, plan, vocabulary, on_progress=on_progress)


@contextmanager
def under_way() -> Iterator[None]:
    """Takes an output that fails when work has begun for a job that failed, and not for a bad argument."""
    try:
        yield
    except OutputError as error:
        raise JobError(str(error)) from error


def quieten_ray(args: argparse.Namespace) -> None:
    """Hides what Ray's native part writes to standard error of how Ray Data passes its arguments."""
    if not args.debug:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")


def _hotwords(given: str | None) -> tuple[str, ...]:
    if given is None:
        return ()
    if os.path.isfile(given):
        try:
            with open(given, encoding="utf-8") as file:
                words = tuple(line.strip() for line in file if line.strip())
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"hotwords {given!r} cannot be read as text ({error}); write words") from error
        if not words:
            raise ConfigError(f"hotwords {given!r} holds no words; write one a line")
        return words
    return tuple(word.strip() for word in given.split(","))
