"""The command ``w2v-ray``: it parses arguments, calls the library, and turns errors into exit codes."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from w2v_ray import __version__, cli_embeddings, cli_export, cli_frames, cli_lm, cli_output
from w2v_ray.audio_config import ON_TRUNCATED
from w2v_ray.cli_decode import (
    add_decoder_arguments,
    add_decoder_workers,
    add_redecode,
    add_store_arguments,
    decoder_values,
    quieten_ray,
    redecode,
    run_redecode,
    whole_number,
)
from w2v_ray.config import ATTN_IMPLEMENTATIONS, ON_CHANGE, JobConfig, RedecodeConfig, load_job
from w2v_ray.errors import (
    CheckpointError,
    ConfigError,
    InputError,
    LanguageModelError,
    OutputError,
    W2vRayError,
)

if TYPE_CHECKING:
    from w2v_ray.job import RunSummary
    from w2v_ray.plan import Plan, Status

__all__ = ["main"]

_KEPT_TOKENS = 8
# Their lines for debugging hold the headers of requests, and so session tokens and signatures.
_TALKATIVE = ("aiobotocore", "aiohttp", "azure", "botocore", "fsspec", "gcsfs", "google", "s3fs", "urllib3")
_EXIT_CODES = """\
exit codes:
  0    all done
  1    the job failed; what is published stays, and the same command goes on from there
  2    the arguments, or what they name, cannot be used; nothing was started
  3    done, with a share of rejects above --max-reject-rate, or with nothing but rejects
  4    `audit` found something wrong, or items that are still pending
  130  interrupted; the same command goes on from there
"""
_EXAMPLES = """\
examples:
  w2v-ray demo
  w2v-ray transcribe recordings/ --output out --model facebook/wav2vec2-base-960h
  w2v-ray transcribe s3://bucket/archive list.jsonl 'more/*.tar' --output s3://bucket/out --model ./checkpoint
  w2v-ray align manifest.jsonl --output out --model ./checkpoint --text-key text
  w2v-ray transcribe recordings/ --output out --model ./checkpoint --lm lm.arpa --hotwords "Yamagishi,Povey"
  w2v-ray status out
  w2v-ray export out --format srt --output captions
"""
_REFUSALS = (CheckpointError, ConfigError, InputError, LanguageModelError, OutputError)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    logging.basicConfig(
        level=logging.DEBUG if args.debug else logging.ERROR, format="%(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("w2v_ray.ray_auth").setLevel(logging.WARNING)
    for name in _TALKATIVE if args.debug else ():
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        return _COMMANDS[args.command](args)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on from here", file=sys.stderr)
        return 130
    except Exception as error:
        if args.debug:
            raise
        known = isinstance(error, W2vRayError)
        text = " ".join(str(error).split()) if known else _last_line(error)
        print(f"w2v-ray: {text}" + ("" if known else " (--debug shows where)"), file=sys.stderr)
        return 2 if isinstance(error, _REFUSALS) else 1


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show tracebacks and the log of every worker")
    common.add_argument("--json", action="store_true", help="print one line of JSON instead of text")

    parser = argparse.ArgumentParser(
        prog="w2v-ray",
        description="Turn audio archives into tables of transcripts.",
        epilog=_EXAMPLES + "\n" + _EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"w2v-ray {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        parents=[common],
        help="transcribe the small archive of real speech that comes with the package",
        description="Transcribe the archive that comes with the package, with the checkpoint beside it, and "
        "decode it again with a language model from what was kept of the encoder's work.",
    )
    demo.add_argument(
        "--output", default="w2v-ray-demo", metavar="OUT", help="folder to write (default: %(default)s)"
    )

    transcribe = commands.add_parser(
        "transcribe",
        parents=[common],
        help="transcribe recordings to a folder of Parquet files",
        description="Transcribe recordings to Parquet files. Running it again does only what is missing.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _job_arguments(transcribe)

    align = commands.add_parser(
        "align",
        parents=[common],
        help="find the words of given texts in their recordings",
        description="Align recordings with the texts that their manifest gives. Running it again does only "
        "what is missing.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _align_arguments(align)
    add_redecode(commands, common)

    run = commands.add_parser(
        "run",
        parents=[common],
        help="run a job file",
        description="Run a job from a YAML file whose keys are those of w2v_ray.JobConfig.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("job", metavar="JOB.yaml", help="the job file")
    run.add_argument(
        "--resume", action="store_true", help="go on where an earlier run ended, which is what every run does"
    )
    run.add_argument("overrides", nargs="*", metavar="key=value", help="settings to replace or add")
    _add_since_last(run)

    status = commands.add_parser(
        "status",
        parents=[common],
        help="say what is done, pending and rejected, in hours of audio",
        description="Say what of a job's output is done, pending and rejected, in hours of audio.",
    )
    status.add_argument("output", metavar="OUT", help="the output folder of a job")
    cli_export.add_export(commands, common)
    cli_output.add_commands(commands, common)
    cli_embeddings.add_commands(commands, common)
    cli_frames.add_commands(commands, common)
    cli_lm.add_commands(commands, common)
    return parser


def _encoder_arguments(parser: argparse.ArgumentParser) -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(JobConfig)}
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
        "attn_implementation": ("attention kernel", ATTN_IMPLEMENTATIONS),
        "dtype": ("type that the encoder computes in", ("float32", "float16", "bfloat16")),
        "on_change": (
            "recordings that have changed since they were planned: refuse, or do them anew",
            ON_CHANGE,
        ),
    }
    for name, (text, allowed) in choices.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            default=defaults[name],
            choices=allowed,
            help=f"{text} (default: %(default)s)",
        )
    parser.add_argument(
        "--channel",
        default=defaults["channel"],
        metavar="CHANNEL",
        help="mix, left, right, split (each for itself) or a number from 0 (default: %(default)s)",
    )
    parser.add_argument(
        "--on-truncated",
        default=defaults["on_truncated"],
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
            default=defaults[name],
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
    _add_since_last(parser)
    counts = {
        "num_encoders": "encoder workers (default: one per GPU, or one on a CPU)",
        "encoder_threads": "CPU threads of each encoder (default: all cores)",
    }
    for name, text in counts.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=text)
    add_store_arguments(parser)


def _add_since_last(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--since-last",
        action="store_true",
        help="do what is new or has changed since the last run, as --on-change new, and say what that is",
    )


def _job_arguments(parser: argparse.ArgumentParser) -> None:
    _encoder_arguments(parser)
    parser.add_argument(
        "--keep-log-probs",
        type=whole_number,
        nargs="?",
        const=_KEPT_TOKENS,
        metavar="K",
        help="keep the K likeliest tokens of each frame for `w2v-ray redecode` (default of K: %(const)s)",
    )
    add_decoder_arguments(parser)


def _align_arguments(parser: argparse.ArgumentParser) -> None:
    _encoder_arguments(parser)
    add_decoder_workers(parser)
    parser.add_argument(
        "--text-key",
        default="text",
        metavar="KEY",
        help="key of the text in the manifest (default: %(default)s)",
    )


def _transcribe(args: argparse.Namespace) -> int:
    values = {field.name: getattr(args, field.name) for field in dataclasses.fields(JobConfig)}
    return _run_job(JobConfig(**values | decoder_values(args) | {"inputs": tuple(args.inputs)}), args)


def _redecode(args: argparse.Namespace) -> int:
    return _finish(*redecode(args), args)


def _align(args: argparse.Namespace) -> int:
    from w2v_ray.align_config import AlignConfig

    names = [field.name for field in dataclasses.fields(AlignConfig) if hasattr(args, field.name)]
    values = {name: getattr(args, name) for name in names}
    return _run_job(AlignConfig(**values | {"inputs": tuple(args.inputs)}), args)


def _run(args: argparse.Namespace) -> int:
    return _run_job(load_job(args.job, args.overrides), args)


def _retry_errors(args: argparse.Namespace) -> int:
    from w2v_ray import console
    from w2v_ray.job import prepare_retry, recorded_job

    job = recorded_job(args.output, args.overrides)
    with console.shown_planning(quiet=args.json):
        plan = prepare_retry(job, reasons=args.reason, stages=args.stage)
    if not args.json:
        print(f"planned {plan.num_new} rejected items again", file=sys.stderr)
    return _run_planned(job, plan, args)


def _run_job(job: JobConfig, args: argparse.Namespace) -> int:
    from w2v_ray import console
    from w2v_ray.job import prepare

    since_last = getattr(args, "since_last", False)
    if since_last:
        job = dataclasses.replace(job, on_change="new")
    with console.shown_planning(quiet=args.json):
        plan = prepare(job)
    if since_last and not args.json:
        num_new = plan.num_new - plan.num_changed
        print(f"since the last plan: {num_new} items new, {plan.num_changed} changed", file=sys.stderr)
    return _run_planned(job, plan, args)


def _run_planned(job: JobConfig, plan: Plan, args: argparse.Namespace) -> int:
    from w2v_ray import console
    from w2v_ray.job import summarize

    if not plan.num_pending:
        summary = summarize(job, plan, [], 0.0)
    else:
        if not args.json:
            console.show_plan(plan)
        quieten_ray(args)
        from w2v_ray.pipeline import run_plan  # torch and Ray load only where there is work for them

        with console.shown_progress(quiet=args.json) as on_progress:
            summary = run_plan(job, plan, on_progress=on_progress)
    return _finish(job, summary, args)


def _finish(job: JobConfig | RedecodeConfig, summary: RunSummary, args: argparse.Namespace) -> int:
    from w2v_ray import console
    from w2v_ray.align_config import AlignConfig

    if args.json:
        print(summary.to_json())
    elif isinstance(job, AlignConfig):
        console.show_summary(summary, did="aligned", rows="recording")
    elif isinstance(job, RedecodeConfig):
        console.show_summary(summary, did="decoded again")
    else:
        console.show_summary(summary)
    if summary.reject_rate == 1.0 and not _status_of(job.output).num_rows:
        # A limit of 1 means that there is none, and yet such a job has done nothing.
        print(
            f"w2v-ray: every item was rejected; see rejects/ in {job.output} for the reason of each",
            file=sys.stderr,
        )
        return 3
    if summary.reject_rate > job.max_reject_rate:
        print(
            f"w2v-ray: {summary.reject_rate:.1%} of the items were rejected, above --max-reject-rate "
            f"{job.max_reject_rate:g}; see rejects/ in {job.output} for the reason of each",
            file=sys.stderr,
        )
        return 3
    return 0


def _demo(args: argparse.Namespace) -> int:
    from w2v_ray import console, demo

    demo.clear(args.output)
    job = JobConfig(
        inputs=demo.INPUTS,
        output=args.output,
        model=str(demo.CHECKPOINT),
        shard_seconds=30,
        keep_log_probs=_KEPT_TOKENS,
    )
    again = RedecodeConfig(
        source=args.output, output=demo.redecoded(args.output), lm=str(demo.LANGUAGE_MODEL)
    )
    quieten_ray(args)
    from w2v_ray.pipeline import running_ray

    with running_ray():  # one for both
        code = _run_job(job, args)
        if not args.json:
            print("decoding again with a language model, from what was kept of the encoder", file=sys.stderr)
        run_redecode(again, args)
    if not args.json:
        console.show_demo(args.output)
    return code


def _status(args: argparse.Namespace) -> int:
    from w2v_ray import console

    found = _status_of(args.output)
    if args.json:
        print(found.to_json())
    else:
        console.show_status(args.output, found)
    return 0


def _status_of(output: str) -> Status:
    from w2v_ray.plan import status

    return status(output)


_COMMANDS = {
    **cli_embeddings.COMMANDS,
    **cli_frames.COMMANDS,
    "align": _align,
    "audit": cli_output.audit,
    "compact": cli_output.compact,
    "demo": _demo,
    "export": cli_export.main,
    "lm": cli_lm.main,
    "redecode": _redecode,
    "retry-errors": _retry_errors,
    "run": _run,
    "status": _status,
    "transcribe": _transcribe,
}


def _last_line(error: Exception) -> str:
    """What went wrong, without Ray's layers around it."""
    cause = getattr(error, "cause", None)
    text = str(cause if isinstance(cause, Exception) else error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{type(cause or error).__name__}: {lines[-1] if lines else 'no message'}"


if __name__ == "__main__":
    sys.exit(main())
