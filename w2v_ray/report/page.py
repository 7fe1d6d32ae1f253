"""The report as one HTML page that needs nothing else: no server, no network, no script to be read."""

from __future__ import annotations

import base64
import hashlib
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from w2v_ray.report import charts, wording
from w2v_ray.report.accuracy import Wrong
from w2v_ray.report.runs import Drift
from w2v_ray.report.summary import Report

__all__ = ["render"]

_FOLDER = Path(__file__).parent
_SURE = (0.9, 0.75, 0.5)  # a word less sure than the first is marked, and more so below the others
_LEAST_SURE_NAMED = 5
_RUNS_SHOWN = 12
_FEW_POINTS = 300


def render(report: Report, *, version: str) -> str:
    """The page.

    Args:
        report: What it shows.
        version: Of this package.
    """
    style, script = (_source(name) for name in ("style.css", "script.js"))
    noun = "alignment" if report.table == "alignments" else "segment"
    latest = next((run for run in reversed(report.runs) if run.throughput is not None), None)
    return _template().render(
        report=report,
        version=version,
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script),
        name=wording.visible(report.source.rstrip("/").rpartition("/")[2] or report.source),
        lead=_lead(report),
        tiles=_tiles(report),
        latest=latest,
        runs=report.runs[: -_RUNS_SHOWN - 1 : -1],
        drift=[
            (entry, [_drift_text(entry, point.value) for point in entry.points]) for entry in report.drift
        ],
        drift_text=_drift_text,
        noun=noun,
        noun_of_rows=noun,
        a_row="an alignment" if noun == "alignment" else "a segment",
        worst=[(wrong, *_compared(wrong)) for wrong in report.accuracy.worst] if report.accuracy else [],
        rows=[_row(row) for row in report.sample],
        charts=charts,
        marks=_MARKS,
        mark_scale=_mark_scale(report),
        **{name: getattr(wording, name) for name in wording.__all__},
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["time"] = wording.time_text
    return environment.get_template("template.html")


def _shown(value: object) -> object:
    """What any text becomes on its way into the page, before it is escaped."""
    return wording.visible(value) if type(value) is str else value  # Markup is another type, and made here


@cache
def _source(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """What the browser may do with the page: this one style and this one script, and nothing from outside."""
    style_hash, script_hash = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)
    )
    return (
        f"default-src 'none'; style-src 'sha256-{style_hash}'; script-src 'sha256-{script_hash}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _lead(report: Report) -> str:
    """The output in a sentence or two."""
    audio, status = report.audio, report.status
    if not audio.num_rows and not report.rejects:
        return f"Nothing is published yet of {wording.hours(status.planned_s)} of audio that are planned."
    noun = "alignment" if report.table == "alignments" else "segment"
    made = f"{wording.hours(audio.audio_s)} of audio became {wording.count_text(audio.num_rows, noun)}"
    if report.speech is not None:
        made += f" with {wording.count_text(report.speech.num_words, 'word')}"
    elif report.turns is not None:
        made += f" with {wording.count_text(report.turns.num_turns, 'turn')}"
    rejected = (
        f"{wording.count_text(status.num_rejects, 'reject')}"
        if status.num_rejects
        else "nothing was rejected"
    )
    text = f"{made}; {rejected}."
    if status.num_shards_pending:
        text += f" {wording.hours(status.pending_s)} are still to be done."
    return text


def _tiles(report: Report) -> list[tuple[str, str, str]]:
    """The numbers that come first: what each is, the number, and a note."""
    audio, status = report.audio, report.status
    share = audio.audio_s / status.planned_s if status.planned_s else None
    tiles = [
        ("audio", wording.hours(audio.audio_s), f"of {wording.hours(status.planned_s)} planned")
        if status.num_shards_pending and share is not None
        else ("audio", wording.hours(audio.audio_s), "all that was planned is done"),
        ("recordings", f"{audio.num_recordings:,}", f"in {wording.count_text(audio.num_rows, 'row')}"),
    ]
    if (speech := report.speech) is not None:
        rate = speech.speech_rate_wps
        tiles.append(
            ("words", f"{speech.num_words:,}", f"median {rate.p50:.1f} words/s" if rate else "none found")
        )
        if (sure := speech.confidence) is not None:
            tiles.append(("confidence", f"{sure.p50:.2f}", f"median; 10% are below {sure.p10:.2f}"))
    if (accuracy := report.accuracy) is not None:
        of = f"of {wording.count_text(accuracy.num_recordings, 'recording')}"
        if accuracy.interval is not None:
            low, high = (wording.percent(bound) for bound in accuracy.interval)
            of = f"95% interval {low} to {high}"
        tiles.append(("word error rate", wording.percent(accuracy.rate), of))
    if (labels := report.labels) is not None:
        tiles.append(("labels", f"{len(labels.by_label):,}", f"{labels.num_unnamed:,} rows without one"))
    if (turns := report.turns) is not None:
        tiles.append(
            (
                "turns",
                f"{turns.num_turns:,}",
                f"of {wording.count_text(len(turns.by_class), 'class', 'classes')}",
            )
        )
    if (found := report.embeddings) is not None:
        tiles.append(("embeddings", f"{found.num_embeddings:,}", f"of {found.dimension} numbers each"))
    rejected = f"{wording.count_text(status.num_items_rejected, 'item')}, {wording.hours(status.rejected_s)}"
    tiles.append(
        ("rejected", wording.percent(report.reject_rate), rejected if status.num_rejects else "nothing")
    )
    return tiles


def _row(row: Any) -> dict[str, Any]:
    """A row of the transcript browser."""
    words = [(wording.visible(word), sure, _level(sure)) for word, sure in row.words]
    unsure = sorted((entry for entry in words if entry[2]), key=lambda entry: entry[1] or 0.0)
    return {
        "row": row,
        "words": words,
        "unsure": [(word, sure) for word, sure, _ in unsure[:_LEAST_SURE_NAMED]],
        "name": wording.short(row.recording_id),
        "full_name": wording.visible(row.recording_id),
        "start": _clock(row.start_s),
        "end": _clock(row.end_s),
    }


def _level(sure: float | None) -> int:
    """How much a word is marked: 0 not at all, 3 the most."""
    return 0 if sure is None else sum(sure < bound for bound in _SURE)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds, 1), 60)
    whole, minutes = divmod(int(minutes), 60)
    return f"{whole}:{minutes:02}:{rest:04.1f}" if whole else f"{minutes}:{rest:04.1f}"


def _drift_text(entry: Drift, value: float, *, unit: bool = True) -> str:
    if entry.name == "share of rejects":
        return wording.percent(value, digits=2)
    return f"{value:,.2f}\N{NO-BREAK SPACE}{entry.unit if unit else ''}".rstrip()


def _mark_scale(report: Report) -> float:
    """How large marks are on the map: larger where they are few."""
    found = report.embeddings.map if report.embeddings else None
    return 1.5 if found is not None and len(found.points) <= _FEW_POINTS else 1.0


def _compared(wrong: Wrong) -> tuple[Markup, Markup]:
    """What was said and what was recognised, with the words marked that are not in the other."""
    said, recognised = (wording.visible(text).split() for text in (wrong.reference, wrong.recognised))
    marked: tuple[list[Markup], list[Markup]] = ([], [])
    for kind, begin, end, first, last in SequenceMatcher(
        None, said, recognised, autojunk=False
    ).get_opcodes():
        for words, tag, out in (
            (said[begin:end], "del", marked[0]),
            (recognised[first:last], "ins", marked[1]),
        ):
            if words:
                text = escape(" ".join(words))
                out.append(text if kind == "equal" else Markup("<{0}>{1}</{0}>").format(tag, text))
    return Markup(" ").join(marked[0]), Markup(" ").join(marked[1])


# The marks of groups on the map, around (0, 0); after the last come those of points without a group.
_MARKS = (
    '<circle r="4"/>',
    '<path d="M-3.6-3.6h7.2v7.2h-7.2z"/>',
    '<path d="M0-4.6 4.4 3.4h-8.8z"/>',
    '<path d="M0-5 4.4 0 0 5-4.4 0z"/>',
    '<path d="M0 4.6 4.4-3.4h-8.8z"/>',
    '<path d="M-1.5-4.6h3v3.1h3.1v3h-3.1v3.1h-3v-3.1h-3.1v-3h3.1z"/>',
    '<path d="M-4.2-1.4h8.4v2.8h-8.4z"/>',
    '<path d="M-1.4-4.2h2.8v8.4h-2.8z"/>',
)
