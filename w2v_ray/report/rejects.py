"""What was rejected: by reason and stage, with examples."""

from __future__ import annotations

import dataclasses

import pyarrow as pa
import pyarrow.compute as pc

from w2v_ray.report.sampling import Sample

__all__ = ["Reason", "Rejected", "RejectsReading"]

_EXAMPLES = 3
_TEXT_SHOWN = 400


@dataclasses.dataclass(frozen=True, slots=True)
class Rejected:
    """A row of ``rejects/``."""

    recording_id: str
    start_s: float | None
    end_s: float | None
    message: str
    attempt: int | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Rejects with one error class of one stage."""

    error_class: str
    stage: str
    num_rejects: int
    rejected_s: float
    """Seconds of audio, as far as known."""
    examples: tuple[Rejected, ...]
    """Some of them, drawn at random."""


class RejectsReading:
    """Adds up rejects."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, str], tuple[int, float]] = {}
        self._samples: dict[tuple[str, str], Sample] = {}

    def add(self, rows: pa.Table) -> None:
        """Takes in a table of rejects."""
        keys = rows.group_by(["error_class", "stage"]).aggregate([])
        for key in keys.to_pylist():
            name = key["error_class"], key["stage"]
            of_class = pc.equal(rows.column("error_class"), name[0])
            found = rows.filter(pc.and_(of_class, pc.equal(rows.column("stage"), name[1])))
            number, seconds = self._numbers.get(name, (0, 0.0))
            more_s = pc.sum(found.column("planned_s")).as_py() or 0.0
            self._numbers[name] = number + found.num_rows, seconds + more_s
            sample = self._samples.setdefault(
                name, Sample(_EXAMPLES, columns=[field.name for field in dataclasses.fields(Rejected)])
            )
            sample.add(found)

    def reasons(self) -> tuple[Reason, ...]:
        """What was taken in, the most frequent first."""
        found = [
            Reason(
                error_class=name[0],
                stage=name[1],
                num_rejects=number,
                rejected_s=seconds,
                examples=tuple(
                    Rejected(**row | {"message": row["message"][:_TEXT_SHOWN]})
                    for row in self._samples[name].rows()
                ),
            )
            for name, (number, seconds) in self._numbers.items()
        ]
        return tuple(
            sorted(found, key=lambda reason: (-reason.num_rejects, reason.error_class, reason.stage))
        )
