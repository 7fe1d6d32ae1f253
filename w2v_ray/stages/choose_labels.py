"""The label stage: the scores of the classes of each segment in, its likeliest labels out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from w2v_ray.errors import CheckpointError, ConfigError
from w2v_ray.schema import LABEL

__all__ = ["ChooseLabels", "ChooseLabelsConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChooseLabelsConfig:
    """What the scores stand for, and which of them are named."""

    classes: tuple[str, ...]
    """In the order of the model's outputs."""
    top_k: int = 5
    """How many are named, at most."""
    threshold: float | None = None
    """The least score that is named; None: any."""

    def __post_init__(self) -> None:
        if not self.classes:
            raise ConfigError(
                "classes is empty, expected the names of the model's outputs; take its id2label"
            )
        if self.top_k < 1:
            raise ConfigError(f"top_k is {self.top_k}, expected at least 1; try 5")


class ChooseLabels:
    """Adds ``label``, ``score`` and ``labels`` to a table of encoded segments and drops ``class_scores``.

    Where several classes have one score, the one that comes first in the model is named first.

    Raises:
        CheckpointError: The scores are of another number of classes.
    """

    def __init__(self, config: ChooseLabelsConfig) -> None:
        self._config = config

    def __call__(self, table: pa.Table) -> pa.Table:
        config = self._config
        rows: list[list[dict[str, object]] | None] = []
        labels: list[str | None] = []
        scores: list[float | None] = []
        for found in table.column("class_scores"):
            if not found.is_valid:
                rows.append(None)
                labels.append(None)
                scores.append(None)
                continue
            values = found.values.to_numpy(zero_copy_only=False)
            if len(values) != len(config.classes):
                raise CheckpointError(
                    f"the model gives {len(values)} scores, and its config.json names {len(config.classes)} "
                    "classes; correct id2label"
                )
            best = np.argsort(-values, kind="stable")[: config.top_k]
            if config.threshold is not None:
                named = [i for i in best if values[i] >= np.float32(config.threshold)]
            else:
                named = list(best)
            rows.append([{"label": config.classes[i], "score": float(values[i])} for i in named])
            labels.append(config.classes[named[0]] if named else None)
            scores.append(float(values[best[0]]))
        table = table.drop_columns(["class_scores"])
        for name, column in (("label", labels), ("score", scores), ("labels", rows)):
            field = LABEL.field(name)
            table = table.append_column(field, pa.array(column, field.type))
        return table
