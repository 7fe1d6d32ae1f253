"""Changing a model's language: exactly the weights of the file, no more changes or reading than needed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.made_languages import LETTERS, SPECIAL, make_checkpoint
from w2v_ray.errors import CheckpointError, LanguageError
from w2v_ray.models.heads import Wav2Vec2ForCTC
from w2v_ray.models.languages import Languages

WAVES = torch.randn(2, 6_000, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "mms", pickled=("deu",))


@torch.no_grad()
def logits(model: Wav2Vec2ForCTC) -> torch.Tensor:
    found: torch.Tensor = model(WAVES).logits
    return found


def test_each_language_is_exactly_what_loading_it_gives(checkpoint: Path) -> None:
    model = Wav2Vec2ForCTC.from_pretrained(checkpoint)
    expected = {None: logits(model)}
    for language in LETTERS:
        expected[language] = logits(Wav2Vec2ForCTC.from_pretrained(checkpoint, target_lang=language))
    languages = Languages(model)
    for language in ("fra", "eng", None, "deu", "nld", "fra", None, "eng"):
        languages.use(language)
        assert languages.language == model.target_lang == language
        assert model.config.vocab_size == expected[language].shape[-1]
        assert torch.equal(logits(model), expected[language])
    assert languages.num_changes == 8
    assert not torch.equal(expected[None], expected["eng"])  # the file's weights are not those of the model


def test_a_language_that_is_there_is_no_change(checkpoint: Path) -> None:
    languages = Languages(Wav2Vec2ForCTC.from_pretrained(checkpoint))
    for language in (None, "fra", "fra", "fra"):
        languages.use(language)
    assert languages.num_changes == 1


def test_files_are_read_once_while_they_are_kept(checkpoint: Path) -> None:
    model = Wav2Vec2ForCTC.from_pretrained(checkpoint)
    languages = Languages(model, max_kept=2)
    found = {}
    for language in ("fra", "deu"):
        languages.use(language)
        found[language] = logits(model)
    (checkpoint / "adapter.fra.safetensors").unlink()
    (checkpoint / "adapter.deu.bin").unlink()
    languages.use("fra")
    assert torch.equal(logits(model), found["fra"])
    languages.use("nld")  # the third: the one that was used longest ago has to go
    languages.use("fra")
    with pytest.raises(
        LanguageError, match=r"^language is 'deu', and model .* has no adapter .*\(it has eng, nld\)"
    ):
        languages.use("deu")
    assert languages.language == "fra"
    assert torch.equal(logits(model), found["fra"])


def test_what_is_kept_does_not_change_with_the_model(checkpoint: Path) -> None:
    model = Wav2Vec2ForCTC.from_pretrained(checkpoint)
    languages = Languages(model)
    before = logits(model)
    languages.use("fra")
    french = logits(model)
    with torch.no_grad():
        for weight in model.adapter_weights().values():
            weight += 1
    languages.use(None)
    assert torch.equal(logits(model), before)
    languages.use("fra")
    assert torch.equal(logits(model), french)


@pytest.mark.parametrize("language", ["spa", "", "../mms/fra", "a/b", "a\\b"])
def test_an_unknown_language_changes_nothing(checkpoint: Path, language: str) -> None:
    model = Wav2Vec2ForCTC.from_pretrained(checkpoint)
    languages = Languages(model)
    with pytest.raises(LanguageError, match=r"no adapter for it \(it has deu, eng, fra, nld\); correct"):
        languages.use(language)
    assert (languages.language, languages.num_changes) == (None, 0)


def test_the_checkpoints_own_language_needs_no_file(checkpoint: Path) -> None:
    model = Wav2Vec2ForCTC.from_pretrained(checkpoint)
    own = logits(model)
    languages = Languages(model, own="eng")
    languages.use("eng")  # a file has it, and counts
    assert not torch.equal(logits(model), own)
    (checkpoint / "adapter.eng.safetensors").unlink()
    languages = Languages(Wav2Vec2ForCTC.from_pretrained(checkpoint), own="eng")
    languages.use("eng")
    assert languages.num_changes == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_type_of_the_weights_stays(checkpoint: Path, dtype: str) -> None:
    model = Wav2Vec2ForCTC.from_pretrained(checkpoint, dtype=dtype)
    languages = Languages(model)
    for language in ("fra", None, "deu"):
        languages.use(language)
        assert {str(weight.dtype) for weight in model.parameters()} == {f"torch.{dtype}"}
    expected = Wav2Vec2ForCTC.from_pretrained(checkpoint, dtype=dtype, target_lang="deu")
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, expected.state_dict()[name])


def test_a_vocabulary_that_does_not_fit_is_refused_before_anything_changes(checkpoint: Path) -> None:
    asked = []

    def check(language: str, rows: int, source: str) -> None:
        asked.append((language, rows, Path(source).name))
        if language == "fra":
            raise CheckpointError("it does not fit; use another")

    model = Wav2Vec2ForCTC.from_pretrained(checkpoint)
    before = logits(model)
    languages = Languages(model, check=check)
    with pytest.raises(CheckpointError, match="it does not fit"):
        languages.use("fra")
    assert torch.equal(logits(model), before)
    languages.use("deu")
    size = len(SPECIAL) + len(LETTERS["deu"])
    assert asked[1:] == [("deu", size, "adapter.deu.bin")]


def test_weights_that_do_not_fit_the_model_change_nothing(checkpoint: Path) -> None:
    path = checkpoint / "adapter.fra.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("linear_1.weight"))
    weights[name] = torch.ones(9, 32)
    save_file(weights, path)
    model = Wav2Vec2ForCTC.from_pretrained(checkpoint)
    before = logits(model)
    languages = Languages(model)
    with pytest.raises(
        CheckpointError, match=r"adapter\.fra\.safetensors does not fit the model: .*linear_1"
    ):
        languages.use("fra")
    assert torch.equal(logits(model), before)
    assert (languages.language, languages.num_changes) == (None, 0)


def test_a_model_without_adapters_has_one_language(tiny_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^a Wav2Vec2ForCTC without adapter_attn_dim has one language"):
        Languages(Wav2Vec2ForCTC.from_pretrained(tiny_checkpoint))
