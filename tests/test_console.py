"""What a person reads: progress, the closing lines, and the demo's table."""

from __future__ import annotations

import pytest

from w2v_ray import console
from w2v_ray.job import RunSummary
from w2v_ray.progress import Meter, Progress


def progress(**changes: float) -> Progress:
    values = {
        "planned_s": 36_000.0,
        "before_s": 3_600.0,
        "done_s": 7_200.0,
        "num_shards": 30,
        "num_shards_done": 9,
        "num_rejects": 2,
        "elapsed_s": 100.0,
    }
    return Progress(**values | changes)  # type: ignore[arg-type]


def summary(**changes: object) -> RunSummary:
    values: dict[str, object] = {
        "output": "out",
        "num_items": 3,
        "num_shards": 2,
        "num_shards_before": 0,
        "num_rows": 2,
        "num_rejects": 1,
        "reject_rate": 1 / 3,
        "audio_s": 90.0,
        "rejected_s": 10.0,
        "wall_s": 20.0,
        "rejects_by_reason": {"DecodeError": 1},
        "skipped": {"hidden": 4},
    }
    return RunSummary(**values | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (48.4, "48 s"), (600, "10.0 min"), (7200, "2.00 h"), (3.6e9, "1,000,000.00 h")],
)
def test_audio_is_told_in_the_unit_that_fits(seconds: float, said: str) -> None:
    assert console.audio_time(seconds) == said


def test_a_line_of_progress_says_hours_rate_time_left_and_rejects() -> None:
    line = console.progress_line(progress())
    assert line == "3.00 h of 10.00 h of audio, 72.0 x real time, 5:50 left, 9/30 shards, 2 rejects"
    one = console.progress_line(progress(num_shards=1, num_shards_done=1, num_rejects=1))
    assert one.endswith("1/1 shard, 1 reject")
    first = console.progress_line(progress(done_s=0.0, before_s=0.0, num_rejects=0, num_shards_done=0))
    assert first == "0 s of 10.00 h of audio, 0/30 shards"


def test_earlier_runs_count_as_done_but_not_as_speed() -> None:
    assert progress().rate == 72.0
    assert progress().left_s == pytest.approx((36_000 - 3_600 - 7_200) / 72)
    assert progress(done_s=0.0).left_s is None


def test_the_time_left_is_told_when_it_means_something() -> None:
    # Workers took 60 s to start, and 40 s of work did 7,000 s of audio.
    known = progress(first_elapsed_s=60.0, first_done_s=200.0)
    assert known.left_s == pytest.approx((36_000 - 3_600 - 7_200) * 40 / 7_000)
    assert progress(first_elapsed_s=90.0, first_done_s=200.0).left_s is None
    assert "left" not in console.progress_line(progress(first_elapsed_s=90.0, first_done_s=200.0))


def test_the_meter_adds_up() -> None:
    meter = Meter()
    for seconds in (1.5, 2.5):
        meter.add(seconds)
    assert meter.total() == 4.0


def test_the_closing_lines_name_what_was_rejected_and_what_was_not_planned(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console.show_summary(summary())
    shown = capsys.readouterr().out
    for text in ("90 s of audio in 2 segments", "5.0 x real time", "10 s: 1 DecodeError", "4 hidden", "out"):
        assert text in shown
    console.show_summary(summary(output="runs/[bold]:smile:"))
    assert "runs/[bold]:smile:" in capsys.readouterr().out  # a path is not markup
    console.show_summary(summary(num_shards_before=2, num_rows=0, num_rejects=0))
    assert "nothing to do" in capsys.readouterr().out


def test_no_progress_where_it_would_be_in_the_way(capsys: pytest.CaptureFixture[str]) -> None:
    with console.shown_progress(quiet=True) as show:
        assert show is None
    with console.shown_progress(quiet=False) as show:  # no terminal: lines, the last one always
        assert show is not None
        show(progress(num_shards_done=1))
        show(progress(num_shards_done=30))
        show(progress(num_shards_done=30))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "30/30 shards" in lines[-1]
