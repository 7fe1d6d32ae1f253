"""What a person sees in the terminal: progress while a job runs, and tables when it is done."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from w2v_ray.progress import Progress

if TYPE_CHECKING:
    from w2v_ray.job import RunSummary
    from w2v_ray.plan import Plan, Status

__all__ = [
    "audio_time",
    "progress_line",
    "show_demo",
    "show_plan",
    "show_status",
    "show_summary",
    "shown_planning",
    "shown_progress",
]

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


def progress_line(progress: Progress) -> str:
    """One line: audio done of all, the rate, the time left, the rejects."""
    done = progress.before_s + progress.done_s
    parts = [f"{audio_time(done)} of {audio_time(progress.planned_s)} of audio"]
    if progress.done_s > 0:
        parts.append(f"{progress.rate:.1f} x real time")
    if progress.left_s is not None:
        parts.append(f"{_clock(progress.left_s)} left")
    parts.append(f"{progress.num_shards_done}/{progress.num_shards} shards")
    if progress.num_rejects:
        parts.append(f"{progress.num_rejects} rejects")
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
    todo = f"{audio_time(plan.pending_s)} of audio in {plan.num_pending} shards"
    before = plan.num_shards - plan.num_pending
    done = f", {before} shards are done already" if before else ""
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


def show_summary(summary: RunSummary, *, did: str = "transcribed", rows: str = "segments") -> None:
    """The closing lines of a run that ``did`` something to audio and wrote ``rows``."""
    console = Console(highlight=False, markup=False, emoji=False)
    table = Table.grid(padding=(0, 2))
    if summary.num_shards_before == summary.num_shards:
        table.add_row("nothing to do", f"all {summary.num_shards} shards were published by earlier runs")
    else:
        rate = (summary.audio_s + summary.rejected_s) / summary.wall_s if summary.wall_s else 0
        table.add_row(did, f"{audio_time(summary.audio_s)} of audio in {summary.num_rows} {rows}")
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


def show_demo(output: str) -> None:
    """What was said beside what was recognised without and with a language model, and what to do next."""
    from w2v_ray import demo
    from w2v_ray.metrics import WordErrors, word_errors

    console = Console(highlight=False, markup=False, emoji=False)
    titles = {"greedy": output, "with a language model": demo.redecoded(output)}
    table = Table("said", *titles, title="what was said, what was recognised and how sure", show_lines=True)
    totals = dict.fromkeys(titles, WordErrors())
    found = {title: list(demo.results(place)) for title, place in titles.items()}
    for rows in zip(*found.values(), strict=True):
        said = rows[0][0]
        cells = []
        for title, (_, recognised, confidence) in zip(titles, rows, strict=True):
            totals[title] += word_errors(said, recognised)
            cell = _marked(said, recognised)
            cells.append(cell if confidence is None else cell.append(f"{confidence:.2f}", "dim"))
        table.add_row(said, *cells)
    console.print(table)
    console.print("word error rate, by speakers the checkpoint never heard:")
    for title, total in totals.items():
        console.print(
            f"  {total.rate:6.1%} {title}: {total.substitutions} substituted, {total.deletions} deleted, "
            f"{total.insertions} inserted of {total.num_reference} words"
        )
    console.print(
        f"\nthe tables are in {output}/transcripts/*.parquet, those with the language model in "
        f"{demo.redecoded(output)}; read them with any Parquet reader, such as\n",
        soft_wrap=True,
    )
    console.print(
        f"  python -c \"import pandas; print(pandas.read_parquet('{output}/transcripts'))\"\n", soft_wrap=True
    )
    console.print("or have them as captions, one of ten formats that it writes:\n")
    console.print(
        f"  w2v-ray export {output} --format srt --output {output.rstrip('/')}-captions\n", soft_wrap=True
    )
    console.print("now on your own files, with a checkpoint of general English from the Hugging Face hub:\n")
    console.print(
        "  w2v-ray transcribe YOUR_FOLDER --output out --model facebook/wav2vec2-base-960h\n", soft_wrap=True
    )


def _marked(said: str, recognised: str) -> Text:
    """The recognised words, those that were not said so in red."""
    marked = Text()
    expected, found = said.split(), recognised.split()
    for tag, _, _, start, end in SequenceMatcher(a=expected, b=found, autojunk=False).get_opcodes():
        for word in found[start:end]:
            marked.append(word + " ", None if tag == "equal" else "bold red")
        if tag == "delete":
            marked.append("_ ", "bold red")
    return marked
