"""What a person sees in the terminal: progress while a job runs, and tables when it is done."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from w2v_ray.progress import Progress

if TYPE_CHECKING:
    from w2v_ray.job import RunSummary
    from w2v_ray.output import Audit
    from w2v_ray.plan import Plan, Status

__all__ = [
    "LiveLine",
    "audio_time",
    "progress_line",
    "record_line",
    "show_audit",
    "show_changes",
    "show_plan",
    "show_status",
    "show_summary",
    "shown_planning",
    "shown_progress",
    "size_text",
    "table_console",
]

_FINDINGS_SHOWN = 20
_BETWEEN = "  |  "
_ANY_WIDTH = 10_000
_PLAIN_EVERY_S = 10.0  # between lines where there is no terminal


def table_console() -> Console:
    """Where tables go: as wide as the terminal, and where there is none, with each row in one line."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _ANY_WIDTH
    return console


def audio_time(seconds: float) -> str:
    """Seconds of audio as people say them: "48 s", "12.5 min", "3.20 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:,.2f} h"


def size_text(size: float) -> str:
    """Bytes as people say them: "812 bytes", "48.2 kB", "1.4 MB", "71.9 GB"."""
    units = ["bytes", "kB", "MB"]
    while units and size >= 1000:
        size /= 1000
        units.pop(0)
    unit = units[0] if units else "GB"
    return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def progress_line(progress: Progress) -> str:
    """One line: audio done of all, the rate, the time left, the rejects, and what waits for each stage."""
    done_s = progress.before_s + progress.done_s
    rate = progress.rate if progress.done_s > 0 else None
    return _line(done_s, progress.planned_s, rate, progress.left_s, progress.num_rejects, progress.queue)


def record_line(record: Mapping[str, Any]) -> str:
    """The same of the record of a run, with its state where it is not running."""
    p = record["progress"]
    done_s, rate = p["before_s"] + p["done_s"], p["rate_x"] if p["done_s"] > 0 else None
    left_s, queue = (p["left_s"], p["queue"]) if record["state"] == "running" else (None, {})
    line = _line(done_s, p["planned_s"], rate, left_s, p["num_rejects"], queue)
    return line if record["state"] == "running" else f"{record['state']}{_BETWEEN}{line}"


def _line(
    done_s: float,
    planned_s: float,
    rate: float | None,
    left_s: float | None,
    num_rejects: int,
    queue: Mapping[str, int],
) -> str:
    seconds, unit = (1, "s") if planned_s < 120 else (60, "min") if planned_s < 7200 else (3600, "h")
    parts = [f"{done_s / seconds:,.1f} of {planned_s / seconds:,.1f} {unit}"]
    if rate is not None:
        parts.append(f"{rate:,.0f}x real time" if rate >= 10 else f"{rate:.1f}x real time")
    if left_s:
        parts.append(f"{_wait(left_s)} left")
    parts.append(_number(num_rejects, "reject"))
    if queue:
        waiting = (f"{stage.partition('_')[0]} {number}" for stage, number in queue.items())
        parts.append(f"queue: {', '.join(waiting)}")
    return _BETWEEN.join(parts)


def _wait(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


class LiveLine:
    """One line that changes in its place on a terminal; elsewhere, a line for each change.

    Args:
        stream: Where it is written.
        every_s: Seconds between lines where there is no terminal.
    """

    def __init__(self, stream: TextIO, *, every_s: float = 0.0) -> None:
        self._console = Console(file=stream)
        self._stream = stream
        self._every_s = every_s
        self._said, self._said_at = "", -math.inf

    def show(self, line: str, *, is_last: bool = False) -> None:
        """Shows a line in the place of the one before."""
        if self._console.is_terminal:
            # One column is left: a cursor behind the last would go to the next line.
            self._stream.write(f"\r{line[: max(1, self._console.width - 1)]}\x1b[K")
        elif line != self._said and (is_last or time.monotonic() - self._said_at >= self._every_s):
            self._said, self._said_at = line, time.monotonic()
            self._stream.write(f"{line}\n")
        self._stream.flush()

    def end(self, *, keep: bool) -> None:
        """Leaves the line on the terminal, or takes it away."""
        if self._console.is_terminal:
            self._stream.write("\n" if keep else "\r\x1b[K")
            self._stream.flush()


@contextmanager
def shown_planning(*, quiet: bool) -> Iterator[None]:
    """Shows in a terminal that a plan is being made."""
    if quiet:
        yield
    else:
        with Console(stderr=True).status("listing the inputs and planning"):
            yield


def show_changes(plan: Plan) -> None:
    """What of the inputs is not as it was when they were planned last."""
    new = f"{_number(plan.num_new - plan.num_changed, 'item')} new, {plan.num_changed:,} changed"
    gone = f", {_number(plan.num_gone, 'recording')} gone, whose rows stay" if plan.num_gone else ""
    print(f"since the last plan: {new}{gone}", file=sys.stderr, flush=True)


def show_plan(plan: Plan) -> None:
    """What is about to be done."""
    todo = f"{audio_time(plan.pending_s)} of audio in {_number(plan.num_pending, 'shard')}"
    before = plan.num_shards - plan.num_pending
    done = f", {_number(before, 'shard')} done already" if before else ""
    print(f"{todo} to do{done}; starting workers", file=sys.stderr, flush=True)


@contextmanager
def shown_progress(*, quiet: bool) -> Iterator[Callable[[Progress], None] | None]:
    """Shows progress on standard error: one line in a terminal, and one now and then elsewhere."""
    if quiet:
        yield None
        return
    line = LiveLine(sys.stderr, every_s=_PLAIN_EVERY_S)

    def show(progress: Progress) -> None:
        with suppress(OSError):  # a terminal that was closed: the run goes on, and is watched, without it
            line.show(progress_line(progress), is_last=progress.num_shards_done == progress.num_shards)

    try:
        yield show
    finally:
        with suppress(OSError):
            line.end(keep=False)


def show_summary(summary: RunSummary, *, did: str = "transcribed", rows: str = "segment") -> None:
    """The closing lines of a run that ``did`` something to audio and wrote a number of ``rows``."""
    console = table_console()
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
    console = table_console()
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


def _printable(text: str) -> str:
    """The text with codes for characters that a terminal would obey: names of files may hold any."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def show_audit(found: Audit) -> None:
    """The balance of an output, and what is wrong with it."""
    console = table_console()
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
        console.print(_printable(f"{finding.kind}: {finding.name} {finding.detail}"), soft_wrap=True)
    if found.num_findings > _FINDINGS_SHOWN:
        console.print(f"... and {found.num_findings - _FINDINGS_SHOWN} more; --json names a thousand")
    if found.is_complete:
        verdict = f"every item has one outcome; {found.num_files} files are as they were written"
    elif not found.num_items:
        verdict = "nothing is planned yet; run the job again"
    elif found.is_clean:
        verdict = "nothing is wrong, but items are pending; run the job again"
    else:
        many = found.num_findings != 1
        verdict = f"{found.num_findings} {'things are' if many else 'thing is'} wrong"
    console.print(verdict, style="green" if found.is_complete else "yellow" if found.is_clean else "red")
