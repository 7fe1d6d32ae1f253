"""Scripts for schedulers that run commands: sbatch of Slurm, and a DAG of Airflow."""

from __future__ import annotations

import shlex

from w2v_ray.config import JobConfig
from w2v_ray.job_text import job_text
from w2v_ray.render.options import RenderOptions

__all__ = ["airflow", "slurm"]

_END = "END_OF_JOB"  # a line of YAML is never this


def slurm(job: JobConfig, options: RenderOptions) -> str:
    """A batch script: a Ray of its own on the machines of the allocation, and the job on it."""
    head = [
        f"#SBATCH --job-name={options.name}",
        f"#SBATCH --nodes={options.workers}",
        "#SBATCH --ntasks-per-node=1",
        f"#SBATCH --cpus-per-task={options.cpus_per_worker}",
        f"#SBATCH --mem={_megabytes(options.memory_per_worker)}M",
        *([f"#SBATCH --gpus-per-node={options.gpus_per_worker}"] if options.gpus_per_worker else []),
        *([f"#SBATCH --partition={options.partition}"] if options.partition else []),
        f"#SBATCH --time={options.time}",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        "#SBATCH --output=%x-%j.log",
    ]
    return "\n".join(["#!/bin/bash", *head, _SLURM.format(end=_END, job=job_text(job).rstrip("\n"))])


_SLURM = """\
# A machine that fails, or a job that is put off, is begun again by Slurm and does what is missing then.
set -euo pipefail

# Of this job alone: jobs that share a machine must not find each other's Ray. Nobody else may run code here.
export RAY_TMPDIR="/tmp/ray-$SLURM_JOB_ID"
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN="$(od -An -N32 -tx1 /dev/urandom | tr -d ' \\n')"
export RAY_AUTH_TOKEN
trap 'rm -rf "$RAY_TMPDIR"' EXIT
head="$(hostname -I | cut -d ' ' -f 1)"
port=$((20000 + SLURM_JOB_ID % 20000))

# This script runs on the first machine of the allocation. Slurm ends what it leaves running.
ray start --head --node-ip-address="$head" --port="$port" --num-cpus="$SLURM_CPUS_PER_TASK" \\
  --include-dashboard=false --disable-usage-stats
if ((SLURM_JOB_NUM_NODES > 1)); then
  others=$((SLURM_JOB_NUM_NODES - 1))
  srun --nodes="$others" --ntasks="$others" --exclude="$SLURMD_NODENAME" \\
    ray start --address="$head:$port" --num-cpus="$SLURM_CPUS_PER_TASK" --block &
fi
export RAY_ADDRESS="$head:$port"

w2v-ray run /dev/stdin <<'{end}'
{job}
{end}
"""


def airflow(job: JobConfig, options: RenderOptions) -> str:
    """A DAG of one task, which runs the job where the worker is, or submits it to a Ray that runs already."""
    command = ["w2v-ray", "run", "/dev/stdin"]
    if options.address:
        command = ["w2v-ray", "submit", "/dev/stdin", "--address", options.address, "--name", options.name]
    # Airflow reads the command as a template of Jinja, which the job is not.
    text = "{% raw %}" + job_text(job).rstrip("\n") + "{% endraw %}"
    script = f"{shlex.join(command)} <<'{_END}'\n{text}\n{_END}\n"
    return _AIRFLOW.format(
        name=options.name,
        schedule=options.schedule,
        script=_literal(script),
        what=f"{job.task} to {job.output}",
    )


_AIRFLOW = '''\
"""Runs a job of w2v-ray on a schedule. Each run does what is missing, so that a retry costs nothing."""

from datetime import datetime, timedelta, timezone

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

with DAG(
    dag_id={name!r},
    description={what!r},
    schedule={schedule!r},
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    max_active_runs=1,
    default_args={{"retries": 2, "retry_delay": timedelta(minutes=5)}},
) as dag:
    BashOperator(
        task_id="run",
        bash_command={script},
        append_env=True,
    )
'''


def _literal(text: str) -> str:
    """The text as an expression of Python, a line of it in each line."""
    lines = [f"            {line!r}" for line in text.splitlines(keepends=True)]
    return "(\n" + "\n".join(lines) + "\n        )"


def _megabytes(quantity: str) -> int:
    """A quantity of Kubernetes in the mebibytes that Slurm calls M."""
    number, unit = quantity.rstrip("kMGTPi"), quantity.lstrip("0123456789.")
    power = "kMGTP".find(unit[0]) + 1 if unit else 0
    factor = 1024.0 if unit.endswith("i") else 1000.0
    return max(1, round(float(number) * factor**power / 2**20))
