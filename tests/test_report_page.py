"""The page of a report: well-formed, complete in itself, and safe whatever its texts hold."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.export_outputs import failed, item, made_output, metadata, segment
from tests.report_outputs import large_output, run_record, write_runs
from tests.speaker_outputs import embedded, embeddings_output, utterances
from w2v_ray.report import wording, write_report

VOID = {"meta", "link", "br", "input"}
HOSTILE = (
    "<script>alert(1)</script> \"quoted' </style><img src=x onerror=alert(1)> "
    "{{ 7 * 7 }} \u202etxet \x07 &amp;"
)
HIDDEN = re.compile("[\u202e\x07]")


class Reader(HTMLParser):
    """Sees that every tag is closed where it should be, and keeps what a test asks for."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        assert len(dict(attributes)) == len(attributes), f"{tag} has an attribute twice"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> on line {self.getpos()[0]}"

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def attributes(self, name: str) -> list[str]:
        return [value for _, found in self.tags for key, value in found.items() if key == name and value]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report with runs, accuracy, rejects and transcripts."""
    output = large_output(tmp_path_factory.mktemp("page") / "out", 800, rows_per_shard=400)
    write_runs(output, [run_record(number, drifted=number == 5) for number in range(6)])
    write_report(output, text_key="text")
    return (Path(output) / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report of which every text is meant to break it."""
    name = f"/archive/{HOSTILE}.wav"
    rows = [
        segment(HOSTILE, 0.0, 20.0, codec=HOSTILE, language=HOSTILE, confidence=0.3),
        failed(20, 30, HOSTILE),
    ]
    entries = [item(name, rows, metadata=metadata(text=HOSTILE + " x", speaker=HOSTILE))]
    output = made_output(tmp_path_factory.mktemp("hostile") / "<b>out", [entries])
    records = [run_record(number, command=HOSTILE, state=HOSTILE, error=HOSTILE) for number in range(2)]
    records[1]["timeline"][-1]["audio_s"][HOSTILE] = 5.0
    records[1]["stages"][HOSTILE] = {"busy_s": 1.0}
    records[1]["started_at"] = HOSTILE
    write_runs(output, records)
    write_report(output, text_key="text", speaker_key="speaker")
    return (Path(output) / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> str:
    vectors = utterances([number % 10 for number in range(40)], noise=0.2)
    recordings = {
        f"/a/{number}.wav": [embedded(0, 1, vector, metadata=metadata(speaker=f"{HOSTILE}{number % 10}"))]
        for number, vector in enumerate(vectors)
    }
    output = embeddings_output(tmp_path_factory.mktemp("mapped") / "out", recordings)
    write_report(output, speaker_key="speaker")
    return (Path(output) / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["page", "hostile", "mapped"])
def test_the_page_is_well_formed_and_names_what_it_refers_to(
    name: str, request: pytest.FixtureRequest
) -> None:
    found = Reader(request.getfixturevalue(name))
    ids = found.attributes("id")
    assert len(ids) == len(set(ids))
    links = found.attributes("href")
    assert {link for link in links if not link.startswith("#")} == {"data:,"}
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    for attribute in ("aria-labelledby", "for"):
        assert {name for value in found.attributes(attribute) for name in value.split()} <= set(ids)
    assert not found.attributes("style"), "the policy lets none through"
    assert not found.attributes("src")
    assert [tag for tag, _ in found.tags].count("script") == 1
    assert not [key for _, attributes in found.tags for key in attributes if key.startswith("on")]


@pytest.mark.parametrize("name", ["page", "mapped"])
def test_every_chart_is_described_and_has_its_numbers_as_a_table(
    name: str, request: pytest.FixtureRequest
) -> None:
    text = request.getfixturevalue(name)
    charts = re.findall(r'(?s)<figure class="chart.*?</figure>', text)
    assert len(charts) == (15 if name == "page" else 2)
    for chart in charts:
        (title, described) = re.findall(r'aria-labelledby="(\S+) (\S+)"', chart)[0]
        assert re.search(f'<title id="{title}">[^<]+</title><desc id="{described}">[^<]{{20,}}</desc>', chart)
    tables = len(re.findall("<details><summary>Numbers", text))
    assert tables == len(charts) - (5 if name == "page" else 0), "six stages have one table"


def test_sections_are_those_that_have_something_to_show(page: str, mapped: str) -> None:
    sections = re.compile('<section id="(.*?)"')
    assert sections.findall(page) == [
        "overview",
        "runs",
        "drift",
        "accuracy",
        "audio",
        "speech",
        "rejects",
        "transcripts",
        "about",
    ]
    assert sections.findall(mapped) == ["overview", "audio", "embeddings", "rejects", "about"]
    for text in (page, mapped):
        (contents,) = re.findall("(?s)<nav.*?</nav>", text)
        assert re.findall('href="#(.*?)"', contents) == sections.findall(text)
    assert "left a record in <code>_runs/</code>" in mapped
    assert "left a record in <code>_runs/</code>" not in page


def test_the_policy_lets_the_one_style_and_script_through_and_nothing_from_outside(page: str) -> None:
    (policy,) = re.findall('http-equiv="Content-Security-Policy" content="(.*?)"', page)
    assert policy.startswith("default-src &#39;none&#39;;")
    for tag in ("style", "script"):
        (text,) = re.findall(f"(?s)<{tag}>(.*?)</{tag}>", page)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src &#39;sha256-{digest}&#39;" in policy
    assert "http" not in policy
    assert not re.search(r"url\(|@import", page)


def test_hostile_texts_are_shown_as_they_are(hostile: str, mapped: str) -> None:
    for text in (hostile, mapped):
        assert not HIDDEN.search(text)
        found = Reader(text)
        assert "img" not in {tag for tag, _ in found.tags}
        parts = [
            part for tag, texts in found.texts.items() if tag not in ("script", "style") for part in texts
        ]
        assert "<script>alert(1)</script>" in "".join(parts)
    assert hostile.count("<script>") == 1
    assert "{{ 7 * 7 }} \\u202etxet \\x07 &amp;amp;" in hostile


def test_the_page_shows_the_numbers_of_its_rows(page: str) -> None:
    tiles = dict(re.findall('<dt>(.*?)</dt><dd class="big">(.*?)</dd>', page))
    assert tiles.keys() == {"audio", "recordings", "words", "confidence", "word error rate", "rejected"}
    assert tiles["recordings"] == "200"
    assert tiles["rejected"] == "4.0%"
    assert "792 segments" in page
    assert page.count('<li data-sure="') == 152


def test_a_page_is_small_and_its_parts_are_of_bounded_size(page: str, tmp_path: Path) -> None:
    assert len(page.encode()) < 300_000
    many = " ".join(["word"] * 5000)
    output = made_output(tmp_path / "out", [[item("a.wav", [segment(many, 0.0, 2000.0)])]])
    write_report(output)
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "and 4,850 more words" in text
    assert len(text) < 100_000


@pytest.mark.slow
def test_a_report_of_a_hundred_thousand_rows_is_below_three_megabytes(tmp_path: Path) -> None:
    output = large_output(tmp_path / "out", 100_000)
    report = write_report(output, text_key="text", speaker_key="speaker")
    assert report.audio.num_rows + report.status.num_rejects == 100_000
    assert (tmp_path / "out" / "report.html").stat().st_size < 3_000_000


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min"),
        (125.0, "2 min 5 s"),
        (3599.6, "1 h"),
        (11_550.0, "3 h 12 min"),
        (359_990.0, "100 h"),
        (4_334_400.0, "1,204 h"),
    ],
)
def test_hours_are_said_as_people_do(seconds: float, text: str) -> None:
    assert wording.hours(seconds) == text


def test_numbers_are_worded() -> None:
    assert [wording.percent(share) for share in (None, 0.0, 0.0001, 0.125)] == [
        "\u2013",
        "0.0%",
        "<0.1%",
        "12.5%",
    ]
    assert (wording.count_text(1, "word"), wording.count_text(2000, "word")) == ("1 word", "2,000 words")
    assert (wording.bar_range(2.0, 3.0, "s"), wording.bar_range(30.0, None)) == ("2 to 3 s", "30 and more")
    assert wording.short("s3://bucket/a/b/c.wav") == "b/c.wav"
    assert wording.short("x" * 100, most=10) == "…" + "x" * 9
    assert wording.visible("a\n\tb\u202e\u200c", most=20) == "a b\\u202e\u200c"
    assert wording.time_text("2026-11-01T01:30:59+00:00") == "2026-11-01 01:30"
