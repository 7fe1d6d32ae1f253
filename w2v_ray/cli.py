"""The command ``w2v-ray``: it parses arguments, calls the library, and turns errors into exit codes."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import select
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from w2v_ray import (
    __version__,
    cli_bench,
    cli_cluster,
    cli_doctor,
    cli_embeddings,
    cli_export,
    cli_frames,
    cli_job_files,
    cli_jobs,
    cli_lm,
    cli_output,
    cli_report,
    cli_status,
)
from w2v_ray.cli_decode import add_redecode, quieten_ray, redecode_job, run_redecode, under_way
from w2v_ray.config import JobConfig, RedecodeConfig
from w2v_ray.errors import (
    CheckpointError,
    ConfigError,
    InputError,
    LanguageModelError,
    MissingExtraError,
    OutputError,
    W2vRayError,
)
from w2v_ray.failures import described
from w2v_ray.job_file import load_job
from w2v_ray.termination import Terminated, taken_sigterm

if TYPE_CHECKING:
    from w2v_ray.job import RunSummary
    from w2v_ray.plan import Plan, Status

__all__ = ["main"]

# Their lines for debugging hold the headers of requests, and so session tokens and signatures.
_TALKATIVE = ("aiobotocore", "aiohttp", "azure", "botocore", "fsspec", "gcsfs", "google", "s3fs", "urllib3")
_EXIT_CODES = """\
exit codes:
  0    all done
  1    the job failed; what is published stays, and the same command goes on from there
  2    the arguments, or what they name, cannot be used; nothing was started
  3    done, with a share of rejects above --max-reject-rate, or with nothing but rejects
  4    `audit` found something wrong, or items that are still pending
  130  interrupted by Ctrl-C; the same command goes on from there
  141  what read its output ended first, as `head` does
  143  ended by SIGTERM; the same command goes on from there
"""
_EXAMPLES = """\
examples:
  w2v-ray demo
  w2v-ray transcribe recordings/ --output out --model facebook/wav2vec2-base-960h
  w2v-ray transcribe s3://bucket/archive list.jsonl 'more/*.tar' --output s3://bucket/out --model ./checkpoint
  w2v-ray embed recordings/ --output out --model ./speakers
  w2v-ray align manifest.jsonl --output out --model ./checkpoint --text-key text
  w2v-ray transcribe recordings/ --output out --model ./checkpoint --lm lm.arpa --hotwords "Yamagishi,Povey"
  w2v-ray transcribe recordings/ --output out --model ./checkpoint --dry-run
  w2v-ray run pipelines/transcribe.yaml output=out/try
  w2v-ray status out
  w2v-ray report out
  w2v-ray status --follow s3://bucket/out
  w2v-ray export out --format srt --output captions
  w2v-ray bench recordings/ --model ./checkpoint
  w2v-ray plan --hours 100000 --deadline 24h
  w2v-ray doctor s3://bucket/archive --address auto
"""
_UNREAD = 141  # as shells say of a program that wrote to a pipe which nobody reads any more
_DONE = {
    "transcribe": "transcribed",
    "embed": "embedded",
    "classify": "classified",
    "frames": "labelled",
    "align": "aligned",
}
_REFUSALS = (
    CheckpointError,
    ConfigError,
    InputError,
    LanguageModelError,
    MissingExtraError,
    OutputError,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    args = _parsed(_parser(), argv)
    logging.basicConfig(
        level=logging.DEBUG if args.debug else logging.ERROR, format="%(levelname)s %(name)s: %(message)s"
    )
    for name in ("w2v_ray.machines", "w2v_ray.ray_auth"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in _TALKATIVE if args.debug else ():
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        with taken_sigterm():
            code = _COMMANDS[args.command](args)
        sys.stdout.flush()  # here, where it can be seen that nobody reads it
        return code
    except KeyboardInterrupt as stop:
        what, code = ("ended by SIGTERM", 143) if isinstance(stop, Terminated) else ("interrupted", 130)
        print(f"{what}; what is published stays: run the same command again to go on", file=sys.stderr)
        return code
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _is_unread():
            return _UNREAD
        if args.debug:
            raise
        known = isinstance(error, W2vRayError)
        text = " ".join(str(error).split()) if known else described(error)
        print(f"w2v-ray: {text}" + ("" if known else " (--debug shows where)"), file=sys.stderr)
        return 2 if isinstance(error, _REFUSALS) else 1


def _is_unread() -> bool:
    """Whether what reads standard output has ended, as `head` does; what is left of it is dropped then."""
    try:
        number = sys.stdout.fileno()
    except (OSError, ValueError):  # no file at all
        return False
    poll = select.poll()
    poll.register(number, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)  # else the interpreter would complain when it ends
    os.close(nowhere)
    return True


def _parsed(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; argparse takes those of a variable number only where they stand together."""
    args, left = parser.parse_known_args(argv)
    if left and (not hasattr(args, "overrides") or any(text.startswith("-") for text in left)):
        how = "; settings of the job are given as key=value" if hasattr(args, "overrides") else ""
        parser.error(f"unrecognized arguments: {' '.join(left)}{how}")
    if left:
        args.overrides += left
    return args


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show tracebacks and the log of every worker")
    common.add_argument("--json", action="store_true", help="print one line of JSON instead of text")

    parser = argparse.ArgumentParser(
        prog="w2v-ray",
        description="Turn audio archives into tables: transcripts, speaker embeddings, labels, turns.",
        epilog=_EXAMPLES + "\n" + _EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"w2v-ray {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        parents=[common],
        help="transcribe, embed and classify the real speech that comes with the package",
        description="Transcribe the archive that comes with the package and embed its speakers in the same "
        "pass, decode it again with a language model from what was kept of the encoder's work, and classify "
        "single words; with the checkpoints that come with the package, too.",
    )
    demo.add_argument(
        "--output", default="w2v-ray-demo", metavar="OUT", help="folder to write (default: %(default)s)"
    )

    cli_jobs.add_job_commands(commands, common, epilog=_EXIT_CODES)
    add_redecode(commands, common)

    cli_jobs.add_since_last(cli_job_files.add_run(commands, common, epilog=_EXIT_CODES))
    cli_job_files.add_schema(commands, common)

    cli_status.add_status(commands, common)
    cli_export.add_export(commands, common)
    cli_report.add_report(commands, common)
    cli_output.add_commands(commands, common)
    cli_embeddings.add_commands(commands, common)
    cli_frames.add_commands(commands, common)
    cli_lm.add_commands(commands, common)
    cli_bench.add_commands(commands, common)
    cli_cluster.add_commands(commands, common)
    cli_doctor.add_commands(commands, common)
    return parser


def _job(args: argparse.Namespace) -> int:
    return _run_job(cli_jobs.job_of(args), args)


def _redecode(args: argparse.Namespace) -> int:
    return _run_redecode(redecode_job(args), args)


def _run(args: argparse.Namespace) -> int:
    job = load_job(args.job, args.overrides)
    if not isinstance(job, RedecodeConfig):
        return _run_job(job, args)
    if args.since_last:
        raise ConfigError("since-last is of recordings, which redecode does not list; leave it out")
    return _run_redecode(job, args)


def _run_redecode(job: RedecodeConfig, args: argparse.Namespace) -> int:
    if cli_job_files.is_dry_run(args):
        return cli_job_files.dry_run(job, args)
    return _finish(job, run_redecode(job, args), args)


def _retry_errors(args: argparse.Namespace) -> int:
    from w2v_ray import console
    from w2v_ray.job import prepare_retry, recorded_job

    job = recorded_job(args.output, args.overrides)
    if cli_job_files.is_dry_run(args):
        return cli_job_files.dry_run_retry(job, args)
    with console.shown_planning(quiet=args.json):
        plan = prepare_retry(job, reasons=args.reason, stages=args.stage)
    if not args.json:
        told = ", ".join(f"{count} {reason}" for reason, count in plan.retried.items())
        print(f"planned {plan.num_new} rejected items again" + (f": {told}" if told else ""), file=sys.stderr)
    return _run_planned(job, plan, args)


def _run_job(job: JobConfig, args: argparse.Namespace) -> int:
    from w2v_ray import console
    from w2v_ray.job import prepare

    if getattr(args, "since_last", False):
        job = dataclasses.replace(job, on_change="new")
    if cli_job_files.is_dry_run(args):
        return cli_job_files.dry_run(job, args)
    with console.shown_planning(quiet=args.json):
        plan = prepare(job)
    if job.on_change == "new" and not args.json:
        console.show_changes(plan)
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

        with console.shown_progress(quiet=args.json) as on_progress, under_way():
            summary = run_plan(job, plan, on_progress=on_progress, command=args.command)
    return _finish(job, summary, args)


def _finish(job: JobConfig | RedecodeConfig, summary: RunSummary, args: argparse.Namespace) -> int:
    from w2v_ray import console

    if args.json:
        print(summary.to_json())
    elif isinstance(job, RedecodeConfig):
        console.show_summary(summary, did="decoded again")
    else:
        rows = "recording" if job.task == "align" else "segment"
        console.show_summary(summary, did=_DONE[job.task], rows=rows)
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
    from w2v_ray import console_demo, demo

    demo.clear(args.output)
    job = JobConfig(
        inputs=demo.INPUTS,
        output=args.output,
        model=str(demo.CHECKPOINT),
        shard_seconds=30,
        keep_log_probs=cli_jobs.KEPT_TOKENS,
        also=(f"embed={demo.speaker_checkpoint()}",),
    )
    words = JobConfig(
        task="classify",
        inputs=(str(demo.WORDS),),
        output=demo.keywords(args.output),
        model=str(demo.keyword_checkpoint()),
    )
    again = RedecodeConfig(
        source=args.output, output=demo.redecoded(args.output), lm=str(demo.LANGUAGE_MODEL)
    )
    quieten_ray(args)
    from w2v_ray.pipeline import running_ray

    def say(text: str) -> None:
        if not args.json:
            print(text, file=sys.stderr)

    with running_ray():  # one for all
        say("transcribing, and embedding speakers in the same pass")
        code = _run_job(job, args)
        say("decoding again with a language model, from what was kept of the encoder")
        run_redecode(again, args)
        say("naming single words by a classifier")
        code = code or _run_job(words, args)
    if not args.json:
        console_demo.show_demo(args.output)
    return code


def _status_of(output: str) -> Status:
    from w2v_ray.plan import status

    return status(output)


_COMMANDS = {
    **cli_bench.COMMANDS,
    **cli_cluster.COMMANDS,
    **cli_embeddings.COMMANDS,
    **cli_frames.COMMANDS,
    "align": _job,
    "audit": cli_output.audit,
    "classify": _job,
    "compact": cli_output.compact,
    "demo": _demo,
    "doctor": cli_doctor.doctor,
    "embed": _job,
    "export": cli_export.main,
    "frames": _job,
    "lm": cli_lm.main,
    "redecode": _redecode,
    "report": cli_report.report,
    "retry-errors": _retry_errors,
    "run": _run,
    "schema": cli_job_files.schema,
    "status": cli_status.status,
    "transcribe": _job,
}


if __name__ == "__main__":
    sys.exit(main())
