"""What a person sees in the terminal: progress while a job runs, and tables when it is done."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from w2v_ray.progress import Progress

if TYPE_CHECKING:
    from w2v_ray.job import RunSummary
    from w2v_ray.output import Audit
    from w2v_ray.plan import Plan, Status

__all__ = [
    "audio_time",
    "progress_line",
    "show_audit",
    "show_plan",
    "show_status",
    "show_summary",
    "shown_planning",
    "shown_progress",
]

_FINDINGS_SHOWN = 20
_PLAIN_EVERY_S = 10.0  # between lines where there is no terminal


def audio_time(seconds: float) -> str:
    """Seconds of audio as people say them: "48 s", "12.5 min", "3.20 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:,.2f} h"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def progress_line(progress: Progress) -> str:
    """One line: audio done of all, the rate, the time left, the rejects."""
    done = progress.before_s + progress.done_s
    parts = [f"{audio_time(done)} of {audio_time(progress.planned_s)} of audio"]
    if progress.done_s > 0:
        parts.append(f"{progress.rate:.1f} x real time")
    if progress.left_s:
        parts.append(f"{_clock(progress.left_s)} left")
    parts.append(f"{progress.num_shards_done}/{_number(progress.num_shards, 'shard')}")
    if progress.num_rejects:
        parts.append(_number(progress.num_rejects, "reject"))
    return ", ".join(parts)


@contextmanager
def shown_planning(*, quiet: bool) -> Iterator[None]:
    """Shows in a terminal that a plan is being made."""
    if quiet:
        yield
    else:
        with Console(stderr=True).status("listing the inputs and planning"):
            yield


def show_plan(plan: Plan) -> None:
    """What is about to be done."""
    todo = f"{audio_time(plan.pending_s)} of audio in {_number(plan.num_pending, 'shard')}"
    before = plan.num_shards - plan.num_pending
    done = f", {_number(before, 'shard')} done already" if before else ""
    print(f"{todo} to do{done}; starting workers", file=sys.stderr, flush=True)


@contextmanager
def shown_progress(*, quiet: bool) -> Iterator[Callable[[Progress], None] | None]:
    """Shows progress on standard error: a live bar in a terminal, a line now and then elsewhere."""
    console = Console(stderr=True)
    if quiet:
        yield None
    elif console.is_terminal:
        with Bar(TextColumn("{task.description}"), BarColumn(), console=console, transient=True) as bar:
            task = bar.add_task("starting workers", total=None)
            yield lambda p: bar.update(
                task, total=p.planned_s, completed=p.before_s + p.done_s, description=progress_line(p)
            )
    else:
        yield _plain_lines()


def _plain_lines() -> Callable[[Progress], None]:
    last, said = 0.0, ""

    def show(progress: Progress) -> None:
        nonlocal last, said
        line = progress_line(progress)
        at_end = progress.num_shards_done == progress.num_shards
        if line != said and (at_end or time.monotonic() - last >= _PLAIN_EVERY_S):
            print(line, file=sys.stderr, flush=True)
            last, said = time.monotonic(), line

    return show


def show_summary(summary: RunSummary, *, did: str = "transcribed", rows: str = "segment") -> None:
    """The closing lines of a run that ``did`` something to audio and wrote a number of ``rows``."""
    console = Console(highlight=False, markup=False, emoji=False)
    table = Table.grid(padding=(0, 2))
    if summary.num_shards_before == summary.num_shards:
        table.add_row("nothing to do", f"{_number(summary.num_shards, 'shard')} published by earlier runs")
    else:
        rate = (summary.audio_s + summary.rejected_s) / summary.wall_s if summary.wall_s else 0
        table.add_row(did, f"{audio_time(summary.audio_s)} of audio in {_number(summary.num_rows, rows)}")
        table.add_row("took", f"{_clock(summary.wall_s)} ({rate:.1f} x real time, start-up included)")
    if summary.num_rejects:
        reasons = ", ".join(
            f"{count} {reason}" for reason, count in sorted(summary.rejects_by_reason.items())
        )
        table.add_row(Text("rejected", "yellow"), f"{audio_time(summary.rejected_s)}: {reasons}")
    for reason, count in sorted(summary.skipped.items()):
        table.add_row("not planned", f"{count} {reason}")
    table.add_row("written to", summary.output)
    console.print(table)


def show_status(output: str, status: Status) -> None:
    """What of an output is done, pending and rejected."""
    console = Console(highlight=False, markup=False, emoji=False)
    table = Table("", "audio", "shards", "rows", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("done", audio_time(status.done_s), str(status.num_shards_done), str(status.num_rows))
    table.add_row("rejected", audio_time(status.rejected_s), "", str(status.num_rejects))
    table.add_row("pending", audio_time(status.pending_s), str(status.num_shards_pending), "")
    console.print(table)
    for reason, count in sorted(status.rejects_by_reason.items()):
        console.print(f"  {count} x {reason}")
    if status.num_shards_pending:
        console.print(f"run the same command again to do what is pending in {output}")


def show_audit(found: Audit) -> None:
    """The balance of an output, and what is wrong with it."""
    console = Console(highlight=False, markup=False, emoji=False)
    table = Table("", "items", "rows", "audio", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("planned", str(found.num_items), "", "")
    table.add_row("done", str(found.num_items_ok), str(found.num_rows), audio_time(found.audio_s))
    rejected = str(found.num_items_rejected), str(found.num_rejects), audio_time(found.rejected_s)
    table.add_row("rejected", *rejected)
    table.add_row("pending", str(found.num_items_pending), "", "")
    console.print(table)
    notes = {
        "rejected in part, with rows of the rest": found.num_items_partly,
        "replaced by a later generation": found.num_items_superseded,
        "files that count for nothing": found.num_leftovers,
    }
    for text, count in notes.items():
        if count:
            console.print(f"  {count} {text}")
    for finding in found.findings[:_FINDINGS_SHOWN]:
        console.print(f"{finding.kind}: {finding.name} {finding.detail}", soft_wrap=True)
    if found.num_findings > _FINDINGS_SHOWN:
        console.print(f"... and {found.num_findings - _FINDINGS_SHOWN} more; --json names a thousand")
    if found.is_complete:
        verdict = f"every item has one outcome; {found.num_files} files are as they were written"
    elif not found.num_items:
        verdict = "nothing is planned yet; run the job again"
    elif found.is_clean:
        verdict = "nothing is wrong, but items are pending; run the job again"
    else:
        verdict = f"{found.num_findings} things are wrong"
    console.print(verdict, style="green" if found.is_complete else "yellow" if found.is_clean else "red")
