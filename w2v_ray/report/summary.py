"""Every number of a report, from one pass over the rows of each table of an output that count."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from typing import Any

from w2v_ray import stores
from w2v_ray.errors import ConfigError, OutputError
from w2v_ray.exports.rows import read_planned
from w2v_ray.output import current_rows
from w2v_ray.plan import Status, status
from w2v_ray.plan.records import read_job, table_of, tables_beside
from w2v_ray.recording_names import match_names
from w2v_ray.references import read_labels
from w2v_ray.report.accuracy import Accuracy, Scoring
from w2v_ray.report.classes import Labels, LabelsReading, Turns, TurnsReading
from w2v_ray.report.embedding_map import Embeddings, EmbeddingsReading
from w2v_ray.report.rejects import Reason, RejectsReading
from w2v_ray.report.runs import Drift, Run, drift, read_runs
from w2v_ray.report.speech import Audio, AudioReading, SampledRow, Speech, SpeechReading

__all__ = ["Report", "summarize"]

_TEXT_KEY = "text"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a report shows of an output. What the output has no table for is None."""

    source: str
    """The output: its canonical path or URL."""
    table: str
    """The table of the job's own task."""
    tables: tuple[str, ...]
    """All tables, the job's own first."""
    made_at: str
    """When the rows were read, ISO 8601 in UTC."""
    job: dict[str, Any]
    """The settings that decide what the rows are."""
    status: Status
    reject_rate: float
    """Share of the items done that were rejected in whole or in part."""
    audio: Audio
    """Of the rows of the job's own table."""
    speech: Speech | None
    accuracy: Accuracy | None
    """None without references."""
    labels: Labels | None
    turns: Turns | None
    embeddings: Embeddings | None
    rejects: tuple[Reason, ...]
    runs: tuple[Run, ...]
    """The oldest first."""
    num_runs_unreadable: int
    drift: tuple[Drift, ...]
    sample: tuple[SampledRow, ...]
    """Rows to look at."""

    def to_json(self) -> str:
        """One line of JSON with the numbers: without the sampled rows and the points of the map."""
        found = dataclasses.asdict(self)
        del found["sample"]
        if found["embeddings"] is not None and found["embeddings"]["map"] is not None:
            del found["embeddings"]["map"]["points"]
        return json.dumps(found)


def summarize(
    source: str,
    *,
    reference: str | None = None,
    text_key: str | None = None,
    speaker_key: str | None = None,
    clusters: str | None = None,
) -> Report:
    """Reads an output and works out what its report shows.

    Args:
        source: The output of a job: folder or URL.
        reference: A table of recordings and what was said in them, as of `w2v_ray.references.read_labels`.
        text_key: Its column or key of texts, ``text`` by default; without ``reference``, the key of the
            manifest's metadata that holds what was said.
        speaker_key: The key of the metadata that says who speaks.
        clusters: A table of speakers, as `w2v-ray cluster` writes it.

    Raises:
        ConfigError: There is nothing to compare with references, or to colour.
        InputError: A table cannot be read, or names a recording that may be several.
        OutputError: ``source`` is no output that can be read.
    """
    if (reason := stores.refusal(source)) is not None:
        raise OutputError(f"output {source!r} {reason}")
    source = stores.canonical(source)
    job = read_job(source)[1]
    tables = (table_of(job), *tables_beside(job))
    if (reference is not None or text_key is not None) and "transcripts" not in tables:
        raise ConfigError(
            f"reference is {reference!r} and text_key {text_key!r}, and {source!r} has no transcripts to "
            "compare with them; leave them out"
        )
    if clusters is not None and "embeddings" not in tables:
        raise ConfigError(f"clusters is {clusters!r}, and {source!r} has no embeddings; leave it out")
    found_status = status(source)
    scoring = _scoring(source, reference, text_key, speaker_key)
    audio, rejects = AudioReading(), RejectsReading()
    readings: dict[str, Any] = {name: _reading(name, scoring, speaker_key, clusters) for name in tables}
    for name in tables:
        for rows in current_rows(source, name):
            if name == tables[0]:
                audio.add(rows)
            readings[name].add(rows)
    for rows in current_rows(source, "rejects"):
        rejects.add(rows)
    runs, num_unreadable = read_runs(source)
    speech = next((readings[name] for name in ("transcripts", "alignments") if name in tables), None)
    return Report(
        source=source,
        table=tables[0],
        tables=tables,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        job=dict(job),
        status=found_status,
        reject_rate=found_status.reject_rate,
        audio=audio.audio(),
        speech=speech.speech() if speech else None,
        accuracy=scoring.accuracy() if scoring else None,
        labels=readings["labels"].labels() if "labels" in tables else None,
        turns=readings["frames"].turns() if "frames" in tables else None,
        embeddings=readings["embeddings"].embeddings() if "embeddings" in tables else None,
        rejects=rejects.reasons(),
        runs=tuple(runs),
        num_runs_unreadable=num_unreadable,
        drift=drift(runs),
        sample=speech.sample() if speech else (),
    )


def _reading(name: str, scoring: Scoring | None, speaker_key: str | None, clusters: str | None) -> Any:
    """What takes in the rows of a table."""
    if name == "transcripts":
        return SpeechReading(scoring)
    if name == "embeddings":
        return EmbeddingsReading(speaker_key=speaker_key, clusters=clusters)
    return {"alignments": SpeechReading, "labels": LabelsReading, "frames": TurnsReading}[name]()


def _scoring(
    source: str, reference: str | None, text_key: str | None, speaker_key: str | None
) -> Scoring | None:
    if reference is None and text_key is None:
        return None
    if reference is None:
        return Scoring(
            references=None,
            num_references=None,
            text_key=text_key or _TEXT_KEY,
            speaker_key=speaker_key,
            source=f"{text_key!r} of the manifest",
        )
    given = read_labels(reference, label_key=text_key or _TEXT_KEY)
    ids = read_planned(source).recording_ids
    places = match_names(list(given), zip(ids, range(len(ids)), strict=True), source=repr(reference))
    return Scoring(
        references={ids[place]: given[name] for name, place in places.items()},
        num_references=len(given),
        text_key=text_key or _TEXT_KEY,
        speaker_key=speaker_key,
        source=reference,
    )
