"""Making results: all that comes of what a job's heads gave, one stage after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from w2v_ray.stages.align_text import AlignText, AlignTextConfig
from w2v_ray.stages.choose_labels import ChooseLabels, ChooseLabelsConfig
from w2v_ray.stages.decode_text import DecodeText, DecodeTextConfig
from w2v_ray.stages.find_turns import FindTurns, FindTurnsConfig
from w2v_ray.stages.keep_log_probs import KeepLogProbs

__all__ = ["RESULT_STAGES", "ResultConfig", "ResultStage"]

ResultConfig = DecodeTextConfig | AlignTextConfig | ChooseLabelsConfig | FindTurnsConfig
# What makes a task's results of what its head gives: the stage, and the name that its rejects have.
RESULT_STAGES: dict[type[ResultConfig], tuple[str, Callable[[Any], Callable[[pa.Table], pa.Table]]]] = {
    DecodeTextConfig: ("decode_text", DecodeText),
    AlignTextConfig: ("align_text", AlignText),
    ChooseLabelsConfig: ("choose_labels", ChooseLabels),
    FindTurnsConfig: ("find_turns", FindTurns),
}


class ResultStage:
    """The stages that make the results of all heads, one after another."""

    def __init__(self, configs: Sequence[ResultConfig], keep: int | None) -> None:
        self._stages: list[Callable[[pa.Table], pa.Table]] = []
        for config in configs:
            if keep is not None and isinstance(config, DecodeTextConfig):
                self._stages.append(KeepLogProbs(config.tokenizer, count=keep))
            self._stages.append(RESULT_STAGES[type(config)][1](config))

    def __call__(self, table: pa.Table) -> pa.Table:
        for stage in self._stages:
            table = stage(table)
        return table
