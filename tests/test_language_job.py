"""Jobs over recordings of several languages on a real Ray: each is what a job of its language alone gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray.data
import soundfile

from tests.head_checkpoints import add_head
from tests.made_languages import LETTERS, make_checkpoint
from tests.made_outputs import rows_of
from w2v_ray import (
    AlignConfig,
    CheckpointError,
    ConfigError,
    DecoderConfig,
    JobConfig,
    RedecodeConfig,
    align,
    redecode,
    run,
    schema,
    transcribe,
)
from w2v_ray.job import prepare_retry, recorded_job

RATE = schema.SAMPLE_RATE_HZ
LANGUAGES = {"a": "fra", "b": "deu", "c": "spa", "d": None, "e": "fra", "f": "deu", "g": 7}

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("languages") / "mms", pickled=("deu",))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of short noises, each with what LANGUAGES says of it and a text of letters that all have."""
    folder = tmp_path_factory.mktemp("archive")
    rng = np.random.default_rng(2)
    with (folder / "manifest.jsonl").open("w") as manifest:
        for name, language in LANGUAGES.items():
            samples = 0.2 * rng.standard_normal(RATE * 2)
            soundfile.write(folder / f"{name}.wav", samples, RATE)
            line = {"audio_filepath": f"{name}.wav", "id": name, "text": "sein"}
            manifest.write(json.dumps(line | ({} if language is None else {"lang": language})) + "\n")
    return folder / "manifest.jsonl"


def settings_of(archive: Path, output: Path, checkpoint: Path, **settings: Any) -> dict[str, Any]:
    return {
        "inputs": (str(archive),),
        "output": str(output),
        "model": str(checkpoint),
        "shard_seconds": 10,
        **settings,
    }


def job(archive: Path, output: Path, checkpoint: Path, **settings: Any) -> JobConfig:
    return JobConfig(**settings_of(archive, output, checkpoint, **settings))


def texts_of(output: Path) -> dict[str, tuple[object, ...]]:
    names = ("text", "confidence", "num_frames", "words")
    return {str(row["recording_id"]): tuple(row[name] for name in names) for row in rows_of(output)}


def test_recordings_of_several_languages(archive: Path, checkpoint: Path, tmp_path: Path) -> None:
    summary = run(job(archive, tmp_path / "out", checkpoint, language_key="lang", keep_log_probs=8))
    assert (summary.num_items, summary.num_rows, summary.rejects_by_reason) == (7, 4, {"LanguageError": 3})
    assert summary.num_shards == 5  # one for each of fra, deu, spa, 7 and none
    rows = rows_of(tmp_path / "out")
    assert [(row["recording_id"], row["language"]) for row in rows] == [
        *(("a", "fra"), ("b", "deu"), ("e", "fra"), ("f", "deu"))
    ]
    for row in rows:  # the letters of the language, some of which the others lack
        assert row["text"]
        assert set(row["text"]) <= set(LETTERS[row["language"]]) | {" "}
    rejects = {row["recording_id"]: row for row in rows_of(tmp_path / "out", "rejects")}
    assert {(row["stage"], row["error_class"]) for row in rejects.values()} == {
        ("take_language", "LanguageError")
    }
    assert "language is 'spa', expected one of" in rejects["c"]["message"]
    assert "(deu, eng, fra, nld)" in rejects["c"]["message"]
    assert rejects["d"]["message"].startswith("no language under 'lang' came with this recording")
    assert rejects["g"]["message"].startswith("language is 7, expected")

    texts = texts_of(tmp_path / "out")
    run(job(archive, tmp_path / "fra", checkpoint, language="fra"))
    alone = texts_of(tmp_path / "fra")
    assert [row["language"] for row in rows_of(tmp_path / "fra")] == ["fra"] * 7
    assert (texts["a"], texts["e"]) == (alone["a"], alone["e"])
    assert texts["b"] != alone["b"]

    redecode(RedecodeConfig(source=str(tmp_path / "out"), output=str(tmp_path / "again")))
    assert {name: text for name, (text, *_) in texts_of(tmp_path / "again").items()} == {
        name: text for name, (text, *_) in texts.items()
    }
    assert [row["language"] for row in rows_of(tmp_path / "again")] == [row["language"] for row in rows]
    with pytest.raises(ConfigError, match=r"^hotwords is .*'Sein'.* and .* tells of several"):
        redecode(RedecodeConfig(source=str(tmp_path / "out"), output="no", hotwords=("Sein",)))
    plan = prepare_retry(recorded_job(str(tmp_path / "out")), reasons=["LanguageError"])
    assert plan.num_new == 3


def test_rows_of_a_dataset_in_several_languages(archive: Path, checkpoint: Path) -> None:
    names = list(LANGUAGES)
    rows = {
        "path": [str(archive.parent / f"{name}.wav") for name in names],
        "lang": [None if language is None else str(language) for language in LANGUAGES.values()],
        "text": ["sein"] * len(names),
    }
    ds = ray.data.from_arrow(pa.table(rows))
    options: dict[str, Any] = {"model": str(checkpoint), "device": "cpu", "num_cpus": 0.25}
    ds = transcribe(ds, language_column="lang", language="nld", prefix="asr_", **options)
    found = dict(zip(names, align(ds, language_column="lang", **options).take_all(), strict=True))
    plain = ray.data.from_arrow(pa.table(rows))
    alone = transcribe(plain, language="fra", prefix="asr_", **options).take_all()
    for name, row in found.items():
        told = LANGUAGES[name]
        if told in ("spa", 7):
            assert (row["asr_text"], row["asr_error"]["error_class"]) == (None, "LanguageError")
        else:
            assert row["asr_error"] is None
            assert set(row["asr_text"]) <= set(LETTERS[str(told or "nld")]) | {" "}
        if told in LETTERS:
            assert row["error"] is None
            assert [word["word"] for word in row["words"]] == ["sein"]
        else:
            assert (row["words"], row["error"]["stage"]) == (None, "take_language")
    assert found["d"]["error"]["message"].startswith("column 'lang' is null; fill it in, or pass language=")
    assert [row["asr_error"] for row in alone] == [None] * 7
    assert [alone[place]["asr_text"] for place in (0, 4)] == [found[name]["asr_text"] for name in "ae"]


def test_what_is_wrong_with_languages_of_a_dataset_is_said_before_it_runs(
    checkpoint: Path, tiny_checkpoint: Path
) -> None:
    ds = ray.data.from_arrow(pa.table({"path": ["a.wav"]}))
    with pytest.raises(ConfigError, match=r"^language is 'spa', expected deu, eng, fra, nld; choose"):
        transcribe(ds, model=str(checkpoint), language="spa")
    with pytest.raises(ConfigError, match=r"^hotwords is .* and language_column tells of several"):
        transcribe(
            ds, model=str(checkpoint), language_column="lang", decoder=DecoderConfig(hotwords=("sein",))
        )
    with pytest.raises(CheckpointError, match="has no adapter_attn_dim, so that the model has one language"):
        align(ds, model=str(tiny_checkpoint), language_column="lang")


@pytest.mark.slow
def test_a_first_pass_can_tell_the_languages(
    archive: Path, checkpoint: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    names = {0: "fra", 1: "deu", 2: "spa"}
    identifier = add_head(tiny_checkpoint, tmp_path / "lid", "classify", id2label=names)
    first = job(archive, tmp_path / "labels", identifier, task="classify")
    run(first)
    told = {str(row["recording_id"]): row["label"] for row in rows_of(tmp_path / "labels", "labels")}
    assert len(told) == 7
    second = job(archive, tmp_path / "out", checkpoint, languages_from=str(tmp_path / "labels"))
    summary = run(second)
    found = {str(row["recording_id"]): row["language"] for row in rows_of(tmp_path / "out")}
    assert found == {name: language for name, language in told.items() if language != "spa"}
    assert summary.num_rejects == sum(language == "spa" for language in told.values())
    assert run(second).num_rows == 0  # nothing has changed


@pytest.mark.slow
def test_texts_are_aligned_in_their_language(archive: Path, checkpoint: Path, tmp_path: Path) -> None:
    config = settings_of(archive, tmp_path / "out", checkpoint, language_key="lang")
    run(AlignConfig(**config))
    rows = {str(row["recording_id"]): row for row in rows_of(tmp_path / "out", "alignments")}
    assert {name: row["language"] for name, row in rows.items()} == {
        name: language for name, language in LANGUAGES.items() if language in LETTERS
    }
    run(AlignConfig(**config | {"output": str(tmp_path / "deu"), "language_key": None, "language": "deu"}))
    alone = {str(row["recording_id"]): row for row in rows_of(tmp_path / "deu", "alignments")}
    assert {row["language"] for row in alone.values()} == {"deu"}
    assert (alone["b"]["words"], alone["f"]["words"]) == (rows["b"]["words"], rows["f"]["words"])
    assert alone["a"]["ctc_loss"] != rows["a"]["ctc_loss"]


def test_an_adapter_that_does_not_fit_its_vocabulary_is_refused_before_anything_is_planned(
    archive: Path, tmp_path: Path
) -> None:
    spoiled = make_checkpoint(tmp_path / "mms")
    (spoiled / "adapter.eng.safetensors").replace(spoiled / "adapter.fra.safetensors")
    with pytest.raises(CheckpointError, match=r"^the adapter of language 'fra' has 14 rows .* 16 tokens"):
        run(job(archive, tmp_path / "out", spoiled, language_key="lang"))
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*.parquet"))
    with pytest.raises(ConfigError, match=r"^language is 'spa', expected deu, eng, fra, nld"):
        run(job(archive, tmp_path / "out", spoiled, language="spa"))
