"""The code of docs/plugin.md does what the page says: every block runs, on small models and few clips."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import soundfile

from tests.head_checkpoints import add_head
from w2v_ray import demo
from w2v_ray.inference import pipeline

pytestmark = pytest.mark.usefixtures("ray_session")
PAGE = Path(__file__).resolve().parents[1] / "docs" / "plugin.md"
BLOCKS = dict(
    re.findall(r"(?ms)^#+ ([^\n]+)\n(?:(?!^#+ ).)*?^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"))
)
# The demo's model hears these without an error. The copies are the first, encoded again.
CLIPS = ["00_0b57a6ed.flac", "11_6f689791.mp3", "14_a2473d62.wav", "10_653a48f5.flac", "07_43fc47a7.ogg"]
FALSIFIED = CLIPS[1]
COPIES = ["copy.mp3", "copy.ogg"]
ABSENT = "absent.wav"
OUTPUTS = ("segments", "clean", "balanced", "unique", "routed", "other_languages", "tables/transcripts")


@pytest.fixture(scope="module")
def places(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What stands for each name of the page: a corpus of the demo's clips, small models, and outputs."""
    folder = tmp_path_factory.mktemp("compositions")
    said = {
        row["audio_filepath"]: row
        for row in map(json.loads, (demo.ARCHIVE / "manifest.jsonl").read_text().splitlines())
    }
    rows = [
        {"uri": str(demo.ARCHIVE / name), "text": said[name]["text"], "speaker": said[name]["speaker"]}
        for name in CLIPS
    ]
    rows[CLIPS.index(FALSIFIED)]["text"] = "HOUSE WOW CAT FIVE"
    samples, rate = soundfile.read(demo.ARCHIVE / CLIPS[0], dtype="float32")
    for name in COPIES:
        soundfile.write(folder / name, samples, rate)
        rows.append(rows[0] | {"uri": str(folder / name)})
    rows.append({"uri": str(folder / ABSENT), "text": "UP", "speaker": "nobody"})
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    languages = {"id2label": {0: "fra", 1: "eng", 2: "deu"}}
    return {
        "corpus.jsonl": corpus,
        "facebook/wav2vec2-base-960h": demo.CHECKPOINT,
        "facebook/wav2vec2-large-xlsr-53-german": tiny_checkpoint,
        "facebook/mms-lid-126": add_head(demo.CHECKPOINT, folder / "lid", "classify", seed=2, **languages),
        "anton-l/wav2vec2-base-superb-sv": demo.speaker_checkpoint(),
    } | {name: folder / name for name in OUTPUTS}


def run(heading: str, places: dict[str, Path], **settings: float) -> dict[str, Any]:
    """Executes the block under a heading, whose quoted names become ours; gives its variables."""
    code = BLOCKS[heading]
    for name, value in settings.items():
        code, times = re.subn(rf"(?m)^{name} = [\d.]+", f"{name} = {value}", code)
        assert times == 1
    for name, place in places.items():
        code = code.replace(f'"{name}"', repr(str(place)))
    assert not re.search(r'"[\w-]+/[\w.-]+"|\.write_parquet\("', code), "a name of the page has no place"
    variables: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(code, f"{PAGE.name}: {heading}", "exec"), variables)
    return variables


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder).to_pylist()
    return rows


def names_of(rows: list[dict[str, Any]]) -> set[str]:
    return {Path(row["uri"]).name for row in rows}


def test_every_block_is_executed_here() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    first, *others = BLOCKS  # the first names files that do not exist
    assert first == "In a Dataset of your own"
    assert len(others) == 6
    assert [heading for heading in others if f'run("{heading}"' not in source] == []
    assert PAGE.read_text(encoding="utf-8").count("```python") == len(BLOCKS)


def test_a_wrong_transcript_is_dropped(places: dict[str, Path]) -> None:
    run("Drop recordings whose transcript is wrong", places)
    assert names_of(rows_of(places["clean"])) == {*CLIPS, *COPIES} - {FALSIFIED}


def test_no_speaker_has_more_than_its_share(places: dict[str, Path]) -> None:
    made = run("As many recordings of each speaker", places, SAME_SPEAKER=0.5)  # as suits the demo's head
    rows = rows_of(places["balanced"])
    counts = Counter(row["found_speaker"] for row in rows)
    assert max(counts.values()) == made["PER_SPEAKER"] == 2
    assert counts.keys() == made["counts"].keys()
    assert made["counts"].total() == len(CLIPS + COPIES)
    assert len(counts) == len({name[3:11] for name in CLIPS})
    assert len(names_of(rows) & {CLIPS[0], *COPIES}) == 2  # of three recordings of one voice


def test_a_copy_in_another_codec_is_dropped(places: dict[str, Path]) -> None:
    run("Drop near duplicates", places)
    rows = rows_of(places["unique"])
    assert names_of(rows) == set(CLIPS)
    assert {row["speaker"] for row in rows} == {name[3:11] for name in CLIPS}


@pytest.mark.slow
def test_each_language_goes_to_its_model(places: dict[str, Path]) -> None:
    made = run("A model for each language", places)
    rows = rows_of(places["routed"])
    assert {row["language_label"] for row in rows} == {"eng", "deu"}
    for language, model in made["MODELS"].items():
        transcribe = pipeline("automatic-speech-recognition", model=model)
        for row in rows:
            if row["language_label"] == language:
                assert row["asr_text"] == transcribe(row["uri"])["text"]
    assert names_of(rows) == {*CLIPS, *COPIES}
    assert len(rows) == len(CLIPS + COPIES)
    (left,) = rows_of(places["other_languages"])
    assert Path(left["uri"]).name == ABSENT
    assert left["language_error"]["error_class"] == "ReadError"


def test_transcripts_are_written_to_a_delta_table(places: dict[str, Path]) -> None:
    made = run("Write to Delta Lake or Iceberg", places)
    (places["tables/transcripts"] / "_delta_log").stat()
    rows = made["back"].take_all()
    assert names_of(rows) == {*CLIPS, *COPIES}
    for row in rows:
        assert [word["word"] for word in row["asr_words"]] == row["asr_text"].split()
        assert row["speaker"] in row["uri"] or Path(row["uri"]).name in COPIES


def test_stages_one_at_a_time_give_segments(places: dict[str, Path]) -> None:
    run("One stage at a time", places)
    rows = rows_of(places["segments"])
    long = {name for name in CLIPS + COPIES if name in names_of(rows)}
    assert FALSIFIED in long
    for row in rows:
        assert 1 < row["end_s"] - row["start_s"] <= 5
        assert row["error"] is None
        assert row["text"]
        assert row["speaker"] in row["uri"] or Path(row["uri"]).name in COPIES
