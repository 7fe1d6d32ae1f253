"""Lists of pairs to verify, and how well the cosines of embeddings tell which are of one speaker."""

from __future__ import annotations

import csv
import dataclasses
import json
from array import array
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from w2v_ray.embeddings.reading import embedding_matrix, named_rows
from w2v_ray.errors import ConfigError, InputError
from w2v_ray.inputs.named_files import read_lines
from w2v_ray.metrics import equal_error_rate, min_detection_cost
from w2v_ray.recording_names import match_names

__all__ = ["Trials", "Verification", "read_trials", "score_lines", "verify"]

_BLOCK = 1 << 15  # trials scored at once: some tens of MB of embeddings
_KALDI = {"target": True, "nontarget": False}
_VOXCELEB = {"1": True, "0": False}


@dataclasses.dataclass(frozen=True, slots=True)
class Trials:
    """Pairs of recordings, or of segments, and whether each is of one speaker."""

    path: str
    names: list[str]
    """Every name once."""
    first: NDArray[np.int32]
    """Of each pair, the place of the first in ``names``."""
    second: NDArray[np.int32]
    targets: NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, slots=True)
class Verification:
    """How well the scores of trials tell them apart."""

    num_targets: int
    num_nontargets: int
    num_missing: int
    """Trials left out for want of an embedding."""
    eer: float
    eer_threshold: float
    min_dcf: dict[float, float]
    """The least detection cost, by the share of targets that it is for."""
    min_dcf_thresholds: dict[float, float]
    scores: NDArray[np.float32]
    """The cosine of each trial; not a number where it was left out."""

    def to_json(self) -> str:
        """One line of JSON, without the scores."""
        found = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "scores"
        }
        costs = found.pop("min_dcf_thresholds")  # infinity, for rejecting all, is no JSON
        found["min_dcf"] = [
            {"p_target": p, "cost": cost, "threshold": costs[p] if np.isfinite(costs[p]) else None}
            for p, cost in self.min_dcf.items()
        ]
        return json.dumps(found)


def read_trials(path: str) -> Trials:
    """Reads a list of trials: ``1 a b`` and ``0 a b``, or ``a b target`` and ``a b nontarget``, by line.

    Names with spaces are quoted (``"a b.wav"``), or the fields are separated by tabs.

    Args:
        path: Text file, plain or gzip; path or URL.

    Raises:
        InputError: It cannot be read, holds no trials, or a line is none.
    """
    numbers: dict[str, int] = {}
    first, second, targets = array("i"), array("i"), bytearray()
    for line_number, line in read_lines(path):
        fields = _fields(line)
        if len(fields) == 3 and fields[2] in _KALDI:
            one, other, is_target = fields[0], fields[1], _KALDI[fields[2]]
        elif len(fields) == 3 and fields[0] in _VOXCELEB:
            is_target, one, other = _VOXCELEB[fields[0]], fields[1], fields[2]
        else:
            raise InputError(
                f"{path!r} line {line_number} is {line[:80]!r}, expected '1 NAME NAME' or 'NAME NAME target' "
                "(0 and nontarget for two speakers); quote names with spaces, or separate fields by tabs"
            )
        first.append(numbers.setdefault(one, len(numbers)))
        second.append(numbers.setdefault(other, len(numbers)))
        targets.append(is_target)
    if not targets:
        raise InputError(f"{path!r} holds no trials; give lines such as '1 NAME NAME'")
    return Trials(
        path,
        list(numbers),
        np.frombuffer(first, np.int32),
        np.frombuffer(second, np.int32),
        np.frombuffer(targets, np.bool_),
    )


def verify(
    trials: Trials,
    embeddings: pa.Table,
    *,
    p_targets: Sequence[float] = (0.01, 0.05),
    skip_missing: bool = False,
) -> Verification:
    """Scores trials by the cosine of their embeddings, and says how well that tells speakers apart.

    Args:
        trials: From `read_trials`.
        embeddings: A table as `read_embeddings` returns.
        p_targets: The shares of targets to give the least detection cost for.
        skip_missing: Whether trials without an embedding are left out; else they are an error.

    Raises:
        ConfigError: One of ``p_targets`` is not between 0 and 1.
        InputError: A name has no embedding or may mean several, or the trials are all of one kind.
    """
    for p_target in p_targets:
        if not 0 < p_target < 1:
            raise ConfigError(f"p_target is {p_target}, expected between 0 and 1, such as 0.01")
    matrix = embedding_matrix(embeddings)
    found = match_names(trials.names, named_rows(embeddings), source=repr(trials.path))
    rows = np.array([found.get(name, -1) for name in trials.names], np.int64)
    first, second = rows[trials.first], rows[trials.second]
    is_there = (first >= 0) & (second >= 0)
    num_missing = int(len(is_there) - is_there.sum())
    if num_missing and not skip_missing:
        missing = [name for name in trials.names if name not in found]
        raise InputError(
            f"{num_missing:,} of {len(is_there):,} trials of {trials.path!r} have no embedding, "
            f"{len(missing):,} names in all, such as {missing[0]!r}; embed those too, or leave their trials "
            "out with --skip-missing"
        )
    scores = np.full(len(is_there), np.nan, np.float32)
    for begin in range(0, len(scores), _BLOCK):
        part = slice(begin, begin + _BLOCK)
        scores[part] = np.einsum("ij,ij->i", matrix[first[part]], matrix[second[part]])
    scores[~is_there] = np.nan
    scored, targets = scores[is_there], trials.targets[is_there]
    num_targets = int(targets.sum())
    if not 0 < num_targets < len(targets):
        raise InputError(
            f"{num_targets:,} of the {len(targets):,} trials of {trials.path!r} that have embeddings are "
            "targets, expected some of both kinds; give more trials"
        )
    equal = equal_error_rate(scored, targets)
    costs = {p: min_detection_cost(scored, targets, p_target=p) for p in p_targets}
    return Verification(
        num_targets=num_targets,
        num_nontargets=len(targets) - num_targets,
        num_missing=num_missing,
        eer=equal.rate,
        eer_threshold=equal.threshold,
        min_dcf={p: found.cost for p, found in costs.items()},
        min_dcf_thresholds={p: found.threshold for p, found in costs.items()},
        scores=scores,
    )


def score_lines(trials: Trials, scores: NDArray[np.float32]) -> Iterator[str]:
    """The trials that have a score: both names, the score, and target or nontarget, separated by tabs."""
    names = trials.names
    values = zip(
        trials.first.tolist(), trials.second.tolist(), scores.tolist(), trials.targets.tolist(), strict=True
    )
    for first, second, score, is_target in values:
        if score == score:  # a number
            yield f"{names[first]}\t{names[second]}\t{score:.6f}\t{'target' if is_target else 'nontarget'}\n"


def _fields(line: str) -> list[str]:
    if "\t" in line:
        return [field.strip() for field in line.split("\t")]
    if '"' in line:
        return next(csv.reader([line], delimiter=" ", skipinitialspace=True))
    return line.split()
