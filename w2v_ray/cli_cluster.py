"""The commands that carry a job file to a cluster: `w2v-ray render` and `w2v-ray submit`."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import sys
from pathlib import Path
from typing import Any

from w2v_ray.config import RedecodeConfig
from w2v_ray.errors import ConfigError
from w2v_ray.job_file import load_job
from w2v_ray.job_text import fingerprint, job_text, label
from w2v_ray.render import KINDS, RenderOptions, render

__all__ = ["COMMANDS", "add_commands"]

_DEFAULTS = {field.name: field.default for field in dataclasses.fields(RenderOptions)}
_RENDER_EXAMPLES = """\
examples:
  w2v-ray render rayjob job.yaml --image REGISTRY/w2v-ray:1 --workers 4 | kubectl apply -f -
  w2v-ray render cronjob job.yaml --image REGISTRY/w2v-ray:1 --schedule '0 2 * * *'
  w2v-ray render slurm job.yaml --workers 4 --gpus-per-worker 8 | sbatch
  w2v-ray render airflow job.yaml --address http://head:8265 > dags/transcribe.py
"""
_SUBMIT_DESCRIPTION = """\
Submit a job file to the job server of a Ray cluster and follow it. Submitted
twice on one day it runs once: the second command follows the first one's job.
One that has ended is begun again and does what is missing.
"""
_SUBMIT_EXAMPLES = """\
The exit code is that of the job, as `w2v-ray run` gives it. An interrupted
submit leaves the job running; `ray job stop ID` ends it.

examples:
  w2v-ray submit job.yaml --address http://head:8265
  w2v-ray submit job.yaml device=cuda max_encoders=4 --no-wait
  ray dashboard cluster.yaml &  # where the head is behind ssh
  w2v-ray submit job.yaml --address http://localhost:8265
"""


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the commands to the parser's others."""
    parser = commands.add_parser(
        "render",
        help="print a job file as a manifest of Kubernetes, Slurm or Airflow",
        description="Print a job file as a manifest of a scheduler. It holds all settings of the job.",
        epilog=_RENDER_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(debug=False)
    parser.add_argument("kind", choices=KINDS, metavar="KIND", help=", ".join(KINDS))
    _job_arguments(parser)
    parser.add_argument("--image", help="container image with Ray and w2v-ray (Kubernetes)")
    parser.add_argument("--name", help="name of the job there (default: that of the job file)")
    parser.add_argument("--namespace", help="Kubernetes namespace")
    texts = {
        "schedule": ("CRON", "when to run, of raycronjob, cronjob and airflow"),
        "workers": ("N", "machines that encode, at most"),
        "cpus_per_worker": ("N", "CPUs of each"),
        "memory_per_worker": ("SIZE", "memory of each"),
        "decode_workers": ("N", "machines without GPUs that read and decode, at most (rayjob, raycronjob)"),
        "time": ("[D-]H:M:S", "how long Slurm lets it run"),
    }
    for name, (metavar, text) in texts.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(_DEFAULTS[name]),
            default=_DEFAULTS[name],
            metavar=metavar,
            help=f"{text} (default: %(default)s)",
        )
    parser.add_argument(
        "--gpus-per-worker", type=int, metavar="N", help="GPUs of each (default: 1, or 0 with device cpu)"
    )
    parser.add_argument("--secret", metavar="NAME", help="Kubernetes secret that is put into the environment")
    parser.add_argument("--service-account", metavar="NAME", help="Kubernetes service account")
    parser.add_argument("--volume", metavar="CLAIM=/path", help="Kubernetes volume claim that all pods have")
    parser.add_argument("--partition", metavar="NAME", help="partition of Slurm")
    parser.add_argument(
        "--address", metavar="URL", help="submit to this running Ray instead (cronjob, airflow)"
    )

    parser = commands.add_parser(
        "submit",
        parents=[common],
        help="run a job file on a Ray cluster, through its job server",
        description=_SUBMIT_DESCRIPTION,
        epilog=_SUBMIT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _job_arguments(parser)
    parser.add_argument(
        "--address", metavar="URL", help="http://HEAD:8265 (default: RAY_API_SERVER_ADDRESS or RAY_ADDRESS)"
    )
    parser.add_argument("--name", help="first part of the job's id (default: that of the job file)")
    parser.add_argument("--id", metavar="ID", help="the whole id (default: name, settings and day)")
    parser.add_argument(
        "--working-dir", metavar="DIR", help="folder to send along, where relative paths of the job are"
    )
    parser.add_argument("--no-wait", action="store_true", help="do not follow the job")


def _job_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB.yaml", help="the job file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to replace or add")


def _render(args: argparse.Namespace) -> int:
    job = load_job(args.job, args.overrides)
    if isinstance(job, RedecodeConfig):
        raise ConfigError(
            "task is 'redecode', expected one with an encoder for whose machines a manifest asks; submit it"
        )
    given = {name: getattr(args, name) for name in _DEFAULTS}
    given["name"] = args.name or label(Path(args.job).stem, length=40)
    if given["gpus_per_worker"] is None:
        given["gpus_per_worker"] = 0 if job.device == "cpu" else 1
    sys.stdout.write(render(args.kind, job, RenderOptions(**given)))
    return 0


def _submit(args: argparse.Namespace) -> int:
    from w2v_ray.submission import submit

    text = job_text(load_job(args.job, args.overrides))
    today = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d")
    name = args.name or label(Path(args.job).stem, length=40) or "w2v-ray"
    found = submit(
        text,
        name=args.id or f"{name}-{fingerprint(text)}-{today}",
        address=args.address,
        working_dir=args.working_dir,
        options=("--json",) if args.json else (),
    )
    if args.no_wait and args.json:
        print(json.dumps({"submission_id": found.submission_id, "is_new": found.is_new}))
    else:
        what = "submitted" if found.is_new else "is running already:"
        print(what, found.submission_id, file=sys.stderr)
    return 0 if args.no_wait else found.follow(lambda lines: print(lines, end="", flush=True))


COMMANDS = {"render": _render, "submit": _submit}
