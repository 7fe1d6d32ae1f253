"""The page of a report in a real browser: headless Chromium, with axe-core for what its users need."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.browser import Page, find_axe, find_chromium, running_browser
from tests.export_outputs import item, made_output, metadata, segment
from tests.report_outputs import large_output, run_record, write_runs
from tests.speaker_outputs import embedded, embeddings_output, utterances
from w2v_ray.report import write_report

pytestmark = pytest.mark.skipif(
    find_chromium() is None, reason="there is no Chromium; install it, or name one in $CHROMIUM"
)
TAB, ENTER = ("Tab", 9), ("Enter", 13)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two pages that together have every section."""
    folder = tmp_path_factory.mktemp("reports")
    large = large_output(folder / "large", 800, rows_per_shard=400)
    write_runs(large, [run_record(number, drifted=number == 5, points=12) for number in range(6)])
    write_report(large, text_key="text")
    vectors = utterances([number % 10 for number in range(200)], noise=0.2)
    embeddings = embeddings_output(
        folder / "embeddings",
        {
            f"/a/{number}.wav": [embedded(0, 1, vector, metadata=metadata(speaker=f"voice {number % 10}"))]
            for number, vector in enumerate(vectors)
        },
    )
    write_report(embeddings, speaker_key="speaker")
    return {"large": folder / "large" / "report.html", "embeddings": folder / "embeddings" / "report.html"}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with running_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser.page()


def check_quiet(page: Page, path: Path) -> None:
    """Nothing but the page was asked for, its empty icon aside, and nothing was complained about."""
    assert [url for url in page.requests if url not in (path.as_uri(), "data:,")] == []
    assert page.complaints == []


@pytest.mark.parametrize(
    ("name", "width", "dark"),
    [("large", 1280, False), ("large", 390, True), ("embeddings", 1280, True), ("embeddings", 390, False)],
)
def test_a_page_opens_without_a_network_and_passes_axe(
    page: Page, reports: dict[str, Path], name: str, width: int, dark: bool
) -> None:
    page.open(reports[name], width=width, dark=dark)
    paper = page.value("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(19, 21, 24)") is dark
    check_quiet(page, reports[name])
    assert page.value("document.documentElement.scrollWidth") == width, "nothing is wider than the window"
    page.value("document.querySelectorAll('details').forEach((element) => { element.open = true; })")
    assert page.value("document.documentElement.scrollWidth") == width
    axe = find_axe()
    if axe is None:
        pytest.skip("axe-core is not installed: pip install --no-deps axe-playwright-python")
    page.value(axe.read_text(encoding="utf-8") + "; 0")
    found = json.loads(page.value("axe.run().then((found) => JSON.stringify(found.violations))"))
    assert [(each["id"], [node["html"] for node in each["nodes"]][:3]) for each in found] == []
    check_quiet(page, reports[name])


def test_hostile_texts_do_not_widen_the_page(page: Page, tmp_path: Path) -> None:
    long = "unbreakable" * 40
    rows = [segment(f"{long} {long}", 0.0, 20.0, codec=long, language=long, confidence=0.3)]
    entry = item(f"/archive/{long}.wav", rows, metadata=metadata(text=f"{long} x"))
    output = made_output(tmp_path / "out", [[entry]])
    records = [run_record(number, points=4, error=long, command=long, state=long) for number in range(2)]
    records[1]["stages"][long] = {"busy_s": 1.0}
    write_runs(output, records)
    write_report(output, text_key="text")
    for width in (1280, 390):
        page.open(tmp_path / "out" / "report.html", width=width)
        assert page.value("document.documentElement.scrollWidth") == width
    check_quiet(page, tmp_path / "out" / "report.html")


def test_axe_finds_what_is_wrong(page: Page, tmp_path: Path) -> None:
    if (axe := find_axe()) is None:
        pytest.skip("axe-core is not installed: pip install --no-deps axe-playwright-python")
    (tmp_path / "bad.html").write_text("<!DOCTYPE html><title>x</title><img src='data:,'><input>")
    page.open(tmp_path / "bad.html")
    page.value(axe.read_text(encoding="utf-8") + "; 0")
    found = json.loads(page.value("axe.run().then((found) => JSON.stringify(found.violations))"))
    assert {"html-has-lang", "image-alt", "label"} <= {each["id"] for each in found}


def test_the_policy_of_the_page_stops_what_is_not_its_own(page: Page, reports: dict[str, Path]) -> None:
    page.open(reports["large"])
    page.value(
        "document.body.insertAdjacentHTML('beforeend', '<img src=\"http://127.0.0.1:9/x.png\">"
        "<p style=\"color: red\">x</p>'); const it = document.createElement('script');"
        "it.textContent = 'window.ran = true'; document.body.append(it)"
    )
    page.value("new Promise((done) => setTimeout(done, 100))")
    assert page.value("window.ran") is None
    assert any("Content Security Policy" in complaint for complaint in page.complaints)


def test_the_keyboard_reaches_everything_in_order(page: Page, reports: dict[str, Path]) -> None:
    page.open(reports["large"])
    page.press(*TAB)
    assert page.value("document.activeElement.textContent") == "Skip to the numbers"
    assert page.value("document.activeElement.getBoundingClientRect().top >= 0")
    page.press(*ENTER)
    assert page.value("document.activeElement.id") == "main"
    page.open(reports["large"])
    names = []
    for _ in range(6):
        page.press(*TAB)
        names.append(page.value("document.activeElement.textContent"))
    assert names == ["Skip to the numbers", "Auto", "Light", "Dark", "Overview", "Runs"]
    assert page.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_the_theme_can_be_chosen_and_is_remembered(page: Page, reports: dict[str, Path]) -> None:
    page.open(reports["large"])
    light = page.value("getComputedStyle(document.body).backgroundColor")
    page.value("document.querySelector('[data-theme-choice=dark]').click()")
    dark = page.value("getComputedStyle(document.body).backgroundColor")
    assert dark != light
    assert page.value("document.querySelector('[aria-pressed=true]').textContent") == "Dark"
    page.open(reports["large"])
    assert page.value("getComputedStyle(document.body).backgroundColor") == dark
    page.value("document.querySelector('[data-theme-choice=auto]').click()")
    assert page.value("getComputedStyle(document.body).backgroundColor") == light


def shown(page: Page) -> list[str]:
    texts: list[str] = page.value(
        "[...document.querySelectorAll('#rows > li:not([hidden])')].map((row) => row.textContent)"
    )
    return texts


def test_rows_are_found_and_put_in_order(page: Page, reports: dict[str, Path]) -> None:
    page.open(reports["large"])
    assert len(shown(page)) == 20
    assert page.value("document.querySelector('#shown').textContent") == "20 of 152 shown"
    page.value("document.querySelector('#more').click()")
    whole = shown(page)
    assert len(whole) == 152
    assert page.value("document.activeElement === document.querySelectorAll('#rows > li')[20]")
    page.value(
        "(it => { it.value = '00001/ because'; it.dispatchEvent(new Event('input')); })"
        "(document.querySelector('#search'))"
    )
    found = shown(page)
    assert found == [text for text in whole if "00001/" in text and "because" in text]
    assert page.value("document.querySelector('#shown').textContent").endswith(f", {len(found)} found")
    page.value(
        "(it => { it.value = ''; it.dispatchEvent(new Event('input')); })(document.querySelector('#search'))"
    )
    page.value(
        "(it => { it.value = 'sure'; it.dispatchEvent(new Event('change')); })"
        "(document.querySelector('#order'))"
    )
    sure = page.value("[...document.querySelectorAll('#rows > li')].map((row) => Number(row.dataset.sure))")
    assert sure == sorted(sure)
    check_quiet(page, reports["large"])


def test_without_a_script_all_is_there_but_what_needs_one(page: Page, reports: dict[str, Path]) -> None:
    page.open(reports["large"], script=False)
    tree = page.call("DOMSnapshot.captureSnapshot", computedStyles=["display"])
    document, texts = tree["documents"][0], tree["strings"]
    drawn = "".join(texts[number] for number in document["layout"]["text"] if number >= 0)
    assert "Show all" not in drawn
    assert "Auto" not in drawn
    assert drawn.count("confidence 0.") > 100
    check_quiet(page, reports["large"])


def test_charts_are_as_wide_as_the_window_lets_them(page: Page, reports: dict[str, Path]) -> None:
    sizes: dict[int, Any] = {}
    for width in (390, 1280):
        page.open(reports["embeddings"], width=width)
        sizes[width] = page.value(
            "(({width, height}) => [width, height])"
            "(document.querySelector('.map > svg').getBoundingClientRect())"
        )
        assert sizes[width][0] / sizes[width][1] == pytest.approx(4 / 3, rel=0.01), "both axes have one scale"
        outside = page.value(
            "[...document.querySelectorAll('.map > svg > use')].filter((mark) => {"
            "const a = mark.getBoundingClientRect(), b = mark.ownerSVGElement.getBoundingClientRect();"
            "return a.left < b.left || a.right > b.right || a.top < b.top || a.bottom > b.bottom; }).length"
        )
        assert outside == 0
    assert sizes[1280][0] > 2 * sizes[390][0]


def test_labels_turns_and_alignments_pass_axe_too(page: Page, tmp_path: Path) -> None:
    rows = [
        {
            "start_s": n,
            "end_s": n + 1.0,
            "duration_s": 1.0,
            "label": label,
            "score": 0.5 + n / 10,
            "labels": [],
        }
        for n, label in enumerate(["yes", "no", "yes"])
    ]
    labels = made_output(tmp_path / "labels", [[item("a.wav", rows)]], table="labels")
    turns = [{"label": name, "start_s": 0.0, "end_s": 1.5, "score": 0.9} for name in "AB"]
    row = {"start_s": 0.0, "end_s": 3.0, "duration_s": 3.0, "turns": turns, "classes": ["A", "B"]}
    row |= {"seconds_per_frame": 0.02, "num_frames": 150, "activity": np.full((150, 2), 0.5).tolist()}
    types = {"activity": pa.list_(pa.list_(pa.float16(), 2))}
    frames = made_output(tmp_path / "frames", [[item("a.wav", [row])]], table="frames", types=types)
    pending = made_output(tmp_path / "none", [[item("a.wav", [segment("x", 0, 1)])]], unpublished=[0])
    for output in (labels, frames, pending):
        write_report(output)
        path = Path(output) / "report.html"
        page.open(path, width=390)
        assert page.value("document.documentElement.scrollWidth") == 390
        check_quiet(page, path)
        if (axe := find_axe()) is not None:
            page.value(axe.read_text(encoding="utf-8") + "; 0")
            found = json.loads(page.value("axe.run().then((found) => JSON.stringify(found.violations))"))
            assert [each["id"] for each in found] == []
