"""The commands ``run`` and ``schema``, and ``--dry-run`` of every command that runs a job."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from w2v_ray.config import JobConfig, RedecodeConfig
from w2v_ray.errors import ConfigError

if TYPE_CHECKING:
    from w2v_ray.forecast import Forecast

__all__ = ["add_dry_run", "add_run", "add_schema", "dry_run", "dry_run_retry", "is_dry_run", "schema"]

_RUN_EPILOG = """\
examples:
  w2v-ray run pipelines/transcribe.yaml
  w2v-ray run pipelines/transcribe.yaml --dry-run
  w2v-ray run pipelines/transcribe.yaml output=out/try dtype=float16 'inputs=[a/, b.tar]'
  DAY=2026-11-22 w2v-ray run nightly.yaml     # with `inputs: ["s3://bucket/${DAY}"]` in the file

"""


def add_run(commands: Any, common: argparse.ArgumentParser, *, epilog: str) -> argparse.ArgumentParser:
    """Adds the command to the parser's others, and returns its parser."""
    run: argparse.ArgumentParser = commands.add_parser(
        "run",
        parents=[common],
        help="run a job file",
        description="Run a job from a YAML file; its keys are the settings of docs/operations.md.",
        epilog=_RUN_EPILOG + epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("job", metavar="JOB.yaml", help="the job file")
    run.add_argument(
        "--resume", action="store_true", help="go on where an earlier run ended, which is what every run does"
    )
    run.add_argument("overrides", nargs="*", metavar="key=value", help="settings to replace or add")
    add_dry_run(run)
    return run


def add_schema(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to the parser's others."""
    commands.add_parser(
        "schema",
        parents=[common],
        help="print the JSON Schema of job files, for editors",
        description="Print the JSON Schema of job files. Editors with the YAML language server use it in\n"
        "files that begin with a line `# yaml-language-server: $schema=PATH`.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """Adds the options by which a job is planned and told of, and not run."""
    group = parser.add_argument_group("what would be done")
    group.add_argument(
        "--dry-run", action="store_true", help="check and plan, say what would be done, and write nothing"
    )
    group.add_argument(
        "--cluster",
        metavar="CPUS,GPUS",
        help="with --dry-run: size of the cluster to assume (default: this machine)",
    )
    group.add_argument(
        "--rate",
        type=float,
        metavar="X",
        help="with --dry-run: times real time to assume (default: as the last run of OUT)",
    )


def is_dry_run(args: argparse.Namespace) -> bool:
    """Whether a job is to be told of only.

    Raises:
        ConfigError: It is to be run, and an option has no effect on that.
    """
    if getattr(args, "dry_run", False):
        return True
    for name in ("cluster", "rate"):
        if (value := getattr(args, name, None)) is not None:
            raise ConfigError(f"{name} is {value!r}, which has no effect by itself; give --dry-run too")
    return False


def dry_run(job: JobConfig | RedecodeConfig, args: argparse.Namespace) -> int:
    """Says what a job would do, without writing anything."""
    from w2v_ray.forecast import forecast

    return _tell(args, partial(forecast, job))


def dry_run_retry(job: JobConfig, args: argparse.Namespace) -> int:
    """Says what of an output would be done again, without writing anything."""
    from w2v_ray.forecast import forecast_retry

    return _tell(args, partial(forecast_retry, job, reasons=args.reason, stages=args.stage))


def _tell(args: argparse.Namespace, forecast: Callable[..., Forecast]) -> int:
    from w2v_ray import console
    from w2v_ray.console_forecast import show_forecast
    from w2v_ray.forecast import read_cluster

    cluster = None if args.cluster is None else read_cluster(args.cluster)
    with console.shown_planning(quiet=args.json):
        found = forecast(cluster=cluster, rate=args.rate)
    if args.json:
        print(found.to_json())
    else:
        show_forecast(found)
    return 0


def schema(args: argparse.Namespace) -> int:
    """Prints the schema: readable, or on one line with --json."""
    from w2v_ray.job_schema import job_schema, schema_text

    if args.json:
        import json

        print(json.dumps(job_schema(), ensure_ascii=False))
    else:
        sys.stdout.write(schema_text())
    return 0
