"""What a person reads: progress, the closing lines, and the demo's table."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from w2v_ray import console
from w2v_ray.job import RunSummary
from w2v_ray.progress import Meter, Progress, Tally


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


def test_a_line_of_progress_says_hours_rate_time_left_rejects_and_queues() -> None:
    queue = {"encode": 2, "decode_text": 1, "write_parquet": 0}
    line = console.progress_line(replace(progress(), queue=queue))
    assert line == (
        "3.0 of 10.0 h  |  72x real time  |  6 min left  |  2 rejects  |  queue: encode 2, decode 1, write 0"
    )
    one = console.progress_line(progress(planned_s=90.0, before_s=0.0, done_s=45.0, num_rejects=1))
    assert one == "45.0 of 90.0 s  |  0.5x real time  |  2 min left  |  1 reject"
    first = console.progress_line(progress(done_s=0.0, before_s=0.0, num_rejects=0, num_shards_done=0))
    assert first == "0.0 of 10.0 h  |  0 rejects"


@pytest.mark.parametrize(
    ("left_s", "said"), [(30.0, "30 s"), (600.0, "10 min"), (7200.0, "2.0 h"), (864_000.0, "10.0 days")]
)
def test_the_time_left_is_told_in_the_unit_that_fits(left_s: float, said: str) -> None:
    planned_s = 20.0 + left_s  # 20 s of audio in 20 s of the clock
    line = console.progress_line(progress(planned_s=planned_s, before_s=0.0, done_s=20.0, elapsed_s=20.0))
    assert f"|  {said} left  |" in line


def test_a_terminal_shows_one_line_as_long_as_it_is_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "20")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    stream = Terminal()
    line = console.LiveLine(stream)
    line.show("a" * 50)
    line.show("b")
    line.end(keep=True)
    assert stream.getvalue() == "\r" + "a" * 19 + "\x1b[K" + "\rb\x1b[K" + "\n"


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
        meter.add(Tally(stage="encode", audio_s=seconds, errors={("encode", "EncodeError"): 1}))
    meter.add(Tally(stage="write_parquet", rows=3, audio_s=4.0))
    assert meter.encoded_s() == 4.0
    totals = meter.totals()
    assert (totals["encode"].audio_s, totals["write_parquet"].rows) == (4.0, 3)
    assert totals["encode"].errors == {("encode", "EncodeError"): 2}
    assert totals["encode"].padding_s is None  # nobody said
    assert Meter().encoded_s() == 0.0


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


def test_what_no_terminal_shows_is_not_broken_into_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    output = "/folder" * 40
    console.show_summary(summary(output=output))
    assert capsys.readouterr().out.splitlines()[-1].split() == ["written", "to", output]


def test_a_terminal_that_is_gone_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as stream:  # each write to it fails, as to a terminal that was closed
        monkeypatch.setattr("sys.stderr", stream)
        with console.shown_progress(quiet=False) as show:
            assert show is not None
            show(progress(num_shards_done=1))
            with pytest.raises(OSError):
                console.LiveLine(stream).show("this is how it would fail")
        with pytest.raises(OSError):
            stream.close()


def test_no_progress_where_it_would_be_in_the_way(capsys: pytest.CaptureFixture[str]) -> None:
    with console.shown_progress(quiet=True) as show:
        assert show is None
    with console.shown_progress(quiet=False) as show:  # no terminal: lines, the last one always
        assert show is not None
        show(progress(num_shards_done=1))
        show(progress(num_shards_done=2, done_s=9_000.0))
        show(progress(num_shards_done=30, done_s=32_400.0))
        show(progress(num_shards_done=30, done_s=32_400.0))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[-1].startswith("10.0 of 10.0 h")
