"""A vocabulary so large that only the likeliest tokens of a frame leave the encoder: texts do not change."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from w2v_ray.config import JobConfig
from w2v_ray.decoder_config import DecoderConfig
from w2v_ray.errors import ConfigError, ReadError
from w2v_ray.models.config import Wav2Vec2Config
from w2v_ray.models.heads import Wav2Vec2ForCTC
from w2v_ray.schema import DECODED, DECODED_TEXT, ERROR, TOP_TOKENS, error_value
from w2v_ray.stages import DecodeText, DecodeTextConfig, Encode, EncodeConfig
from w2v_ray.stages.emissions import emission_of
from w2v_ray.stages.keep_log_probs import KeepLogProbs
from w2v_ray.text.search import SearchOptions
from w2v_ray.text.tokenizer import Wav2Vec2CTCTokenizer

SIZE = 1_100
ADDED = {field.name for field in TOP_TOKENS}


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose model writes one of a thousand signs a token."""
    folder = tmp_path_factory.mktemp("many_tokens")
    config = dataclasses.replace(
        Wav2Vec2Config.from_pretrained(str(tiny_checkpoint)), vocab_size=SIZE, num_hidden_layers=1
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = Wav2Vec2ForCTC(config)
        torch.nn.init.normal_(model.lm_head.weight, std=0.7)
    model.save_pretrained(folder)
    tokens = ["<pad>", "<s>", "</s>", "<unk>", "|", *(chr(0x4E00 + i) for i in range(SIZE - 5))]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    settings = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def segments() -> pa.Table:
    generator = np.random.default_rng(4)
    samples = [
        (0.1 * generator.standard_normal(n)).astype(np.float32).tobytes()
        for n in (30_000, 9_000, 500, 21_000)
    ]
    gone = error_value("read_audio", ReadError("gone"))
    count = len(samples) + 2
    return pa.table(
        {
            "start_s": [0.0] * count,
            "end_s": [9.0] * count,
            "samples": pa.array([*samples, b"", None], DECODED[0].type),
            "error": pa.array([None] * (count - 1) + [gone], ERROR),
        }
    )


def encoded(model: Path, **options: Any) -> pa.Table:
    return Encode(EncodeConfig(model=str(model), num_threads=1, **options))(segments())


def texts(model: Path, table: pa.Table, decoder: DecoderConfig) -> list[dict[str, Any]]:
    tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(str(model))
    stage = DecodeText(DecodeTextConfig(tokenizer=tokenizer, seconds_per_frame=0.02, decoder=decoder))
    decoded = stage(table)
    assert not ADDED & set(decoded.column_names)
    rows: list[dict[str, Any]] = decoded.select([*DECODED_TEXT, "error"]).to_pylist()
    return rows


@pytest.mark.parametrize(
    "decoder", [DecoderConfig(characters=True), DecoderConfig(beam_width=20)], ids=["greedy", "search"]
)
def test_texts_are_those_of_all_tokens(checkpoint: Path, decoder: DecoderConfig) -> None:
    whole, top = encoded(checkpoint), encoded(checkpoint, top_tokens=decoder.top_tokens)
    assert top.nbytes < 0.6 * whole.nbytes
    for row, other in zip(texts(checkpoint, whole, decoder), texts(checkpoint, top, decoder), strict=True):
        assert other["text"] == row["text"]
        assert bool(row["text"]) == (row["confidence"] is not None)
        assert other["error"] == row["error"]
        assert other["confidence"] == pytest.approx(row["confidence"], abs=1e-3)
        frames = [
            [(w["word"], w["start_frame"], w["end_frame"]) for w in one["words"] or []]
            for one in (row, other)
        ]
        assert frames[0] == frames[1]
    assert sum(map(len, top.column("top_tokens").drop_null().to_pylist())) > 0


def test_the_tokens_are_the_likeliest(checkpoint: Path) -> None:
    whole, top = encoded(checkpoint), encoded(checkpoint, top_tokens=200)
    assert set(top.column_names) == set(whole.column_names) | ADDED
    for row in range(4):
        expected = emission_of(whole, row).astype(np.float32)
        found = emission_of(top, row).astype(np.float32)
        assert top.column("vocabulary_size")[row].as_py() == SIZE
        least = np.sort(expected, axis=1)[:, -200]
        is_top = expected > least[:, None]
        assert (found[is_top] == expected[is_top]).all()
        assert (found[~is_top].reshape(-1) <= np.repeat(least, (~is_top).sum(axis=1)) + 1e-2).all()
    assert top.column("top_tokens").to_pylist()[4:] == [None, None]


def test_few_tokens_are_handed_on_as_they_are(checkpoint: Path, tiny_checkpoint: Path) -> None:
    for model, count in ((checkpoint, SIZE // 4 + 1), (tiny_checkpoint, 256)):
        whole, top = encoded(model), encoded(model, top_tokens=count)
        assert top.select(whole.column_names).equals(whole)
        assert top.column("top_tokens").null_count == top.num_rows


def test_what_is_kept_for_decoding_again_is_the_same(checkpoint: Path) -> None:
    keep = KeepLogProbs(Wav2Vec2CTCTokenizer.from_pretrained(str(checkpoint)), count=8)
    whole, top = keep(encoded(checkpoint)), keep(encoded(checkpoint, top_tokens=256))
    assert top.column("num_columns").to_pylist() == whole.column("num_columns").to_pylist()
    for name in ("kept_tokens", "kept_log_probs"):
        sizes = [None if one is None else len(one) for one in top.column(name).to_pylist()]
        assert sizes == [None if one is None else len(one) for one in whole.column(name).to_pylist()]
    assert top.column("kept_tokens").to_pylist() == whole.column("kept_tokens").to_pylist()


def test_what_does_not_fit_is_an_error_of_its_row(checkpoint: Path) -> None:
    table = encoded(checkpoint, top_tokens=256)
    tokens = table.column("top_tokens").to_pylist()
    tokens[0] = tokens[0][:-2]
    place = table.column_names.index("top_tokens")
    table = table.set_column(place, "top_tokens", pa.array(tokens, TOP_TOKENS[0].type))
    rows = texts(checkpoint, table, DecoderConfig())
    assert "tokens and" in rows[0]["error"]["message"]
    assert [row["error"] is None for row in rows[1:]] == [True, True, True, True, False]


def test_a_job_hands_on_what_its_decoder_needs() -> None:
    def job(**options: Any) -> JobConfig:
        return JobConfig(inputs=("a",), output="o", model="m", **options)

    assert job().top_tokens == 256
    assert job(beam_width=50).top_tokens == 256
    least = SearchOptions().token_min_logp
    assert job(beam_width=50, token_min_logp=least).top_tokens == 256
    assert np.exp(-least) < 256  # so many tokens at most are as likely as a search asks for
    assert job(beam_width=50, token_min_logp=-8.0).top_tokens is None
    assert job(keep_log_probs=8).top_tokens == 256
    assert job(keep_log_probs=300).top_tokens is None
    with pytest.raises(ConfigError, match="top_tokens is 0, expected at least 1"):
        EncodeConfig(model="m", top_tokens=0)
