"""Windows of recordings: what is kept of them is every frame once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2v_ray.audio.windows import Window, cut_windows, window_samples

RATE, HOP, REACH = 16_000, 320, 400


def frames_of(num_samples: int) -> int:
    return max(0, (num_samples - REACH) // HOP + 1)


def shortened(frames: int, times: int) -> int:
    """By adapters of stride 2, kernel 3 and one zero on each side."""
    for _ in range(times):
        frames = -(-frames // 2)
    return frames


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    num_samples=st.integers(REACH, 200_000),
    kept=st.integers(1, 60),
    left=st.integers(0, 20),
    right=st.integers(1, 20),
    adapters=st.integers(0, 3),
)
def test_every_frame_is_kept_once(num_samples: int, kept: int, left: int, right: int, adapters: int) -> None:
    hop = HOP * 2**adapters
    length = (kept + left + right) * hop
    places: list[int] = []
    end = 0
    for window in cut_windows(num_samples, length, left * hop, right * hop):
        assert window.start + window.left == end
        assert window.start % hop == 0
        assert window.end - window.start <= length
        end = window.end - window.right
        inner = shortened(frames_of(window.end - window.start), adapters)
        start = window.start // hop
        places += range(start, start + inner)[window.kept(hop)]
    assert end == num_samples
    assert places == list(range(shortened(frames_of(num_samples), adapters)))


def test_of_windows_without_a_right_stride_the_last_frame_is_lost_as_elsewhere() -> None:
    """It would reach into the next window; pipelines that are asked for strides of 0 do the same."""
    windows = list(cut_windows(32_000, 16_000, 0, 0))
    assert [frames_of(w.end - w.start) for w in windows] == [49, 49]
    assert frames_of(32_000) == 99


def test_the_ends_of_a_recording_are_kept() -> None:
    assert list(cut_windows(50_000, 20_000, 4_000, 2_000)) == [
        Window(0, 20_000, 0, 2_000),
        Window(14_000, 34_000, 4_000, 2_000),
        Window(28_000, 48_000, 4_000, 2_000),
        Window(42_000, 50_000, 4_000, 0),
    ]
    assert list(cut_windows(20_000, 20_000, 4_000, 2_000)) == [Window(0, 20_000, 0, 0)]
    assert list(cut_windows(0, 20_000, 4_000, 2_000)) == [Window(0, 0, 0, 0)]


def test_seconds_are_rounded_to_frames() -> None:
    assert window_samples(30, None, rate=RATE, hop=HOP) == (480_000, 80_000, 80_000)
    assert window_samples(1.0, 0.106, rate=RATE, hop=HOP) == (16_000, 1_600, 1_600)
    assert window_samples(1.0, (0.2, 0), rate=RATE, hop=HOP) == (16_000, 3_200, 0)
    assert window_samples(1.01, [0.1, 0.1], rate=RATE, hop=2_560) == (15_360, 2_560, 2_560)


@pytest.mark.parametrize(
    ("chunk_s", "stride_s", "message"),
    [
        (1.0, 0.5, "chunk_length_s is 1.0 and stride_length_s 0.5 and 0.5, expected strides from 0"),
        (1.0, (0.8, 0.3), "sum is shorter than the chunk"),
        (1.0, (-0.1, 0.3), "strides from 0"),
        (0, None, "chunk_length_s is 0"),
        (1.0, (0.1, 0.1, 0.1), "expected seconds, or a pair of them"),
    ],
)
def test_windows_of_which_nothing_is_left(chunk_s: float, stride_s: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        window_samples(chunk_s, stride_s, rate=RATE, hop=HOP)  # type: ignore[arg-type]
