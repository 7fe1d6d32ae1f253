"""Language adapters in the layout of MMS: read, refused, and exchanged with transformers."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from w2v_ray.errors import CheckpointError, ConfigError
from w2v_ray.models.auto import AutoModelForCTC
from w2v_ray.models.config import Wav2Vec2Config
from w2v_ray.models.heads import Wav2Vec2ForCTC

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "adapter_attn_dim": 8,
    "vocab_size": 20,
}
WAVES = torch.randn(2, 6_000, generator=torch.Generator().manual_seed(5))
VOCABULARIES = {"fra": 26, "deu": 20}


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    yield
    logger.setLevel(level)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """English in the weights, French beside them as safetensors, German as a pickle."""
    folder = tmp_path_factory.mktemp("mms")
    torch.manual_seed(0)
    model = transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(**TINY))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.3 if parameter.ndim == 1 else 0.08
            parameter += spread * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    for language, vocab_size in VOCABULARIES.items():
        weights = {
            name: 0.3 * torch.randn(weight.shape, generator=generator)
            for name, weight in model._get_adapters().items()
        }
        weights["lm_head.weight"] = 0.3 * torch.randn(vocab_size, 32, generator=generator)
        weights["lm_head.bias"] = torch.randn(vocab_size, generator=generator)
        if language == "deu":
            torch.save(weights, folder / "adapter.deu.bin")
        else:
            save_file(weights, folder / f"adapter.{language}.safetensors")
    return folder


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.05
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@torch.no_grad()
def test_the_language_in_the_weights(checkpoint: Path) -> None:
    theirs = transformers.Wav2Vec2ForCTC.from_pretrained(checkpoint).eval()
    ours = Wav2Vec2ForCTC.from_pretrained(checkpoint)
    assert_close(ours(WAVES).logits, theirs(WAVES).logits)
    assert sorted(ours.adapter_weights()) == sorted(theirs._get_adapters())


@pytest.mark.parametrize("language", VOCABULARIES)
@torch.no_grad()
def test_a_language_chosen_when_loading(checkpoint: Path, language: str) -> None:
    theirs = transformers.Wav2Vec2ForCTC.from_pretrained(
        checkpoint, target_lang=language, ignore_mismatched_sizes=True
    ).eval()
    for cls in (Wav2Vec2ForCTC, AutoModelForCTC):
        ours = cls.from_pretrained(checkpoint, target_lang=language, ignore_mismatched_sizes=True)
        assert ours.target_lang == language
        assert ours.config.vocab_size == VOCABULARIES[language] == ours(WAVES).logits.shape[-1]
        assert_close(ours(WAVES).logits, theirs(WAVES).logits)


@torch.no_grad()
def test_from_language_to_language(checkpoint: Path, tmp_path: Path) -> None:
    theirs = transformers.Wav2Vec2ForCTC.from_pretrained(checkpoint).eval()
    ours = Wav2Vec2ForCTC.from_pretrained(checkpoint)
    for language in ("deu", "fra", "deu"):
        theirs.load_adapter(language)
        ours.load_adapter(language)
        assert_close(ours(WAVES).logits, theirs(WAVES).logits)
    assert not ours.training
    labels = torch.tensor([[5, 6, 19], [7, -100, -100]])
    expected = theirs(WAVES, labels=labels).loss
    torch.testing.assert_close(ours(WAVES, labels=labels).loss, expected, rtol=1e-4, atol=0)
    ours.load_adapter("fra")
    ours.save_pretrained(tmp_path)
    reloaded, report = transformers.Wav2Vec2ForCTC.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert reloaded.config.vocab_size == VOCABULARIES["fra"]
    assert_close(ours(WAVES).logits, reloaded.eval()(WAVES).logits)


@torch.no_grad()
def test_a_loaded_language_is_kept_unless_forced(checkpoint: Path) -> None:
    model = Wav2Vec2ForCTC.from_pretrained(checkpoint, target_lang="fra")
    before = model(WAVES).logits
    model.lm_head.bias += 1
    model.load_adapter("fra", force_load=False)
    torch.testing.assert_close(model(WAVES).logits, before + 1)
    model.load_adapter("fra")
    torch.testing.assert_close(model(WAVES).logits, before)


@torch.no_grad()
def test_dtype_stays(checkpoint: Path) -> None:
    model = Wav2Vec2ForCTC.from_pretrained(checkpoint, target_lang="fra", dtype="bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@torch.no_grad()
def test_languages_of_a_model_in_8_bits(checkpoint: Path) -> None:
    model = Wav2Vec2ForCTC.from_pretrained(checkpoint, target_lang="fra", load_in_8bit=True)
    exact = Wav2Vec2ForCTC.from_pretrained(checkpoint, target_lang="fra")
    difference = (model(WAVES).logits - exact(WAVES).logits).abs().max()
    assert 0 < difference < 0.1 * exact(WAVES).logits.std()
    assert torch.equal(model.lm_head.bias, exact.lm_head.bias)


@torch.no_grad()
def test_a_language_trained_here_transformers_loads(checkpoint: Path, tmp_path: Path) -> None:
    model = Wav2Vec2ForCTC.from_pretrained(checkpoint)
    english = model(WAVES).logits
    model.init_adapter_layers()
    for name, weight in model.adapter_weights().items():
        if name.endswith("norm.weight"):
            assert (weight == 1).all()
        elif name.endswith("bias"):
            assert (weight == 0).all()
        else:
            assert weight.std().item() == pytest.approx(0.02, rel=0.3)
        weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name)))
    assert (model(WAVES).logits - english).abs().max() > 0.1
    model.save_pretrained(tmp_path)
    weights = {name: weight.detach().clone() for name, weight in model.adapter_weights().items()}
    save_file(weights, tmp_path / "adapter.new.safetensors")
    theirs = transformers.Wav2Vec2ForCTC.from_pretrained(tmp_path, target_lang="new").eval()
    assert_close(model(WAVES).logits, theirs(WAVES).logits)


@torch.no_grad()
def test_a_model_that_was_built_takes_a_folder(checkpoint: Path) -> None:
    model = Wav2Vec2ForCTC(Wav2Vec2Config(**TINY), "fra").eval()  # type: ignore[arg-type]
    assert model.target_lang == "fra"
    with pytest.raises(ConfigError, match=r"^target_lang is 'deu', but the model was built and not loaded"):
        model.load_adapter("deu")
    model.load_adapter("deu", model=checkpoint)
    expected = torch.load(checkpoint / "adapter.deu.bin", weights_only=True)
    assert torch.equal(model.lm_head.bias, expected["lm_head.bias"])


def test_an_absent_language_names_those_there_are(checkpoint: Path) -> None:
    message = r"has no adapter\.spa\.safetensors or adapter\.spa\.bin \(it has deu, fra\); choose another"
    with pytest.raises(CheckpointError, match=message):
        Wav2Vec2ForCTC.from_pretrained(checkpoint, target_lang="spa")


@pytest.mark.parametrize("language", ["", "../mms/fra", "a/b", "a\\b"])
def test_a_language_is_no_path(checkpoint: Path, language: str) -> None:
    with pytest.raises(ConfigError, match=r"expected the name of a language such as 'eng'"):
        Wav2Vec2ForCTC.from_pretrained(checkpoint, target_lang=language)


def test_a_checkpoint_without_adapters_has_no_languages(tiny_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match=r"^target_lang is 'fra', but the config has no adapter_attn_dim"):
        Wav2Vec2ForCTC.from_pretrained(tiny_checkpoint, target_lang="fra")


NAME = "wav2vec2.encoder.layers.1.adapter_layer.linear_1.weight"
SPOILS: dict[str, tuple[Any, str]] = {
    "missing": (lambda w: w.pop(NAME), rf"{NAME} has shape None, expected \(8, 32\) \(one of 1 such\)"),
    "unexpected": (lambda w: w.update(new=torch.ones(2)), r"new has shape \(2,\), expected None"),
    "misshapen": (lambda w: w.update({NAME: torch.ones(9, 32)}), r"shape \(9, 32\), expected \(8, 32\)"),
    "headless": (
        lambda w: w.pop("lm_head.weight"),
        r"lm_head.bias has shape \(26,\), expected \(20,\) \(one of 2 such\)",
    ),
    "flat_head": (
        lambda w: w.update({"lm_head.weight": torch.tensor(1.0)}),
        r"lm_head.bias has shape \(26,\), expected \(20,\) \(one of 2 such\)",
    ),
    "other_head": (
        lambda w: w.update({"lm_head.bias": torch.ones(3)}),
        r"lm_head.bias has shape \(3,\), expected \(26,\)",
    ),
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_weights_that_do_not_fit_are_named_and_change_nothing(checkpoint: Path, spoil: str) -> None:
    change, message = SPOILS[spoil]
    weights = load_file(checkpoint / "adapter.fra.safetensors")
    change(weights)
    bad = checkpoint / "adapter.bad.safetensors"
    save_file(weights, bad)
    model = Wav2Vec2ForCTC.from_pretrained(checkpoint)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    try:
        with pytest.raises(CheckpointError, match=rf"adapter\.bad\.safetensors does not fit.*{message}"):
            model.load_adapter("bad")
    finally:
        bad.unlink()
    assert model.config.vocab_size == 20
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


class _Bomb:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("exploded"),))


def test_code_in_an_adapter_never_runs(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkpoint)
    model = Wav2Vec2ForCTC.from_pretrained(checkpoint)
    bomb = checkpoint / "adapter.bom.bin"
    try:
        for content in (pickle.dumps(_Bomb()), b"", b"not a pickle"):
            bomb.write_bytes(content)
            with pytest.raises(CheckpointError, match=r"adapter\.bom\.bin cannot be read as weights"):
                model.load_adapter("bom")
            assert not (checkpoint / "exploded").exists()
        pickle.loads(pickle.dumps(_Bomb()))
        assert (checkpoint / "exploded").exists(), "the pickle would do nothing even if it were run"
    finally:
        bomb.unlink()
        (checkpoint / "exploded").unlink(missing_ok=True)


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.99])
def test_a_truncated_adapter_is_named(checkpoint: Path, keep: float) -> None:
    model = Wav2Vec2ForCTC.from_pretrained(checkpoint)
    content = (checkpoint / "adapter.fra.safetensors").read_bytes()
    cut = checkpoint / "adapter.cut.safetensors"
    cut.write_bytes(content[: int(keep * len(content))])
    try:
        with pytest.raises(CheckpointError, match=rf"^{cut} cannot be read as weights \(.+\); fetch"):
            model.load_adapter("cut")
    finally:
        cut.unlink()


def test_layers_that_normalise_last_have_no_adapters() -> None:
    config = Wav2Vec2Config(**TINY | {"do_stable_layer_norm": False})  # type: ignore[arg-type]
    ours = set(Wav2Vec2ForCTC(config).state_dict())
    theirs = transformers.Wav2Vec2ForCTC(
        transformers.Wav2Vec2Config(**TINY | {"do_stable_layer_norm": False})
    )
    assert ours == set(theirs.state_dict())
