"""What a report takes from the records of runs, and how it counts and samples what passes by once."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.report_outputs import run_record, write_runs
from w2v_ray.report.distributions import Tally
from w2v_ray.report.runs import drift, read_runs
from w2v_ray.report.sampling import Extremes, Sample


def test_runs_are_read_and_the_last_compared_with_those_before(tmp_path: Path) -> None:
    records = [run_record(number, drifted=number == 5) for number in range(6)]
    write_runs(tmp_path, records)
    runs, num_unreadable = read_runs(str(tmp_path))
    assert ([run.run for run in runs], num_unreadable) == ([record["run"] for record in records], 0)
    assert runs[0].rate == pytest.approx(records[0]["totals"]["audio_s"] / records[0]["wall_s"])
    found = {entry.name: entry for entry in drift(runs)}
    assert found.keys() == {
        "confidence",
        "speech rate",
        "share of rejects",
        "length of a segment",
        "throughput",
    }
    for name, key in (("speech rate", "speech_rate_wps"), ("share of rejects", "reject_rate")):
        values = [record["quality"][key] for record in records]
        assert [point.value for point in found[name].points] == values
        assert found[name].earlier == (min(values[:-1]), sorted(values[:-1])[2], max(values[:-1]))
        assert found[name].is_outside == (not min(values[:-1]) <= values[-1] <= max(values[:-1]))
    assert found["confidence"].is_outside


def test_throughput_over_all_intervals_is_what_was_done(tmp_path: Path) -> None:
    record = run_record(1)
    write_runs(tmp_path, [record])
    (run,), _ = read_runs(str(tmp_path))
    assert run.throughput is not None
    assert list(run.throughput.rates) == list(record["stages"])
    for stage, rates in run.throughput.rates.items():
        done = record["timeline"][-1]["audio_s"][stage]
        assert sum(rates) * run.throughput.interval_s == pytest.approx(done)


def test_records_that_are_odd_or_broken_do_no_harm(tmp_path: Path) -> None:
    silent = run_record(
        0, state="running", ended_at=None, timeline=None, quality=None, totals=None, stages=None
    )
    write_runs(tmp_path, [silent, run_record(1, wall_s=None), run_record(2, quality={"confidence": None})])
    (tmp_path / "_runs" / "broken.json").write_text("{")
    (tmp_path / "_runs" / "other.json").write_text("[]")
    runs, num_unreadable = read_runs(str(tmp_path))
    assert [run.state for run in runs] == ["lost", "done", "done"]
    assert num_unreadable == 2
    assert runs[0].throughput is None
    assert {entry.name for entry in drift(runs)} == set()
    assert read_runs(str(tmp_path / "nowhere")) == ([], 0)


# ---- counting and sampling


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0, 1e5])
def test_a_tally_widens_its_bins_as_values_grow(scale: float) -> None:
    values = np.random.default_rng(3).lognormal(0, 1, 5000) * scale
    tally = Tally(width=1e-3)
    for part in np.array_split(np.sort(values), 7):
        tally.add(part)
    found = tally.distribution()
    assert found is not None
    assert found.resolution <= max(1e-3, values.max() / 1000)
    assert found.p50 == pytest.approx(np.quantile(values, 0.5, method="inverted_cdf"), abs=found.resolution)
    edges = np.array(
        [bin_.start for bin_ in found.bins] + [np.inf if found.bins[-1].end is None else found.max]
    )
    counts = [np.count_nonzero((values >= a - 1e-9) & (values < b)) for a, b in pairwise(edges)]
    assert [bin_.count for bin_ in found.bins][:-1] == counts[:-1]
    assert sum(bin_.count for bin_ in found.bins) == 5000
    assert len(found.bins) <= 32


def test_a_tally_takes_edges_and_what_is_no_number() -> None:
    tally = Tally(width=0.1, limit=1.0)
    tally.add(np.array([0.3, 1.0, np.nan, np.inf]))
    found = tally.distribution()
    assert found is not None
    assert found.count == 2
    spans = {(bin_.start, bin_.end): bin_.count for bin_ in found.bins if bin_.count}
    assert spans == {(0.3, 0.4): 1, (0.9, 1.0): 1}
    assert Tally(width=0.1).distribution() is None


def test_values_that_are_all_alike_have_bins_of_some_width() -> None:
    tally = Tally(width=1e-3)
    tally.add(np.full(200, 2.0))
    found = tally.distribution()
    assert found is not None
    assert (found.min, found.p10, found.max) == (2.0, 2.0, 2.0)
    assert found.bins[0].end is not None
    assert found.bins[0].end >= 0.1
    assert [bin_.count for bin_ in found.bins if bin_.count] == [200]


def test_a_sample_does_not_depend_on_how_rows_come() -> None:
    table = pa.table({"n": np.arange(1000)})
    whole, parts = (Sample(50, columns=["n"]) for _ in range(2))
    whole.add(table)
    for begin in range(0, 1000, 33):
        parts.add(table.slice(begin, 33))
    drawn = [row["n"] for row in whole.rows()]
    assert drawn == [row["n"] for row in parts.rows()] == sorted(set(drawn))
    assert len(drawn) == 50
    counts = np.zeros(20)
    for seed in range(300):
        sample = Sample(10, columns=["n"], seed=seed)
        sample.add(table.slice(0, 20))
        counts[[row["n"] for row in sample.rows()]] += 1
    assert counts.min() > 100, "each of twenty is drawn about half of the time"
    assert counts.max() < 200


def test_extremes_are_the_lowest_and_the_first_of_equals() -> None:
    keys = np.array([3.0, np.nan, 1.0, 2.0, 1.0, 1.0])
    extremes = Extremes(3)
    for begin in (0, 2, 4):
        extremes.add(pa.table({"n": np.arange(begin, begin + 2)}), keys[begin : begin + 2])
    assert [row["n"] for row in extremes.rows()] == [2, 4, 5]
