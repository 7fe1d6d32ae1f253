"""What a person sees of a measurement, and of a cluster that is sized by it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table
from rich.text import Text

from w2v_ray import demo
from w2v_ray.benchmark import BenchReport, StageReport
from w2v_ray.console import audio_time, table_console
from w2v_ray.sizing import Sizing

__all__ = ["show_bench", "show_sizing", "shown_steps"]

_BUSY_ELSEWHERE = 0.8  # of the cores that the encoder asked for: with less, others were using them


@contextmanager
def shown_steps(*, quiet: bool) -> Iterator[Callable[[str], None] | None]:
    """Shows on standard error what is measured now: live in a terminal, a line each elsewhere."""
    console = Console(stderr=True)
    if quiet:
        yield None
    elif console.is_terminal:
        with console.status("starting") as status:
            yield lambda step: status.update(f"measuring: {step}")
    else:
        yield lambda step: print(f"measuring: {step}", file=sys.stderr, flush=True)


def show_bench(report: BenchReport, *, path: str, is_kept: bool) -> None:
    """The stages as a table, and what follows from it."""
    console = table_console()
    text = "" if report.decoder == "none" else f", {report.decoder}"
    threads = f", {_count(report.encoder_threads, 'thread')}" if report.encoder_threads else ""
    console.print(
        f"{report.model} ({report.task}{text})\n"
        f"on {report.device_name}, {_count(report.num_cores, 'core')}: encoder on {report.device}{threads}, "
        f"{report.dtype}, {report.attn_implementation}\n"
        f"{audio_time(report.audio_s)} of audio in {_count(report.num_segments, 'segment')} of "
        f"{_count(report.num_recordings, 'recording')}\n",
        soft_wrap=True,
    )
    console.print(_stage_table(report))
    grid = _grid()
    encoder = report.encoder
    grid.add_row(
        "encoder",
        f"{_scaled(encoder.achieved_flops, 'flop/s')} of {_scaled(encoder.peak_flops, 'flop/s')}: "
        f"{encoder.peak_share:.0%} of what large matrix products in {report.dtype} reach here",
    )
    grid.add_row(
        "padding",
        f"{encoder.padding_share:.1%} of what it computes, in "
        f"{_count(encoder.num_batches, 'batch', 'es')} for {audio_time(report.encoded_s)} of audio",
    )
    memory = f"{_bytes(report.process_bytes)} of this process, all stages in one"
    if report.device_bytes is not None:
        memory += f"; {_bytes(report.device_bytes)} on the GPU"
    grid.add_row("memory", memory)
    verbs = "reads, decodes and segments" if report.audio_decoders == 1 else "read, decode and segment"
    needed = _count(report.audio_decoders, "worker") + f" that {verbs}"
    if report.text_decoders:
        verb, result = ("make", "results") if report.decoder == "none" else ("decode", "text")
        work = f"{verb}{'s' if report.text_decoders == 1 else ''} {result}"
        needed += f", {_count(report.text_decoders, 'thread')} that {work}"
    grid.add_row("to keep it busy", f"{needed}, for each encoder")
    grid.add_row(
        "storage",
        f"{_bytes(report.read_bytes_per_audio_s * 3600)} read and "
        f"{_bytes(report.written_bytes_per_audio_s * 3600)} written for an hour of audio",
    )
    grid.add_row("limited by", f"{report.limit}, at {report.expected_rate:,.0f} x real time on this machine")
    if report.whole is not None:
        whole = report.whole
        grid.add_row(
            "the whole on Ray",
            f"{whole.rate:,.0f} x real time, {whole.rate / report.expected_rate:.0%} of that, over "
            f"{audio_time(whole.audio_s)} of audio; {whole.startup_s:.0f} s to start",
        )
    console.print()
    console.print(grid)
    for note in _notes(report):
        console.print(Text(note, "yellow"), soft_wrap=True)
    what = "`w2v-ray plan --hours N --deadline 24h` sizes a cluster by it"
    if not is_kept:
        what = f"`w2v-ray plan --from {path} --hours N --deadline 24h` sizes a cluster by it"
    console.print(f"\nwritten to {path}; {what}", soft_wrap=True)


def _stage_table(report: BenchReport) -> Table:
    table = Table("stage", "a minute takes", "x real time", "share", "cores", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for stage in report.stages:
        table.add_row(
            stage.name,
            _short(60 / stage.rate),
            f"{stage.rate:,.0f}" if stage.rate >= 10 else f"{stage.rate:.2g}",
            f"{stage.share:.1%}",
            f"{_cores(stage):.1f}",
        )
    total = sum(1 / stage.rate for stage in report.stages)
    table.add_row("one after another", _short(60 * total), f"{1 / total:,.3g}", "", "")
    return table


def _notes(report: BenchReport) -> Iterator[str]:
    """What a reader should know before trusting the numbers."""
    if report.model == str(demo.CHECKPOINT):
        yield "that was the small checkpoint that comes with the package: name yours with --model"
    if report.num_failed:
        yield f"{_count(report.num_failed, 'segment')} failed and are not counted; a job would reject them"
    encode = next(stage for stage in report.stages if stage.name == "encode")
    if report.encoder_threads:
        share = _cores(encode) / report.encoder_threads
        if share < _BUSY_ELSEWHERE:
            yield (
                f"the encoder had {share:.0%} of its {_count(report.encoder_threads, 'core')} while it was "
                "timed: other programs run here, or the machine has fewer cores than it says"
            )


def show_sizing(sizing: Sizing) -> None:
    """The cluster, what it costs, what limits it, and what all that rests on."""
    console = table_console()
    console.print(f"{sizing.hours:,.12g} h of audio within {_span(sizing.deadline_s)}\n", soft_wrap=True)
    grid = _grid()
    worker = "GPU" if sizing.on_gpu else "machine"
    name = f" ({sizing.worker_name})" if sizing.worker_name else ""
    each = f"each {sizing.worker_rate:,.0f} x real time, {sizing.efficiency:.0%} of which counts"
    grid.add_row(f"{worker}s", f"{sizing.num_workers:,}{name}, {each}")
    if sizing.num_cores is None:
        grid.add_row("CPU cores", "not known without a measurement: see `w2v-ray bench`")
    else:
        each = f"{sizing.num_cores // sizing.num_workers} for each {worker}"
        grid.add_row("CPU cores", f"{sizing.num_cores:,}, {each}, of which are busy while all work:")
        for title, cores in _by_work(sizing):
            grid.add_row("", f"{cores:,.1f} {title}" if cores >= 0.05 else f"next to none {title}")
    grid.add_row("wall clock", _span(sizing.wall_s))
    grid.add_row("shards", f"{sizing.num_shards:,} of {sizing.shard_seconds:g} s")
    if sizing.read_bytes is not None and sizing.read_bytes_per_s is not None:
        grid.add_row("reads", f"{_bytes(sizing.read_bytes)}, {_bytes(sizing.read_bytes_per_s)} a second")
    if sizing.written_bytes is not None:
        grid.add_row("writes", _bytes(sizing.written_bytes))
    parts = [f"GPUs {sizing.gpu_cost:,.2f}"] if sizing.on_gpu else []
    if sizing.core_cost:
        parts.append(f"cores {sizing.core_cost:,.2f}")
    per_hours = sizing.cost / sizing.hours * 1000
    each = f"{per_hours:,.3g}" if per_hours < 1000 else f"{per_hours:,.0f}"
    grid.add_row("cost", f"{sizing.cost:,.2f} ({', '.join(parts)}), {each} for 1,000 h of audio")
    grid.add_row("bottleneck", f"{sizing.bottleneck}; {sizing.advice}")
    console.print(grid)
    console.print("\nassumed:")
    for text in sizing.assumptions:
        console.print(f"- {text}", soft_wrap=True)


_WORK = {
    "reading, decoding and segmenting audio": ("read_audio", "decode_audio", "segment_audio"),
    "encoding": ("encode",),
    "making results": ("decode_text", "choose_labels", "find_turns"),
    "writing": ("write_parquet",),
}


def _by_work(sizing: Sizing) -> Iterator[tuple[str, float]]:
    for title, names in _WORK.items():
        if cores := sum(sizing.cores_by_stage.get(name, 0.0) for name in names):
            yield (title if title != "encoding" or not sizing.on_gpu else "feeding the GPUs"), cores


def _grid() -> Table:
    return Table.grid(padding=(0, 2))


def _cores(stage: StageReport) -> float:
    return stage.cpu_s / stage.busy_s


def _count(count: int, noun: str, plural: str = "s") -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}{plural}"


def _short(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{seconds * 1000:.2g} ms"


def _span(seconds: float) -> str:
    """A length of time of the clock: "45 s", "90 min", "23 h 20 min", "3 d 4 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 72:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def _bytes(count: float) -> str:
    return _scaled(count, "B")


def _scaled(count: float, unit: str) -> str:
    """A number with a prefix to its unit."""
    for prefix in ("", "k", "M", "G", "T"):
        if count < 1000:
            return f"{count:.3g} {prefix}{unit}"
        count /= 1000
    return f"{count:,.3g} P{unit}"
