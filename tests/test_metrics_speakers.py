"""Equal error rate, detection cost, accuracy and diarization error rate, against the oracles of the field."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest
from pyannote.core import Annotation, Segment, Timeline
from pyannote.metrics.diarization import DiarizationErrorRate
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from sklearn import metrics as oracle

from w2v_ray import MissingExtraError
from w2v_ray.metrics import (
    DiarizationErrors,
    classification_accuracy,
    classification_report,
    diarization_error_rate,
    diarization_errors,
    equal_error_rate,
    min_detection_cost,
    top_k_accuracy,
)

CASES = range(50)
Span = tuple[str, float, float]


# ---- verification


def scored_pairs(case: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of which many are equal, of pairs that they tell apart well, badly, or not at all."""
    generator = np.random.default_rng(case)
    targets = generator.random(generator.integers(2, 400)) < generator.uniform(0.05, 0.95)
    targets[:2] = True, False
    scores = generator.normal(size=len(targets)) + generator.uniform(-0.5, 4) * targets
    return np.round(scores, int(generator.integers(0, 3))), targets


@pytest.mark.parametrize("case", CASES)
def test_the_equal_error_rate_is_where_the_curve_of_scikit_learn_crosses(case: int) -> None:
    scores, targets = scored_pairs(case)
    false_alarms, hits, thresholds = oracle.roc_curve(targets, scores, drop_intermediate=False)
    found = equal_error_rate(scores, targets)
    # Where the curve rises straight up, its height there is any of the span: interpolate along it instead.
    gap = 1 - hits - false_alarms
    along = interp1d(np.arange(len(gap)), gap)
    at = brentq(along, 0, len(gap) - 1, xtol=1e-14)
    assert found.rate == pytest.approx(interp1d(np.arange(len(gap)), false_alarms)(at), abs=1e-12)
    assert found.rate == pytest.approx(1 - interp1d(np.arange(len(gap)), hits)(at), abs=1e-12)
    # At the threshold no other point of the curve has rates that are closer to each other.
    (point,) = np.flatnonzero(thresholds == found.threshold)
    assert abs(gap[point]) == pytest.approx(np.abs(gap[1:]).min(), abs=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_the_detection_cost_is_the_least_of_scikit_learns_points(case: int) -> None:
    scores, targets = scored_pairs(case)
    false_alarms, hits, thresholds = oracle.roc_curve(targets, scores, drop_intermediate=False)
    for p_target, c_miss, c_fa in ((0.01, 1, 1), (0.05, 1, 1), (0.5, 1, 1), (0.01, 10, 1), (0.9, 1, 3)):
        costs = p_target * c_miss * (1 - hits) + (1 - p_target) * c_fa * false_alarms
        found = min_detection_cost(scores, targets, p_target=p_target, c_miss=c_miss, c_fa=c_fa)
        expected = costs.min() / min(p_target * c_miss, (1 - p_target) * c_fa)
        assert found.cost == pytest.approx(expected, abs=1e-12)
        assert found.cost <= 1
        assert costs[thresholds == found.threshold].min() == pytest.approx(costs.min(), abs=1e-12)


def test_rates_of_pairs_that_a_person_can_count() -> None:
    scores, targets = [0.9, 0.8, 0.7, 0.6, 0.4, 0.2], [1, 1, 0, 1, 0, 0]
    assert equal_error_rate(scores, targets) == (pytest.approx(1 / 3), pytest.approx(0.7))
    assert min_detection_cost(scores, targets, p_target=0.01) == (pytest.approx(1 / 3), pytest.approx(0.8))
    assert equal_error_rate([1, 0], [True, False]) == (0, 1)
    assert equal_error_rate([0, 1], [True, False]) == (1, 1)
    assert equal_error_rate([3, 3], [True, False]).rate == 0.5
    assert min_detection_cost([0, 1], [True, False]) == (1, np.inf)  # nothing is better than rejecting all


@pytest.mark.parametrize(
    ("scores", "targets", "complaint"),
    [
        ([1.0, 2.0], [True, True], "2 target and 0 non-target pairs"),
        ([], [], "0 target and 0 non-target"),
        ([1.0], [True, False], "equally long"),
        ([np.nan, 1.0, 2.0], [1, 0, 1], "1 scores are not a number"),
    ],
)
def test_scores_that_say_nothing_are_refused(
    scores: list[float], targets: list[bool], complaint: str
) -> None:
    for measure in (equal_error_rate, min_detection_cost):
        with pytest.raises(ValueError, match=complaint):
            measure(scores, targets)
    with pytest.raises(ValueError, match=r"p_target is 1\.0"):
        min_detection_cost([1, 0], [1, 0], p_target=1.0)
    with pytest.raises(ValueError, match=r"c_fa 0"):
        min_detection_cost([1, 0], [1, 0], c_fa=0)


@pytest.mark.slow
def test_ten_million_pairs_have_the_rate_of_their_distributions() -> None:
    generator = np.random.default_rng(0)
    targets = generator.random(10_000_000) < 0.1
    scores = (generator.normal(size=len(targets)) + 3 * targets).astype(np.float32)
    assert equal_error_rate(scores, targets).rate == pytest.approx(0.0668, abs=5e-4)  # of the normal at 1.5


# ---- classification


@pytest.mark.parametrize("case", CASES)
def test_labels_are_counted_as_scikit_learn_counts(case: int) -> None:
    generator = np.random.default_rng(case)
    names = [f"label {number}" for number in range(generator.integers(1, 7))]
    num = int(generator.integers(1, 100))
    said = generator.choice(names, num).tolist()
    rankings = [generator.permutation(names).tolist() for _ in range(num)]
    given = [ranking[0] for ranking in rankings]
    found = classification_report(said, given)
    assert found.accuracy == classification_accuracy(said, given) == oracle.accuracy_score(said, given)
    labels = sorted({*said, *given})
    assert list(found.labels) == labels
    expected = oracle.precision_recall_fscore_support(said, given, labels=labels, zero_division=0)
    assert np.array(list(found.labels.values())) == pytest.approx(np.array(expected).T)
    macro = oracle.f1_score(said, given, average="macro", labels=labels, zero_division=0)
    assert found.macro_f1 == pytest.approx(macro)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of labels that are given and never right, and of one label alone
        assert found.balanced_accuracy == pytest.approx(oracle.balanced_accuracy_score(said, given))
        matrix = oracle.confusion_matrix(said, given, labels=labels)
    assert sum(count for *_, count in found.confusions) == matrix.sum() - np.trace(matrix)
    for right, wrong, count in found.confusions:
        assert matrix[labels.index(right), labels.index(str(wrong))] == count > 0
    counts = [count for *_, count in found.confusions]
    assert counts == sorted(counts, reverse=True)
    if len(names) > 2:
        scores = [[-ranking.index(name) for name in names] for ranking in rankings]
        for k in range(1, len(names)):
            theirs = oracle.top_k_accuracy_score(said, scores, k=k, labels=names)
            assert top_k_accuracy(said, rankings, k=k) == pytest.approx(theirs)


def test_no_label_is_wrong_and_nobodys() -> None:
    found = classification_report(["yes", "no", "no"], ["yes", None, "maybe"])
    assert found.accuracy == pytest.approx(1 / 3)
    assert found.confusions == [("no", "maybe", 1), ("no", None, 1)]
    assert found.labels["no"] == (0, 0, 0, 2)
    assert found.labels["maybe"] == (0, 0, 0, 0)
    assert found.labels["yes"] == (1, 1, 1, 1)
    assert found.balanced_accuracy == 0.5
    for measure in (classification_accuracy, classification_report):
        with pytest.raises(ValueError, match="0 references and 0 predictions"):
            measure([], [])
        with pytest.raises(ValueError, match="1 references and 2 predictions"):
            measure(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="k is 0"):
        top_k_accuracy(["a"], [["a"]], k=0)


# ---- diarization


def annotation(spans: list[Span]) -> Annotation:
    found = Annotation()
    for track, (label, start_s, end_s) in enumerate(spans):
        found[Segment(start_s, end_s), track] = label
    return found


def made_turns(generator: np.random.Generator, names: str) -> list[Span]:
    turns = []
    for _ in range(generator.integers(1, 25)):
        start_s = generator.integers(0, 60_000) / 1000
        turns.append(
            (str(generator.choice(list(names))), start_s, start_s + generator.integers(1, 9000) / 1000)
        )
    return sorted(turns, key=lambda turn: turn[1])


def perturbed(generator: np.random.Generator, turns: list[Span]) -> list[Span]:
    """Turns with other names, some lost, some of somebody else, their edges moved."""
    names = {label: f"s{number}" for number, label in enumerate(sorted({label for label, *_ in turns}))}
    found = []
    for label, start_s, end_s in turns:
        if generator.random() < 0.1:
            continue
        who = generator.choice(list(names.values())) if generator.random() < 0.2 else names[label]
        start_s, end_s = np.round([start_s, end_s] + generator.normal(size=2) * 0.2, 3)
        if start_s < end_s:
            found.append((str(who), float(start_s), float(end_s)))
    return found


def theirs(
    reference: list[Span],
    hypothesis: list[Span],
    *,
    uem: Timeline | None = None,
    **settings: float,
) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it takes everything to count, as is done here
        metric = DiarizationErrorRate(**settings)
        return dict(metric(annotation(reference), annotation(hypothesis), uem=uem, detailed=True))


def check(ours: DiarizationErrors, expected: dict[str, float]) -> None:
    assert ours.correct_s == pytest.approx(expected["correct"], abs=1e-6)
    assert ours.missed_s == pytest.approx(expected["missed detection"], abs=1e-6)
    assert ours.false_alarm_s == pytest.approx(expected["false alarm"], abs=1e-6)
    assert ours.confusion_s == pytest.approx(expected["confusion"], abs=1e-6)
    assert ours.total_s == pytest.approx(expected["total"], abs=1e-6)
    assert ours.rate == pytest.approx(expected["diarization error rate"], abs=1e-6)


@pytest.mark.parametrize("skip_overlap", [False, True])
@pytest.mark.parametrize("collar", [0.0, 0.25, 0.5])
def test_turns_are_compared_as_pyannote_compares(collar: float, skip_overlap: bool) -> None:
    settings = {"collar": collar, "skip_overlap": skip_overlap}
    for case in CASES:
        generator = np.random.default_rng(case)
        reference = made_turns(generator, "ABCD"[: generator.integers(1, 5)])
        if case % 2:
            hypothesis = perturbed(generator, reference)
        else:
            hypothesis = made_turns(generator, "ABCDEF"[: generator.integers(1, 7)])
        expected = theirs(reference, hypothesis, **settings)
        check(diarization_errors(reference, hypothesis, **settings), expected)
        assert diarization_error_rate(reference, hypothesis, **settings) == pytest.approx(
            expected["diarization error rate"], abs=1e-6
        )
        regions = [(5.0, 20.5), (30.25, 90.0)]
        uem = Timeline([Segment(*region) for region in regions])
        check(
            diarization_errors(reference, hypothesis, regions=regions, **settings),
            theirs(reference, hypothesis, uem=uem, **settings),
        )


def test_turns_that_a_person_can_compare() -> None:
    reference = [("ada", 0.0, 10.0), ("bob", 8.0, 20.0)]
    hypothesis = [("1", 0.0, 9.0), ("2", 9.0, 16.0), ("3", 16.0, 21.0)]
    found = diarization_errors(reference, hypothesis)
    assert found == DiarizationErrors(correct_s=16.0, missed_s=2.0, false_alarm_s=1.0, confusion_s=4.0)
    assert found.rate == pytest.approx(7 / 22)
    skipped = diarization_errors(reference, hypothesis, skip_overlap=True)
    assert (skipped.correct_s, skipped.total_s) == (14.0, 18.0)
    # One turn of nothing has no edges, and without speech there is only a rate where there are errors.
    assert diarization_errors([("a", 5.0, 5.0)], [], collar=1.0) == DiarizationErrors()
    assert diarization_error_rate([], []) == 0
    assert diarization_error_rate([], [("1", 0.0, 1.0)]) == 1
    assert diarization_error_rate([("a", 0.0, 4.0)], []) == 1
    assert sum([found, found], DiarizationErrors()).rate == found.rate


def test_turns_that_make_no_sense_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"a turn of 'a' ends at 1\.0, before it starts at 2\.0"):
        diarization_errors([("a", 2.0, 1.0)], [])
    with pytest.raises(ValueError, match=r"collar is -1"):
        diarization_errors([], [], collar=-1)
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(MissingExtraError, match=r"w2v-ray\[speakers\]"):
        diarization_error_rate([], [])
