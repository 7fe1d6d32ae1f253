"""The commands ``bench``, which measures this machine, and ``plan``, which sizes a cluster by that."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any

from w2v_ray.cli_decode import (
    add_decoder_arguments,
    add_store_arguments,
    decoder_values,
    quieten_ray,
    under_way,
)
from w2v_ray.config import JobConfig
from w2v_ray.decoder_config import check_range
from w2v_ray.encoder_config import ATTN_IMPLEMENTATIONS, DTYPES
from w2v_ray.errors import ConfigError, OutputError
from w2v_ray.head_config import TASKS

__all__ = ["COMMANDS", "add_commands"]

_SECONDS = 120.0
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(JobConfig)}
_TAKEN = (
    *("task", "model", "revision", "device", "dtype", "attn_implementation", "encoder_threads"),
    *("max_segment_seconds", "channel", "vad", "audio_column", "stores", "allow_http"),
    *("num_encoders", "num_decoders", "decoder_threads"),
)
_BENCH_EPILOG = """\
examples:
  w2v-ray bench
  w2v-ray bench recordings/ --model ./checkpoint --dtype float16 --output bench.json
  w2v-ray bench s3://bucket/archive --model ./checkpoint --lm lm.arpa --seconds 600

The result is kept for `w2v-ray plan`. Measure on the kind of machine that will do
the work, while nothing else runs there; docs/sizing.md says what each line means.
"""
_PLAN_EPILOG = """\
examples:
  w2v-ray plan --hours 100000 --deadline 24h
  w2v-ray plan --hours 100000 --deadline 2d --from bench.json --gpu-price 1.9 --cpus-per-gpu 16
  w2v-ray plan --hours 5000 --deadline 90m --rate 3000
"""


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the commands to an argument parser's others; ``common`` has the options of every command."""
    _add_bench(commands, common)
    _add_plan(commands, common)


def _add_bench(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "bench",
        parents=[common],
        help="measure how fast this machine is, stage by stage and as a whole",
        description="Time each stage of a job on this machine with a model and audio, then the whole\n"
        "on Ray, and say where the time goes, what the device could do, and what keeps it busy.",
        epilog=_BENCH_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="INPUT",
        help="what a job takes (docs/inputs.md); default: the archive that comes with the package",
    )
    parser.add_argument(
        "--model",
        help="checkpoint folder or hub id (default: the small one that comes with the package)",
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument(
        "--task", choices=TASKS, default="transcribe", help="what is done (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=_SECONDS,
        metavar="N",
        help="seconds of audio to take, at most, from all over the inputs (default: %(default)g)",
    )
    parser.add_argument(
        "--whole",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="run the whole on Ray as well, which takes about half a minute more (default: it is run)",
    )
    parser.add_argument("--output", metavar="FILE.json", help="file to write (default: in the cache folder)")
    parser.add_argument(
        "--device", default=_DEFAULTS["device"], help="auto, cpu, cuda or cuda:N (default: %(default)s)"
    )
    for name, choices, text in (
        ("dtype", DTYPES, "type that the encoder computes in"),
        ("attn_implementation", ATTN_IMPLEMENTATIONS, "attention kernel"),
    ):
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            choices=choices,
            default=_DEFAULTS[name],
            help=f"{text} (default: %(default)s)",
        )
    for name, text in (
        ("num-encoders", "encoders of a job on this machine (default: one per GPU, or one on a CPU)"),
        ("encoder-threads", "CPU threads of each encoder (default: all cores)"),
    ):
        parser.add_argument(f"--{name}", type=int, metavar="N", help=text)
    parser.add_argument(
        "--max-segment-seconds",
        type=float,
        default=_DEFAULTS["max_segment_seconds"],
        metavar="N",
        help="longest piece the encoder takes at once, in seconds (default: %(default)s)",
    )
    parser.add_argument(
        "--channel",
        default=_DEFAULTS["channel"],
        metavar="CHANNEL",
        help="mix, left, right, split (each for itself) or a number from 0 (default: %(default)s)",
    )
    parser.add_argument("--vad", metavar="MODULE:FUNCTION", help="voice activity detector of the job")
    parser.add_argument("--audio-column", metavar="NAME", help="column of a table with the audio")
    add_store_arguments(parser)
    add_decoder_arguments(parser)


def _add_plan(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "plan",
        parents=[common],
        help="say how many machines a job needs by a deadline, and what they cost",
        description="Turn what `w2v-ray bench` measured, or a rate, into a cluster: GPUs, cores, hours,\n"
        "storage and cost. Nothing is started, and no audio is looked at.",
        epilog=_PLAN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--hours", type=float, required=True, metavar="N", help="hours of audio")
    parser.add_argument(
        "--deadline", required=True, metavar="TIME", help="when it must be done: 24h, 90m, 2d, 1d12h"
    )
    parser.add_argument(
        "--from",
        dest="source",
        metavar="FILE.json",
        help="what `w2v-ray bench --output` wrote (default: the last one without --output)",
    )
    parser.add_argument(
        "--rate",
        type=float,
        metavar="X",
        help="seconds of audio that a GPU encodes in a second, instead of what was measured",
    )
    parser.add_argument(
        "--efficiency",
        type=float,
        default=0.85,
        metavar="X",
        help="what of the rates a long job reaches, 0.1 to 1 (default: %(default)s)",
    )
    parser.add_argument(
        "--gpu-price",
        type=float,
        default=2.5,
        metavar="X",
        help="price of a GPU for an hour, in any currency (default: %(default)s)",
    )
    parser.add_argument(
        "--cpu-price",
        type=float,
        default=0.04,
        metavar="X",
        help="price of a core for an hour (default: %(default)s)",
    )
    parser.add_argument(
        "--cpus-per-gpu",
        type=int,
        metavar="N",
        help="cores that come with each GPU, in its price (default: as many as are needed, at their price)",
    )
    parser.add_argument(
        "--shard-seconds",
        type=float,
        default=1200.0,
        metavar="N",
        help="seconds of audio in a shard of the job (default: %(default)s)",
    )


def _bench(args: argparse.Namespace) -> int:
    from w2v_ray import console_bench, demo
    from w2v_ray.benchmark import run_bench
    from w2v_ray.result_files import check_result, write_lines

    check_range("seconds", args.seconds, 1, 3600)
    path = args.output or str(_last())
    if not args.output:
        _make_folder(_last().parent)
    check_result(path)
    if args.model is None:
        args.model = str(demo.CHECKPOINT)
    job = JobConfig(
        inputs=tuple(args.inputs) or demo.INPUTS,
        output=os.curdir,  # nothing is written there
        **decoder_values(args) | {name: getattr(args, name) for name in _TAKEN},
    )
    quieten_ray(args)
    with console_bench.shown_steps(quiet=args.json) as on_step, under_way():
        report = run_bench(job, seconds=args.seconds, whole=args.whole, on_step=on_step)
    write_lines([report.to_json() + "\n"], path)
    if args.json:
        print(report.to_json())
    else:
        console_bench.show_bench(report, path=path, is_kept=not args.output)
    return 0


def _plan(args: argparse.Namespace) -> int:
    from w2v_ray import console_bench
    from w2v_ray.sizing import Prices, read_duration, read_rates, size_cluster, with_gpu_rate

    rates = None
    if args.source is not None:
        rates = read_rates(args.source)
    elif args.rate is None:
        if not _last().exists():
            raise ConfigError(
                "nothing was measured on this machine yet; run `w2v-ray bench` first, or name a measurement "
                "with --from or a rate with --rate"
            )
        rates = read_rates(str(_last()))
    if args.rate is not None:
        rates = with_gpu_rate(rates, args.rate)
    assert rates is not None
    sizing = size_cluster(
        rates,
        hours=args.hours,
        deadline_s=read_duration(args.deadline),
        efficiency=args.efficiency,
        prices=Prices(gpu=args.gpu_price, core=args.cpu_price),
        cores_per_gpu=args.cpus_per_gpu,
        shard_seconds=args.shard_seconds,
    )
    if args.json:
        print(sizing.to_json())
    else:
        console_bench.show_sizing(sizing)
    return 0


def _last() -> Path:
    """Where a measurement is kept that is written nowhere else."""
    from w2v_ray.text.language_model import cache_folder

    return cache_folder() / "bench.json"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"the cache folder {str(folder)!r} cannot be made ({error.strerror}); name a file with --output"
        ) from error


COMMANDS = {"bench": _bench, "plan": _plan}
