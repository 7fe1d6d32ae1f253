"""The encoder on segments of several languages: each exactly as if it were alone, and few changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.made_languages import LETTERS, SPECIAL, make_checkpoint
from w2v_ray.errors import CheckpointError
from w2v_ray.models.heads import Wav2Vec2ForCTC
from w2v_ray.models.languages import Languages
from w2v_ray.schema import DECODED, ERROR, LANGUAGE
from w2v_ray.stages.encode import Encode, EncodeConfig

READ_ERROR = {"stage": "read_audio", "error_class": "ReadError", "message": "the file is gone"}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "mms")


def encoder(checkpoint: Path) -> Encode:
    return Encode(EncodeConfig(model=str(checkpoint), num_threads=1))


def waves(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(4)
    return [
        (0.1 * rng.standard_normal(size)).astype(np.float32) for size in rng.integers(500, 3000, size=count)
    ]


def table_of(samples: list[np.ndarray], languages: list[str | None]) -> pa.Table:
    return pa.table(
        {
            "samples": pa.array([wave.tobytes() for wave in samples], DECODED[0].type),
            "language": pa.array(languages, LANGUAGE.type),
            "error": pa.nulls(len(samples), ERROR),
        }
    )


@pytest.fixture
def changes(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The languages that a model is changed to, one after another."""
    found: list[str | None] = []
    fill = Wav2Vec2ForCTC.fill_adapter

    def noted(self: Wav2Vec2ForCTC, weights: object, source: str, language: str | None) -> None:
        fill(self, weights, source, language)  # type: ignore[arg-type]
        found.append(language)

    monkeypatch.setattr(Wav2Vec2ForCTC, "fill_adapter", noted)
    return found


def test_a_thousand_interleaved_segments_are_what_each_language_alone_gives(
    checkpoint: Path, changes: list[str | None]
) -> None:
    samples = waves(2000)
    languages: list[str | None] = ["fra", "eng"] * 1000
    alone = {}
    for language in ("fra", "eng"):
        rows = [row for row, name in enumerate(languages) if name == language]
        table = encoder(checkpoint)(table_of([samples[row] for row in rows], [language] * len(rows)))
        alone |= dict(zip(rows, table["log_probs"].to_pylist(), strict=True))
    changes.clear()
    stage = encoder(checkpoint)
    found: list[bytes] = []
    for begin in range(0, 2000, 250):  # eight tables, as shards of mixed rows are
        table = stage(table_of(samples[begin : begin + 250], languages[begin : begin + 250]))
        assert table["error"].null_count == 250
        found += table["log_probs"].to_pylist()
    # One change to the first language, and one in each table: it begins with the one that is there.
    assert changes == ["fra", "eng", *["fra", "eng"] * 3, "fra"]
    sizes = [len(SPECIAL) + len(LETTERS[str(language)]) for language in languages]
    assert len(set(sizes)) == 2
    whole = stage(table_of(samples, languages))  # in batches that are those of each language alone
    assert whole["log_probs"].to_pylist() == [alone[row] for row in range(2000)]
    assert len(changes) == 10
    for row, emission in enumerate(found):
        ours, expected = (
            np.frombuffer(e, np.float16).reshape(-1, sizes[row]) for e in (emission, alone[row])
        )
        # Of another batch: float32 results that agree may still be rounded to neighbouring float16 values.
        spacing = np.spacing(np.abs(expected)).astype(np.float32)
        assert (np.abs(ours.astype(np.float32) - expected.astype(np.float32)) <= spacing + 1e-5).all()


def test_each_language_is_that_of_the_model_class(checkpoint: Path) -> None:
    samples = waves(5)
    languages = ["nld", None, "fra", "deu", "eng"]
    table = encoder(checkpoint)(table_of(samples, languages))
    for row, language in enumerate(languages):
        model = Wav2Vec2ForCTC.from_pretrained(checkpoint, target_lang=language)
        model.save_pretrained(checkpoint.parent / "one")
        for name in ("vocab.json", "preprocessor_config.json"):
            (checkpoint.parent / "one" / name).write_bytes((checkpoint / name).read_bytes())
        one = encoder(checkpoint.parent / "one")(table_of([samples[row]], [None]))
        assert table["log_probs"][row] == one["log_probs"][0]
        assert table["num_frames"][row] == one["num_frames"][0]


def test_an_unknown_language_costs_its_segments_alone(checkpoint: Path, changes: list[str | None]) -> None:
    samples = waves(6)
    table = table_of(samples, ["fra", "spa", "fra", "spa", "../x", None])
    out = encoder(checkpoint)(table)
    messages = [error and (error["error_class"], error["message"]) for error in out["error"].to_pylist()]
    assert [message is None for message in messages] == [True, False, True, False, False, True]
    assert messages[1] == messages[3]
    assert messages[1] is not None
    assert messages[1][0] == "LanguageError"
    assert "no adapter for it (it has deu, eng, fra, nld)" in messages[1][1]
    assert changes == ["fra"]
    assert out["log_probs"].is_null().to_pylist() == [False, True, False, True, True, False]


def test_a_language_without_a_vocabulary_is_unknown(checkpoint: Path) -> None:
    (checkpoint / "adapter.fra.safetensors").rename(checkpoint / "adapter.spa.safetensors")
    out = encoder(checkpoint)(table_of(waves(2), ["spa", "deu"]))
    first, second = out["error"].to_pylist()
    assert first["error_class"] == "LanguageError"
    assert "'spa', expected one of the languages of the vocabulary: deu, eng" in first["message"]
    assert second is None


def test_an_adapter_of_another_vocabulary_ends_the_job(checkpoint: Path) -> None:
    (checkpoint / "adapter.eng.safetensors").rename(checkpoint / "adapter.fra.safetensors")
    with pytest.raises(CheckpointError, match=r"adapter of language 'fra' has 14 rows .* 16 tokens"):
        encoder(checkpoint)(table_of(waves(2), ["deu", "fra"]))


def test_failed_segments_need_no_language(checkpoint: Path, changes: list[str | None]) -> None:
    table = table_of(waves(2), ["spa", "fra"])
    table = table.set_column(2, "error", pa.array([READ_ERROR, READ_ERROR], ERROR))
    assert encoder(checkpoint)(table)["error"].to_pylist() == [READ_ERROR] * 2
    assert changes == []


def test_a_checkpoint_without_adapters_refuses_languages(tiny_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="without adapter_attn_dim has one language"):
        encoder(tiny_checkpoint)(table_of(waves(1), ["fra"]))


def test_the_changes_are_counted(checkpoint: Path) -> None:
    model = Wav2Vec2ForCTC.from_pretrained(checkpoint)
    languages = Languages(model)
    for language in ["fra", "fra", "eng", None, None]:
        languages.use(language)
    assert languages.num_changes == 3
