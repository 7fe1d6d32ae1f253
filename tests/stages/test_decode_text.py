"""The text stage: what comes out of emissions, row by row, and what does not stop the others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from w2v_ray.decoder_config import DecoderConfig
from w2v_ray.errors import CheckpointError, ConfigError, ReadError
from w2v_ray.schema import DECODED_TEXT, ENCODED, ERROR, TRANSCRIPT, error_value
from w2v_ray.stages.decode_text import DecodeText, DecodeTextConfig
from w2v_ray.text.tokenizer import Wav2Vec2CTCTokenizer

VOCABULARY = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAOINSHRDLU'"])}
SIZE = len(VOCABULARY)
FRAME_S = 0.5


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "vocab.json").write_text(json.dumps(VOCABULARY))
    return str(tmp_path)


def emission(path: str, probability: float = 0.9, size: int = SIZE) -> bytes:
    """float16 log-probabilities whose best path is ``path``; an underscore is the blank."""
    ids = [VOCABULARY[{"_": "<pad>"}.get(letter, letter)] for letter in path]
    values = np.full((len(ids), size), (1 - probability) / (size - 1))
    values[np.arange(len(ids)), ids] = probability
    return np.log(values).astype("<f2").tobytes()


def encoded(*rows: dict[str, Any]) -> pa.Table:
    """A table as ``encode`` gives it, with a column that no stage knows."""
    defaults = {"segment_id": "a@0-9", "start_s": 0.0, "end_s": 100.0, "error": None, "mine": 7}
    defaults |= {"log_probs": None, "num_frames": None}
    schema = pa.schema(
        [
            TRANSCRIPT.field("segment_id"),
            TRANSCRIPT.field("start_s"),
            TRANSCRIPT.field("end_s"),
            pa.field("error", ERROR),
            *ENCODED,
            pa.field("mine", pa.int64()),
        ]
    )
    return pa.Table.from_pylist([defaults | row for row in rows], schema)


def segment(path: str, **changes: Any) -> dict[str, Any]:
    return {"log_probs": emission(path), "num_frames": len(path)} | changes


def stage(model: str, **decoder: Any) -> DecodeText:
    tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(model)
    config = DecodeTextConfig(
        tokenizer=tokenizer, seconds_per_frame=FRAME_S, decoder=DecoderConfig(**decoder)
    )
    return DecodeText(config)


def test_text_words_and_columns(model: str) -> None:
    table = encoded(
        segment("_NO_|SO__", start_s=10.0, end_s=13.5, segment_id="a@10000-13500"),
        segment("____", start_s=13.5),
        segment("T_TE"),
    )
    out = stage(model)(table)
    assert out.column_names == [
        *(name for name in table.column_names if name != "log_probs"),
        "language",
        *DECODED_TEXT,
    ]
    for name in DECODED_TEXT:
        assert out.schema.field(name) == TRANSCRIPT.field(name)
    assert out.schema.field("error").type == ERROR
    assert out.column("mine").to_pylist() == [7, 7, 7]
    first, second, third = out.to_pylist()
    assert (first["text"], first["error"]) == ("NO SO", None)
    assert first["confidence"] == pytest.approx(0.9, abs=0.05)
    assert (first["characters"], first["logit_score"], first["lm_score"]) == (None, None, None)
    assert [(w["start_frame"], w["end_frame"]) for w in first["words"]] == [(1, 3), (5, 7)]
    assert [(w["word"], w["start_s"], w["end_s"]) for w in first["words"]] == [
        ("NO", 10.5, 11.5),
        ("SO", 12.5, 13.5),
    ]
    assert (second["text"], second["confidence"], second["words"], second["error"]) == ("", None, [], None)
    assert third["text"] == "TTE"


def test_words_end_with_their_segment(model: str) -> None:
    (row,) = stage(model)(encoded(segment("SO|NO", start_s=1.0, end_s=2.7))).to_pylist()
    assert [(w["start_s"], w["end_s"]) for w in row["words"]] == [(1.0, 2.0), (2.5, 2.7)]
    (row,) = stage(model)(encoded(segment("SO|NO", start_s=1.0, end_s=2.1))).to_pylist()
    assert [(w["start_s"], w["end_s"]) for w in row["words"]] == [(1.0, 2.0), (2.1, 2.1)]


def test_the_text_is_the_tokenizers(model: str) -> None:
    generator = np.random.default_rng(0)
    rows = []
    for frames in (1, 7, 200):
        scores = generator.normal(size=(frames, SIZE)).astype(np.float32) * 3
        scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
        rows.append(scores.astype("<f2"))
    table = encoded(*({"log_probs": row.tobytes(), "num_frames": len(row)} for row in rows))
    tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(model)
    expected = [tokenizer.decode(row.argmax(axis=1)) for row in rows]
    assert stage(model)(table).column("text").to_pylist() == expected
    chunked = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert stage(model)(chunked).column("text").to_pylist() == expected


def test_failed_rows_pass_and_bad_emissions_fail_alone(model: str) -> None:
    failed = error_value("read_audio", ReadError("the file is gone"))
    not_numbers = np.full((2, SIZE), np.nan, "<f2").tobytes()
    out = stage(model)(
        encoded(
            segment("SO"),
            {"error": failed},
            segment("SO", log_probs=not_numbers),
            segment("SO", log_probs=emission("SO")[:-1]),
            segment("SO", num_frames=5),
            {"log_probs": None, "num_frames": 2},
            segment("", num_frames=0),
            segment("", num_frames=2),
            segment("SO", num_frames=-2),
            segment("NOT"),
        )
    ).to_pylist()
    assert [row["text"] for row in out] == ["SO", *[None] * 5, "", None, None, "NOT"]
    assert out[1]["error"] == failed
    for row, reason in (
        (2, "NaN in 2 of 2 frames"),
        (3, "71 bytes"),
        (5, "neither an emission nor an"),
    ):
        assert (out[row]["error"]["stage"], out[row]["error"]["error_class"]) == (
            "decode_text",
            "EncodeError",
        )
        assert reason in out[row]["error"]["message"]
        assert out[row]["words"] is None
        assert out[row]["confidence"] is None
    assert all(out[row]["error"]["error_class"] == "EncodeError" for row in (2, 3, 4, 5, 7, 8))


def test_empty_tables_and_tables_of_failures_alone(model: str) -> None:
    failed = {"error": error_value("read_audio", ReadError("gone"))}
    decode = stage(model)
    full = decode(encoded(segment("SO")))
    assert decode(encoded(failed)).schema.equals(full.schema)
    assert decode(encoded()).schema.equals(full.schema)
    assert decode(encoded()).num_rows == 0


def test_a_tokenizer_of_another_model_stops_the_job(model: str) -> None:
    few = np.zeros((4, SIZE - 1), "<f2").tobytes()
    with pytest.raises(CheckpointError, match=f"the model has {SIZE - 1} outputs .* ids up to {SIZE - 1}"):
        stage(model)(encoded({"log_probs": few, "num_frames": 4}))
    more = segment("SO", log_probs=emission("SO", size=SIZE + 8))  # a padded output layer does no harm
    assert stage(model)(encoded(more)).column("text").to_pylist() == ["SO"]


def test_settings_are_checked(model: str, tmp_path: Path) -> None:
    tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(model)
    for seconds in (0.0, -0.02, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=r"seconds_per_frame is .*, expected above 0"):
            DecodeTextConfig(tokenizer=tokenizer, seconds_per_frame=seconds)
    with pytest.raises(ConfigError, match="num_threads is 0"):
        DecodeTextConfig(tokenizer=tokenizer, seconds_per_frame=0.02, num_threads=0)
    with pytest.raises(ConfigError, match=r"gone\.arpa' does not exist"):
        stage(model, lm=str(tmp_path / "gone.arpa"))


ARPA = """
\\data\\
ngram 1=6
ngram 2=2

\\1-grams:
-9\t<unk>\t0
-99\t<s>\t0
-1\t</s>
-0.5\tSO\t0
-0.5\tNO\t0
-4\tTO\t0

\\2-grams:
-0.1\tSO NO
-0.1\t<s> SO

\\end\\
"""


@pytest.fixture
def lm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("W2V_RAY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "lm.arpa").write_text(ARPA)
    return str(tmp_path / "lm.arpa")


def torn(path: str, other: str, share: float) -> bytes:
    """An emission between two paths of one length."""
    one, two = (np.frombuffer(emission(p), "<f2").reshape(len(p), SIZE).astype(float) for p in (path, other))
    return np.log((1 - share) * np.exp(one) + share * np.exp(two)).astype("<f2").tobytes()


def test_a_language_model_changes_the_text_and_gives_scores(model: str, lm: str) -> None:
    row = segment("TO_|NO", log_probs=torn("TO_|NO", "SO_|NO", 0.4))
    (greedy,) = stage(model)(encoded(row)).to_pylist()
    table = encoded(row, {"error": error_value("read_audio", ReadError("gone"))}, segment("", num_frames=0))
    found, failed, _ = stage(model, lm=lm, characters=True)(table).to_pylist()
    assert (greedy["text"], found["text"]) == ("TO NO", "SO NO")
    assert found["lm_score"] != found["logit_score"] < 0
    assert [w["word"] for w in found["words"]] == ["SO", "NO"]
    assert found["words"][0]["confidence"] < greedy["words"][0]["confidence"]
    assert [c["char"] for c in found["characters"]] == ["S", "O", "N", "O"]
    assert failed["text"] is failed["lm_score"] is None
    assert stage(model, lm=lm)(table).schema.equals(stage(model)(table).schema)


def test_an_arpa_is_compiled_once_and_mapped(model: str, lm: str, tmp_path: Path) -> None:
    table = encoded(segment("SO_|NO"))
    stage(model, lm=lm)(table)
    (compiled,) = (tmp_path / "cache").rglob("*.w2vlm")
    before = compiled.stat().st_mtime_ns
    assert stage(model, lm=lm)(table).column("text").to_pylist() == ["SO NO"]
    assert compiled.stat().st_mtime_ns == before
    Path(lm).write_text(ARPA.replace("-4\tTO", "-5\tTO"))  # another model under the same name
    stage(model, lm=lm)
    assert len(list((tmp_path / "cache").rglob("*.w2vlm"))) == 2


def test_the_language_model_of_a_checkpoint_brings_its_settings(model: str, lm: str) -> None:
    folder = Path(model) / "language_model"
    folder.mkdir()
    Path(lm).rename(folder / "3gram.arpa")
    (folder / "unigrams.txt").write_text("SO\nNO\n")
    row = segment("TO_|NO", log_probs=torn("TO_|NO", "SO_|NO", 0.4))
    tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(model)

    def text(alpha: float) -> str:
        settings = {"alpha": alpha, "beta": 0.0, "unk_score_offset": -0.5, "score_boundary": False}
        (folder / "attrs.json").write_text(json.dumps(settings))
        config = DecodeTextConfig(
            tokenizer=tokenizer, seconds_per_frame=1, decoder=DecoderConfig(lm="checkpoint"), model=model
        )
        return str(DecodeText(config)(encoded(row)).column("text")[0].as_py())

    assert (text(0.0), text(1.0)) == ("TO NO", "SO NO")
    (folder / "second.bin").write_text("")
    with pytest.raises(ConfigError, match="expected a folder with one language model"):
        text(1.0)


def test_hotwords_and_a_search_alone(model: str) -> None:
    row = segment("TO_|NO", log_probs=torn("TO_|NO", "SO_|NO", 0.4))
    (plain,) = stage(model, beam_width=10)(encoded(row)).to_pylist()
    (hot,) = stage(model, hotwords=("SO",))(encoded(row)).to_pylist()
    assert (plain["text"], hot["text"]) == ("TO NO", "SO NO")
    assert plain["lm_score"] == plain["logit_score"]
    nan = np.full((2, SIZE), np.nan, "<f2").tobytes()
    out = stage(model, beam_width=10)(encoded(segment("SO", log_probs=nan), segment("NO"))).to_pylist()
    assert [r["text"] for r in out] == [None, "NO"]
    assert out[0]["error"]["error_class"] == "EncodeError"


@pytest.mark.parametrize("decoder", [{}, {"beam_width": 20}, {"lm": True}])
def test_times_of_noise_are_in_order_and_inside(model: str, lm: str, decoder: dict[str, Any]) -> None:
    decoder = decoder | ({"lm": lm} if "lm" in decoder else {})
    generator = np.random.default_rng(1)
    rows = []
    for frames in (1, 2, 40, 150):
        scores = generator.normal(size=(frames, SIZE)) * 2
        scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
        end_s = 5.0 + FRAME_S * frames - 0.3
        row = {
            "log_probs": scores.astype("<f2").tobytes(),
            "num_frames": frames,
            "start_s": 5.0,
            "end_s": end_s,
        }
        rows.append(row)
    for row in stage(model, characters=True, **decoder)(encoded(*rows)).to_pylist():
        assert " ".join(w["word"] for w in row["words"]) == row["text"]
        for column in ("words", "characters"):
            times = [t for w in row[column] for t in (w["start_s"], w["end_s"])]
            frames = [t for w in row[column] for t in (w["start_frame"], w["end_frame"])]
            assert times == sorted(times)
            assert frames == sorted(frames)
            assert all(row["start_s"] <= t <= row["end_s"] for t in times)
            assert all(0 <= t <= row["num_frames"] for t in frames)
            assert all(0 <= w["confidence"] <= 1 for w in row[column])
        assert "".join(c["char"] for c in row["characters"]) == row["text"].replace(" ", "")


def test_it_needs_no_torch() -> None:
    code = "import sys, w2v_ray.stages.decode_text; print('torch' in sys.modules, 'ray' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["False", "False"]


def test_each_segment_is_read_in_its_language(tmp_path: Path) -> None:
    letters = {"eng": "NOS", "fra": "SON"}
    special = ["<pad>", "<s>", "</s>", "<unk>", "|"]
    vocabulary = {name: {t: i for i, t in enumerate([*special, *own])} for name, own in letters.items()}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "tokenizer_config.json").write_text('{"target_lang": "eng"}')
    values = np.full((6, 8), np.log(0.01))
    values[range(6), [5, 6, 4, 7, 6, 0]] = np.log(0.93)
    row = {"log_probs": values.astype("<f2").tobytes(), "num_frames": 6}
    languages = ["fra", None, "eng", "fra"]
    table = encoded(row, row, row, row)
    table = table.append_column("language", pa.array(languages))
    for decoder in ({}, {"beam_width": 8}):
        out = stage(str(tmp_path), **decoder)(table)
        assert out["text"].to_pylist() == ["SO NO", "NO SO", "NO SO", "SO NO"]
        assert out["language"].to_pylist() == languages
