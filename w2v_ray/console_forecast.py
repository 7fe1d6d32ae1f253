"""What a person sees of a job that is not run: what it would do, where, and for how long."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from w2v_ray.console import audio_time, size_text, table_console

if TYPE_CHECKING:
    from w2v_ray.forecast import Forecast, Stage

__all__ = ["show_forecast"]


def show_forecast(found: Forecast) -> None:
    """Prints the plan of a job."""
    console = table_console()
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    what = found.task if found.retried is None else f"retry-errors of {found.task}"
    table.add_row("job", f"{what} {found.model} -> {found.output}")
    for name, value in found.settings.items():
        table.add_row("", f"{name}: {_yaml(value)}")
    if found.retried is None:
        table.add_row("inputs", _inputs(found))
    else:
        table.add_row("again", _again(found, found.retried))
    if found.num_mended:
        what = _count(found.num_mended, "recording")
        table.add_row("", f"{what} changed since and taken as the file is now, whole")
    if found.num_gone:
        table.add_row("", f"{_count(found.num_gone, 'recording')} gone from the inputs, whose rows stay")
    if found.num_duplicates:
        table.add_row("", f"{_count(found.num_duplicates, 'recording')} named more than once")
    for reason, count in sorted(found.skipped.items()):
        table.add_row("not planned", f"{count:,} {reason}")
    table.add_row("shards", _shards(found))
    table.add_row("workers", _size(found))
    for stage in found.stages:
        table.add_row("", f"{', '.join(stage.names)}: {_workers(stage)}")
    if found.attention is not None:
        table.add_row("attention", found.attention.reason)
    table.add_row("time", _time(found))
    console.print(table)
    console.print(Text("nothing was written; leave out --dry-run to run it", "green"))


def _inputs(found: Forecast) -> str:
    parts = [_count(found.num_items, "item"), audio_time(found.planned_s)]
    if found.num_bytes is not None:
        parts.append(size_text(found.num_bytes))
    known = found.num_items - found.num_new - found.num_changed
    counts = {"new": found.num_new, "changed": found.num_changed, "planned before": known}
    told = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
    return ", ".join(parts) + (f": {told}" if told else "")


def _again(found: Forecast, by_reason: Mapping[str, int]) -> str:
    if not by_reason:
        return f"none of {_count(found.num_items, 'item')}"
    told = ", ".join(f"{count:,} {reason}" for reason, count in by_reason.items())
    return f"{found.num_changed:,} of {_count(found.num_items, 'item')}: {told}"


def _shards(found: Forecast) -> str:
    if not found.num_pending_shards:
        return f"{found.num_shards:,}, all published: nothing to do"
    new = f" ({found.num_new_shards:,} new)" if found.num_new_shards else ""
    before = f"{found.num_published_shards:,} published, " if found.num_published_shards else ""
    todo = f"{before}{found.num_pending_shards:,} to do{new}: {audio_time(found.pending_s)}"
    return todo if found.num_pending_bytes is None else f"{todo}, {size_text(found.num_pending_bytes)}"


def _size(found: Forecast) -> str:
    if found.cpus is None or found.gpus is None:
        return f"decided on {found.cluster}"
    return f"{_count(found.cpus, 'CPU')}, {_count(found.gpus, 'GPU')} ({found.cluster})"


def _workers(stage: Stage) -> str:
    if stage.cpus is None:
        return "sized when it runs"
    number = "as many as fit" if stage.num_workers is None else _count(stage.num_workers, "worker")
    gpus = f" and {_count(stage.gpus, 'GPU')}" if stage.gpus else ""
    return f"{number}, {_count(stage.cpus, 'CPU')}{gpus}{'' if stage.num_workers == 1 else ' each'}"


def _time(found: Forecast) -> str:
    if not found.num_pending_shards:
        return "none"
    if found.expected_s is None or found.rate_x is None:
        return f"unknown: {found.rate_source}"
    return f"about {audio_time(found.expected_s)} at {found.rate_x:,.1f} x real time ({found.rate_source})"


def _count(number: float, noun: str) -> str:
    text = f"{number:,.4g}" if isinstance(number, float) else f"{number:,}"
    return f"{text} {noun}" if number == 1 else f"{text} {noun}s"


def _yaml(value: object) -> str:
    """The value as a job file has it, near enough to read."""
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
