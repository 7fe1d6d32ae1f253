"""Captions hold every word once, in order and within their limits, and two independent readers find them."""

from __future__ import annotations

import io
import re
from itertools import pairwise

import av
import pytest
from av.subtitles.subtitle import AssSubtitle
from hypothesis import given, settings
from hypothesis import strategies as st

from w2v_ray import ConfigError
from w2v_ray.exports.captions import CaptionSettings, Cue, make_cues, srt, vtt
from w2v_ray.exports.recordings import Recording, Segment, Word

DEFAULT = CaptionSettings()


def recording(words: list[Word], recording_id: str = "a") -> Recording:
    text = " ".join(word.text for word in words)
    end_s = max((word.end_s for word in words), default=0.0)
    segments = [Segment("a@0", None, 0.0, end_s, text, 0.5, words, None)]
    return Recording(recording_id, "a", False, {}, segments, [], False)


def speech(text: str, *, word_s: float = 0.3, gap_s: float = 0.1, start_s: float = 0.0) -> list[Word]:
    step = word_s + gap_s
    return [
        Word(word, start_s + number * step, start_s + number * step + word_s, 0.5)
        for number, word in enumerate(text.split())
    ]


def shown(cue: Cue) -> list[str]:
    return [
        "".join((" " if piece.space and number else "") + piece.text for number, piece in enumerate(line))
        for line in cue.lines
    ]


@st.composite
def any_words(draw: st.DrawFn) -> list[Word]:
    """Words in order; some take no time, some begin where the one before has not ended."""
    letters = st.characters(exclude_categories=["Cs"], exclude_characters="\u2060") | st.sampled_from(
        "<>-&{\\"
    )
    texts = draw(st.lists(st.text(letters, min_size=1, max_size=60), max_size=40))
    now, found = 0.0, []
    for text in texts:
        now += draw(st.sampled_from([0.0, 0.0, 0.02, 0.1, 0.4, 1.5, 30.0]))
        length = draw(st.sampled_from([0.0, 0.02, 0.0205, 0.3, 0.7, 9.0]))
        found.append(Word(text, now, now + length))
        now += length * draw(st.sampled_from([1.0, 1.0, 0.5]))
    return found


@given(any_words(), st.integers(10, 50), st.sampled_from([1.0, 2.5, 7.0]))
@settings(deadline=None, max_examples=200)
def test_every_word_is_there_once_in_order_and_limits_hold(
    words: list[Word], max_line_chars: int, max_cue_seconds: float
) -> None:
    limits = CaptionSettings(max_line_chars=max_line_chars, max_cue_seconds=max_cue_seconds)
    cues = make_cues(words, limits)
    said = "".join(re.sub(r"[\x00-\x1f\x7f-\x9f\s]", "", word.text) for word in words)
    assert "".join(re.sub(r"\s", "", line) for cue in cues for line in shown(cue)) == said
    for cue in cues:
        assert 0 < cue.end_ms - cue.start_ms <= max_cue_seconds * 1000
        assert 1 <= len(cue.lines) <= 2
        for line in shown(cue):
            assert line == line.strip()
            assert 0 < len(line) <= max_line_chars
    for one, other in pairwise(cues):
        assert one.end_ms <= other.start_ms
        # Shown for a second, or until the next one begins, or as long as it may be.
        assert (
            one.end_ms - one.start_ms >= 1000
            or one.end_ms == other.start_ms
            or one.start_ms + 1 == one.end_ms
        )
        # A caption begins with its first word, unless the words before it take no time at all.
        assert other.start_ms == other.lines[0][0].start_ms or one.end_ms - one.start_ms == 1
    assert not cues or cues[0].start_ms == cues[0].lines[0][0].start_ms


@given(any_words())
@settings(deadline=None, max_examples=100)
def test_files_are_read_back_as_they_were_meant(words: list[Word]) -> None:
    cues = make_cues(words, DEFAULT)
    expected = [(cue.start_ms, cue.end_ms, shown(cue)) for cue in cues]
    assert parse_srt(srt(recording(words), DEFAULT)) == expected
    assert parse_vtt(vtt(recording(words), DEFAULT)) == expected
    assert parse_vtt(vtt(recording(words), CaptionSettings(words=True))) == expected


CUE = r"(\d\d+):(\d\d):(\d\d){point}(\d\d\d) --> (\d\d+):(\d\d):(\d\d){point}(\d\d\d)"


def unescaped(line: str) -> str:
    assert "-->" not in line
    assert not re.search(r"[<>]|&(?!amp;|lt;|gt;)", line)
    return line.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def parse_srt(text: str) -> list[tuple[int, int, list[str]]]:
    """SubRip: blocks parted by empty lines, each a number from 1, the times and the lines."""
    found = []
    blocks = text.removesuffix("\n").split("\n\n") if text else []
    for number, block in enumerate(blocks, 1):
        index, times, *lines = block.split("\n")
        assert int(index) == number
        assert not any("-->" in line or re.search("[<{](?!\u2060)", line) for line in lines)
        found.append((*span(times, ","), [line.replace("\u2060", "") for line in lines]))
    return found


def parse_vtt(text: str) -> list[tuple[int, int, list[str]]]:
    """WebVTT: the signature, then blocks parted by empty lines, each the times and the lines."""
    signature, *blocks = text.removesuffix("\n").split("\n\n")
    assert signature == "WEBVTT"
    found = []
    for block in blocks:
        times, *lines = block.split("\n")
        start_ms, end_ms = span(times, ".")
        stamps = [clock(*found) for found in re.findall(r"<(\d\d+):(\d\d):(\d\d)\.(\d\d\d)>", block)]
        assert stamps == sorted(set(stamps))  # as the format demands: each later than the one before
        assert all(start_ms < stamp < end_ms for stamp in stamps)
        found.append((start_ms, end_ms, [unescaped(re.sub(r"<[\d:.]+>", "", line)) for line in lines]))
    return found


def span(times: str, point: str) -> tuple[int, int]:
    match = re.fullmatch(CUE.format(point=re.escape(point)), times)
    assert match, times
    return clock(*match.groups()[:4]), clock(*match.groups()[4:])


def clock(hours: str, minutes: str, seconds: str, ms: str) -> int:
    assert int(minutes) < 60
    assert int(seconds) < 60
    return ((int(hours) * 60 + int(minutes)) * 60 + int(seconds)) * 1000 + int(ms)


@pytest.mark.parametrize(("render", "name"), [(srt, "srt"), (vtt, "webvtt")])
def test_ffmpeg_reads_the_same_captions(render: object, name: str) -> None:
    assert callable(render)
    words = speech("it is a truth universally acknowledged that a single man " * 20, gap_s=0.15)
    words += speech("Ünïcödé 日本語 שלום done", start_s=4000.0)
    text = render(recording(words), DEFAULT)
    with av.open(io.BytesIO(text.encode()), format=name) as file:
        packets = [packet for packet in file.demux() if packet.size]
        found = [
            (
                round(p.pts * p.time_base * 1000),
                round((p.pts + p.duration) * p.time_base * 1000),
                bytes(p).decode(),
            )
            for p in packets
            if p.pts is not None and p.duration is not None and p.time_base is not None
        ]
    cues = make_cues(words, DEFAULT)
    assert found == [(cue.start_ms, cue.end_ms, "\n".join(shown(cue))) for cue in cues]
    assert len(cues) > 10


def test_captions_break_at_pauses_and_sentences_and_are_balanced() -> None:
    words = speech("one two three") + speech("four five", start_s=5.0)
    assert [shown(cue) for cue in make_cues(words, DEFAULT)] == [["one two three"], ["four five"]]

    words = speech(
        "this is the first sentence of all of them. and here comes the second one that was said too."
    )
    assert [shown(cue)[0].split()[0] for cue in make_cues(words, DEFAULT)] == ["this", "and"]

    words = speech(" ".join(["word"] * 20))  # 99 characters: two captions, alike
    counts = [sum(len(line) for line in cue.lines) for cue in make_cues(words, DEFAULT)]
    assert counts == [10, 10]
    lines = shown(make_cues(speech("seven words that need two lines of text here"), DEFAULT)[0])
    assert lines == ["seven words that need", "two lines of text here"]


def test_a_word_alone_is_shown_for_a_second_and_no_word_for_longer_than_allowed() -> None:
    (cue,) = make_cues([Word("yes", 3.0, 3.1)], DEFAULT)
    assert (cue.start_ms, cue.end_ms) == (3000, 4000)
    one, other = make_cues([Word("yes", 3.0, 3.1), Word("aaah", 4.5, 20.0)], DEFAULT)
    assert (one.end_ms, other.start_ms, other.end_ms) == (4000, 4500, 11500)


def test_words_longer_than_a_line_are_broken_and_share_their_time() -> None:
    (cue,) = make_cues([Word("x" * 84, 0.0, 4.2)], DEFAULT)
    assert [[(p.start_ms, p.end_ms) for p in line] for line in cue.lines] == [[(0, 2100)], [(2100, 4200)]]
    (cue,) = make_cues([Word("e\u0301" * 6, 0.0, 1.0)], CaptionSettings(max_line_chars=11))
    assert shown(cue) == ["e\u0301" * 5, "e\u0301"]  # an accent is never the first of a line


def test_markup_and_arrows_are_text() -> None:
    words = speech("<i>AT&T</i> a-->b --> {\\an8}")
    assert "&lt;i&gt;AT&amp;T&lt;/i&gt; a--&gt;b --&gt; {\\an8}" in vtt(recording(words), DEFAULT)
    for text, format in ((srt(recording(words), DEFAULT), "srt"), (vtt(recording(words), DEFAULT), "webvtt")):
        assert text.count("-->") == 1
        with av.open(io.BytesIO(text.encode()), format=format) as file:
            (packet, *_) = file.demux()
            (event,) = (found.ass.decode() for found in packet.decode() if isinstance(found, AssSubtitle))
        shown_by_ffmpeg = event.split(",", 8)[8]
        assert re.sub(r"\u2060|\\{|[{}]", "", shown_by_ffmpeg) == "<i>AT&T</i> a-->b --> \\an8"


def test_words_of_webvtt_say_when_they_begin() -> None:
    text = vtt(recording(speech("go up down")), CaptionSettings(words=True))
    assert text == ("WEBVTT\n\n00:00:00.000 --> 00:00:01.100\ngo <00:00:00.400>up <00:00:00.800>down\n")


def test_nothing_said_is_a_file_without_captions() -> None:
    assert srt(recording([]), DEFAULT) == ""
    assert vtt(recording([]), DEFAULT) == "WEBVTT\n"


@pytest.mark.parametrize(
    "settings", [{"max_line_chars": 9}, {"max_cue_seconds": 0.5}, {"max_cue_seconds": float("nan")}]
)
def test_limits_that_make_no_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        CaptionSettings(**settings)  # type: ignore[arg-type]
