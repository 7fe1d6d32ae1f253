"""The commands that run a job over recordings: their options, and the job that these make."""

from __future__ import annotations

import argparse
import dataclasses
import re
from typing import Any

from w2v_ray.align_config import AlignConfig
from w2v_ray.audio_config import ON_TRUNCATED
from w2v_ray.cli_decode import (
    add_decoder_arguments,
    add_decoder_workers,
    add_store_arguments,
    decoder_values,
    whole_number,
)
from w2v_ray.cli_job_files import add_dry_run
from w2v_ray.config import ON_CHANGE, JobConfig
from w2v_ray.encoder_config import ATTN_IMPLEMENTATIONS, DTYPES, NORMALIZE
from w2v_ray.head_config import ACTIVATIONS, EMBEDDING_DTYPES, POOLINGS, TASKS

__all__ = ["KEPT_TOKENS", "add_job_commands", "add_since_last", "job_of"]

KEPT_TOKENS = 8
_COMMANDS = {
    "transcribe": (
        "transcribe recordings to a folder of Parquet files",
        "Transcribe recordings to Parquet files.",
    ),
    "embed": (
        "write a vector for each segment, by which speakers can be told apart",
        "Write an embedding of each segment of recordings to Parquet files.",
    ),
    "classify": (
        "name the language, emotion, keyword or what else a classifier knows of each segment",
        "Write the likeliest labels of each segment of recordings to Parquet files.",
    ),
    "frames": (
        "say who or what is active when",
        "Write what is active in each frame of recordings, and in which turns, to Parquet files.",
    ),
}
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(JobConfig)}
_AGAIN = " Running it again does only what is missing."


def add_job_commands(commands: Any, common: argparse.ArgumentParser, *, epilog: str) -> None:
    """Adds the commands to the parser's others."""
    for task, (text, description) in _COMMANDS.items():
        parser = commands.add_parser(
            task,
            parents=[common],
            help=text,
            description=description + _AGAIN,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        _encoder_arguments(parser)
        parser.add_argument(
            "--also",
            type=_also,
            action="extend",
            default=[],
            metavar="TASK=MODEL[,TASK=MODEL...]",
            help="do other tasks in the same pass, with checkpoints that have the same encoder",
        )
        groups = {"embed": _embed_group, "classify": _classify_group, "frames": _frames_group}
        if task == "transcribe":
            parser.add_argument(
                "--keep-log-probs",
                type=whole_number,
                nargs="?",
                const=KEPT_TOKENS,
                metavar="K",
                help="keep the K likeliest tokens a frame for `w2v-ray redecode` (default of K: %(const)s)",
            )
            _language_group(parser)
        else:
            groups.pop(task)(parser, "")
        add_decoder_arguments(parser, "" if task == "transcribe" else " (with --also transcribe)")
        for other, add in groups.items():
            add(parser, f" (with --also {other})")
    align = commands.add_parser(
        "align",
        parents=[common],
        help="find the words of given texts in their recordings",
        description="Align recordings with the texts that their manifest gives." + _AGAIN,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _encoder_arguments(align)
    _language_group(align)
    add_decoder_workers(align)
    align.add_argument(
        "--text-key",
        default="text",
        metavar="KEY",
        help="key of the text in the manifest (default: %(default)s)",
    )


def job_of(args: argparse.Namespace) -> JobConfig:
    """The job that the options of one of these commands ask for.

    Raises:
        ConfigError: A value is out of bounds, or a file of hotwords cannot be read.
    """
    kind = AlignConfig if args.command == "align" else JobConfig
    names = [field.name for field in dataclasses.fields(kind) if hasattr(args, field.name)]
    values = {name: getattr(args, name) for name in names} | {"inputs": tuple(args.inputs)}
    if kind is JobConfig:
        values |= decoder_values(args) | {"task": args.command, "also": tuple(args.also)}
    return kind(**values)


def _also(text: str) -> list[str]:
    """The entries of a list, whose commas are those before the name of a task."""
    return re.split(rf",(?=(?:{'|'.join(TASKS)})(?:=|,|$))", text)


def _language_group(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("languages, of a checkpoint with an adapter for each")
    group.add_argument("--language-key", metavar="KEY", help="key of the language in the manifest")
    group.add_argument(
        "--language",
        metavar="NAME",
        help="language of all recordings, or of those whose language is told nowhere (default: these fail)",
    )
    group.add_argument(
        "--languages-from",
        metavar="OUT",
        help="output of `w2v-ray classify` with a checkpoint that identifies languages",
    )


def _encoder_group(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how the encoder computes")
    _choice(group, "attn_implementation", ATTN_IMPLEMENTATIONS, "attention kernel")
    _choice(group, "dtype", DTYPES, "type that it computes in")
    group.add_argument(
        "--max-batch-seconds",
        type=float,
        metavar="N",
        help="seconds of audio that are encoded at once (default: 16 on a CPU, tried out on a GPU)",
    )
    group.add_argument(
        "--deterministic",
        action="store_true",
        help="encode each segment alone, so that not a bit of it depends on its neighbours",
    )
    group.add_argument(
        "--reference-batch",
        type=int,
        metavar="N",
        help="encode padded batches of N segments, with the numbers of runs that did (default: no padding)",
    )
    group.add_argument(
        "--chunk-length-s",
        type=float,
        metavar="N",
        help="hear longer segments in overlapping windows of N seconds (default: whole)",
    )
    group.add_argument(
        "--stride-length-s",
        type=float,
        metavar="N",
        help="seconds at both ends of a window that are not kept (default: a sixth of it)",
    )
    _choice(group, "normalize", NORMALIZE, "normalize each window, or the whole segment")


def _embed_group(parser: argparse.ArgumentParser, when: str) -> None:
    group = parser.add_argument_group("embeddings" + when)
    _choice(group, "pooling", POOLINGS, "the head for speakers, or the mean of a layer's frames")
    group.add_argument("--layer", type=int, metavar="N", help="layer to pool, from 0 (default: the last)")
    _choice(group, "embedding_dtype", EMBEDDING_DTYPES, "type of the numbers in the table")


def _classify_group(parser: argparse.ArgumentParser, when: str) -> None:
    group = parser.add_argument_group("labels" + when)
    _number(group, "top_k", int, "labels of a segment, at most")
    group.add_argument(
        "--threshold",
        type=float,
        metavar="X",
        help="name all labels of at least this score, each judged by itself (default: the best ones)",
    )


def _frames_group(parser: argparse.ArgumentParser, when: str) -> None:
    group = parser.add_argument_group("frames" + when)
    _choice(group, "activation", ACTIVATIONS, "sigmoid: each class by itself; softmax: one at a time")
    _number(group, "onset", float, "a turn begins where the score reaches this, 0 to 1")
    _number(group, "offset", float, "a turn ends where the score falls below this, 0 to 1")
    _number(group, "min_on_seconds", float, "shorter turns are dropped")
    _number(group, "min_off_seconds", float, "shorter pauses within a turn are closed")


def _choice(group: Any, name: str, choices: tuple[str, ...], text: str) -> None:
    group.add_argument(
        f"--{name.replace('_', '-')}",
        choices=choices,
        default=_DEFAULTS[name],
        help=f"{text} (default: %(default)s)",
    )


def _number(group: Any, name: str, kind: type, text: str) -> None:
    group.add_argument(
        f"--{name.replace('_', '-')}",
        type=kind,
        default=_DEFAULTS[name],
        metavar="N" if kind is int else "X",
        help=f"{text} (default: %(default)s)",
    )


def add_since_last(parser: argparse.ArgumentParser) -> None:
    """Adds the option that says what is new."""
    parser.add_argument(
        "--since-last",
        action="store_true",
        help="do what is new or has changed since the last run, as --on-change new, and say what that is",
    )


def _encoder_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="folder, glob, audio file, list, manifest, table, tar or dataset (docs/inputs.md); path or URL",
    )
    parser.add_argument("--output", required=True, metavar="OUT", help="folder or URL to write")
    parser.add_argument("--model", required=True, help="checkpoint folder or Hugging Face hub id")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument(
        "--audio-column",
        metavar="NAME",
        help="column of a table that holds or names the audio (default: found)",
    )
    choices = {
        "device": ("auto, cpu, cuda or cuda:N", None),
        "on_change": (
            "recordings that have changed since they were planned: refuse, or do them anew",
            ON_CHANGE,
        ),
    }
    for name, (text, allowed) in choices.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            default=_DEFAULTS[name],
            choices=allowed,
            help=f"{text} (default: %(default)s)",
        )
    parser.add_argument(
        "--channel",
        default=_DEFAULTS["channel"],
        metavar="CHANNEL",
        help="mix, left, right, split (each for itself) or a number from 0 (default: %(default)s)",
    )
    parser.add_argument(
        "--on-truncated",
        default=_DEFAULTS["on_truncated"],
        choices=ON_TRUNCATED,
        help="what to do with audio that is shorter than its header says (default: %(default)s)",
    )
    parser.add_argument(
        "--vad", metavar="MODULE:FUNCTION", help="voice activity detector that says where to cut"
    )
    parser.add_argument(
        "--drop-non-speech",
        dest="keep_non_speech",
        action="store_false",
        help="recognise only what --vad calls speech",
    )
    numbers = {
        "shard_seconds": "seconds of audio in a shard, the unit of work and of one output file",
        "max_segment_seconds": "longest piece the encoder takes at once, in seconds",
        "max_reject_rate": "share of items, 0 to 1, that may be rejected before the exit code is 3",
        "item_deadline_seconds": "an item that takes longer at a stage, its own length aside, is rejected",
    }
    for name, text in numbers.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=float,
            default=_DEFAULTS[name],
            metavar="N",
            help=f"{text} (default: %(default)s)",
        )
    parser.add_argument(
        "--stall-seconds",
        type=float,
        metavar="N",
        help="end the job where nothing moves for so long (default: 1800, or more for long shards)",
    )
    parser.add_argument(
        "--partition-by",
        metavar="KEY",
        help="put the files of the table into folders KEY=VALUE, by a key of the manifest",
    )
    add_since_last(parser)
    counts = {
        "num_encoders": "encoder workers (default: as GPUs have room for, or one on each machine without)",
        "max_encoders": "encoder workers, once machines join the cluster (default: those of the beginning)",
        "encoder_threads": "CPU threads of each encoder (default: all cores)",
    }
    for name, text in counts.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=text)
    parser.add_argument(
        "--gpus-per-encoder",
        type=float,
        default=_DEFAULTS["gpus_per_encoder"],
        metavar="X",
        help="share of a GPU, 0.01 to 1, that an encoder reserves (default: %(default)s)",
    )
    parser.add_argument(
        "--accelerator-type", metavar="NAME", help="GPUs to encode on: L4, A10G, H100 (default: any)"
    )
    _encoder_group(parser)
    add_store_arguments(parser)
    add_dry_run(parser)
