"""Weights from and to disk: every format and spelling, and one clear error for everything that is wrong."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from w2v_ray.errors import CheckpointError, ConfigError
from w2v_ray.models.auto import AutoModelForCTC
from w2v_ray.models.checkpoint import read_weights
from w2v_ray.models.config import Wav2Vec2Config
from w2v_ray.models.heads import Wav2Vec2ForCTC
from w2v_ray.models.wav2vec2 import Wav2Vec2Model
from w2v_ray.processors import AutoProcessor

Weights = dict[str, torch.Tensor]

HEAD = "lm_head.weight"
GAIN = "wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight.original0"
DIRECTION = "wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight.original1"
MASK = "wav2vec2.masked_spec_embed"


@pytest.fixture(scope="module")
def model() -> Wav2Vec2ForCTC:
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8, 8),
        conv_kernel=(10, 3),
        conv_stride=(5, 2),
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
    )
    return Wav2Vec2ForCTC(config).eval()


@pytest.fixture
def folder(tmp_path: Path, model: Wav2Vec2ForCTC) -> Path:
    """A checkpoint as it is saved here."""
    model.save_pretrained(tmp_path)
    return tmp_path


def logits_of(model: Wav2Vec2ForCTC) -> torch.Tensor:
    wave = torch.randn(1, 400, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits: torch.Tensor = model(wave).logits
    return logits


def write_safetensors(folder: Path, weights: Weights) -> None:
    save_file({k: w.contiguous() for k, w in weights.items()}, folder / "model.safetensors")


def write_shards(folder: Path, weights: Weights, name: str = "model.safetensors") -> None:
    names = sorted(weights)
    stem, suffix = name.split(".")
    weight_map = {}
    for number, part in enumerate((names[::3], names[1::3], names[2::3]), 1):
        shard = f"{stem}-{number:05}-of-00003.{suffix}"
        save = save_file if suffix == "safetensors" else torch.save
        save({k: weights[k].contiguous() for k in part}, folder / shard)
        weight_map |= dict.fromkeys(part, shard)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / f"{name}.index.json").write_text(json.dumps(index))


def write_bin_shards(folder: Path, weights: Weights) -> None:
    write_shards(folder, weights, "pytorch_model.bin")


def write_bin(folder: Path, weights: Weights) -> None:
    torch.save(weights, folder / "pytorch_model.bin")


def write_old_bin(folder: Path, weights: Weights) -> None:
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def in_old_spelling(weights: Weights) -> Weights:
    renamed = dict(weights)
    for new, old in ((GAIN, "weight_g"), (DIRECTION, "weight_v")):
        renamed[new.replace("parametrizations.weight." + new.split(".")[-1], old)] = renamed.pop(new)
    return renamed


FORMATS = [write_safetensors, write_shards, write_bin, write_old_bin, write_bin_shards]


def rewrite(
    folder: Path, weights: Weights, write: Callable[[Path, Weights], None] = write_safetensors
) -> None:
    (folder / "model.safetensors").unlink()
    write(folder, weights)


@pytest.mark.parametrize("spelling", [dict, in_old_spelling], ids=["parametrizations", "weight_g"])
@pytest.mark.parametrize("write", FORMATS)
def test_every_format_in_both_spellings(
    folder: Path,
    model: Wav2Vec2ForCTC,
    write: Callable[[Path, Weights], None],
    spelling: Callable[[Weights], Weights],
) -> None:
    weights = spelling(model.state_dict())
    assert any(name.endswith("weight_g") for name in weights) == (spelling is in_old_spelling)
    rewrite(folder, weights, write)
    loaded = Wav2Vec2ForCTC.from_pretrained(folder)
    assert not loaded.training
    assert torch.equal(logits_of(loaded), logits_of(model))
    base = Wav2Vec2Model.from_pretrained(str(folder))
    for name, weight in base.state_dict().items():
        assert torch.equal(weight, model.wav2vec2.state_dict()[name]), name


def test_both_spellings_are_those_of_torch() -> None:
    """The renaming rests on what torch itself means by the two spellings."""
    conv = torch.nn.Conv1d(4, 4, 3)
    with pytest.warns(FutureWarning, match="weight_norm"):
        old = torch.nn.utils.weight_norm(conv, dim=2)
    g, v = old.weight_g.detach().clone() * 2, old.weight_v.detach().clone()
    new = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(4, 4, 3), dim=2)
    with torch.no_grad():
        new.parametrizations.weight.original0.copy_(g)
        new.parametrizations.weight.original1.copy_(v)
        old.weight_g.copy_(g)
    old(torch.zeros(1, 4, 3))  # computes the weight anew
    torch.testing.assert_close(new.weight, old.weight)


def test_safetensors_goes_before_bin(folder: Path, model: Wav2Vec2ForCTC) -> None:
    write_bin(folder, {name: torch.zeros_like(weight) for name, weight in model.state_dict().items()})
    assert torch.equal(logits_of(Wav2Vec2ForCTC.from_pretrained(folder)), logits_of(model))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float32, torch.float32),
        ("float32", torch.float32),
        ("auto", torch.float16),
        ("bfloat16", torch.bfloat16),
        (torch.float64, torch.float64),
    ],
)
def test_float16_on_disk(
    folder: Path, model: Wav2Vec2ForCTC, dtype: torch.dtype | str, expected: torch.dtype
) -> None:
    rewrite(folder, {name: weight.half() for name, weight in model.state_dict().items()})
    loaded = Wav2Vec2ForCTC.from_pretrained(folder, dtype=dtype)
    assert {parameter.dtype for parameter in loaded.parameters()} == {expected}
    if expected in (torch.float32, torch.float16):
        difference = logits_of(loaded.float()) - logits_of(model)
        assert difference.abs().max() < 0.02 * logits_of(model).std()


def test_an_unknown_dtype_is_an_error(folder: Path) -> None:
    with pytest.raises(
        ConfigError, match="dtype is 'fp16', expected auto, float32, float16, bfloat16; choose"
    ):
        Wav2Vec2ForCTC.from_pretrained(folder, dtype="fp16")


def test_what_is_loaded_can_be_trained(folder: Path) -> None:
    loaded = Wav2Vec2ForCTC.from_pretrained(folder).train()
    loaded(torch.randn(1, 2_000), labels=torch.tensor([[5]])).loss.backward()
    assert loaded.lm_head.weight.grad is not None
    assert loaded.wav2vec2.feature_extractor.conv_layers[0].conv.weight.grad is not None


def test_what_is_saved_is_what_was_loaded(folder: Path, tmp_path: Path, model: Wav2Vec2ForCTC) -> None:
    Wav2Vec2ForCTC.from_pretrained(folder).save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    saved = load_file(tmp_path / "again" / "model.safetensors")
    assert saved.keys() == model.state_dict().keys()
    assert all(torch.equal(saved[name], weight) for name, weight in model.state_dict().items())
    written = json.loads((folder / "config.json").read_text())
    assert written["architectures"] == ["Wav2Vec2ForCTC"]
    assert written["dtype"] == "float32"


def test_the_learned_mask_may_be_missing(folder: Path, model: Wav2Vec2ForCTC) -> None:
    rewrite(folder, {name: weight for name, weight in model.state_dict().items() if name != MASK})
    loaded = Wav2Vec2ForCTC.from_pretrained(folder)
    assert torch.equal(logits_of(loaded), logits_of(model))
    assert loaded.wav2vec2.masked_spec_embed.isfinite().all()
    assert Wav2Vec2Model.from_pretrained(folder).masked_spec_embed.shape == (16,)


def test_base_model_of_a_base_checkpoint(tmp_path: Path, model: Wav2Vec2ForCTC) -> None:
    model.wav2vec2.save_pretrained(tmp_path)
    loaded = Wav2Vec2Model.from_pretrained(tmp_path)
    assert torch.equal(loaded.encoder.layer_norm.weight, model.wav2vec2.encoder.layer_norm.weight)
    with pytest.raises(CheckpointError, match=r"lacks lm_head\.bias, lm_head\.weight; use a checkpoint"):
        Wav2Vec2ForCTC.from_pretrained(tmp_path)


def test_base_model_of_a_pretraining_checkpoint(folder: Path, model: Wav2Vec2ForCTC) -> None:
    weights = {k: w for k, w in model.state_dict().items() if k.startswith("wav2vec2.")}
    rewrite(
        folder, weights | {"quantizer.codevectors": torch.zeros(1, 4, 2), "project_q.bias": torch.zeros(2)}
    )
    assert Wav2Vec2Model.from_pretrained(folder).config.hidden_size == 16
    with pytest.raises(
        CheckpointError, match=r"lacks lm_head.* and has project_q\.bias, quantizer\.codevectors"
    ):
        Wav2Vec2ForCTC.from_pretrained(folder)


def test_auto_model(folder: Path, model: Wav2Vec2ForCTC) -> None:
    loaded = AutoModelForCTC.from_pretrained(folder, dtype="float16", attn_implementation="eager")
    assert type(loaded) is Wav2Vec2ForCTC
    assert loaded.wav2vec2.attn_implementation == "eager"
    assert loaded.lm_head.weight.dtype == torch.float16
    config = json.loads((folder / "config.json").read_text())
    for model_type in ("hubert", None):
        (folder / "config.json").write_text(json.dumps(config | {"model_type": model_type}))
        with pytest.raises(
            CheckpointError, match=rf"config\.json says model_type {model_type!r}, expected 'wav2vec2'"
        ):
            AutoModelForCTC.from_pretrained(folder)


def assert_one_sentence(message: str) -> None:
    assert "\n" not in message
    assert re.sub(r"\(.*\)", "", message).count("; ") == 1, "what is wrong; what to do"
    assert not message.endswith(".")


def error_of(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Wav2Vec2ForCTC.from_pretrained(folder)
    assert_one_sentence(str(caught.value))
    assert str(folder) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("write", FORMATS)
def test_a_missing_weight_is_named(
    folder: Path, model: Wav2Vec2ForCTC, write: Callable[[Path, Weights], None]
) -> None:
    rewrite(folder, {name: weight for name, weight in model.state_dict().items() if name != HEAD}, write)
    assert "lacks lm_head.weight; use a checkpoint that fits its config.json" in error_of(folder)


@pytest.mark.parametrize("write", FORMATS)
def test_an_unexpected_weight_is_named(
    folder: Path, model: Wav2Vec2ForCTC, write: Callable[[Path, Weights], None]
) -> None:
    rewrite(folder, model.state_dict() | {"lm_head.extra": torch.zeros(2)}, write)
    assert "has lm_head.extra, which the model does not; use" in error_of(folder)


@pytest.mark.parametrize("write", FORMATS)
def test_a_wrong_shape_is_named(
    folder: Path, model: Wav2Vec2ForCTC, write: Callable[[Path, Weights], None]
) -> None:
    rewrite(folder, model.state_dict() | {HEAD: torch.zeros(30, 16)}, write)
    expected = "of another shape (lm_head.weight is (30, 16), the config asks for (32, 16)); use"
    assert f"has lm_head.weight {expected}" in error_of(folder)


def test_a_config_of_another_size_is_an_error(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2, "vocab_size": 40}))
    message = error_of(folder)
    assert "lacks wav2vec2.encoder.layers.1.attention.k_proj.bias, " in message
    assert (
        " and 11 more and has lm_head.bias, lm_head.weight of another shape (lm_head.bias is (32,)" in message
    )


def test_half_a_weight_norm_is_an_error(folder: Path, model: Wav2Vec2ForCTC) -> None:
    weights = in_old_spelling(model.state_dict())
    rewrite(folder, {name: weight for name, weight in weights.items() if not name.endswith("weight_g")})
    assert f"lacks {GAIN};" in error_of(folder)


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("write", [write_safetensors, write_bin, write_old_bin])
def test_a_truncated_file_is_named(
    folder: Path, model: Wav2Vec2ForCTC, write: Callable[[Path, Weights], None], keep: float
) -> None:
    rewrite(folder, model.state_dict(), write)
    path = next(path for path in folder.iterdir() if path.name != "config.json")
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    message = error_of(folder)
    assert message.startswith(f"{path} cannot be read as weights (")
    assert "()" not in message


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    "content",
    [b"<html>404</html>", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 377611120\n"],
    ids=["html", "lfs"],
)
def test_a_file_of_something_else_is_named(folder: Path, name: str, content: bytes) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(content)
    assert error_of(folder).startswith(f"{folder / name} cannot be read as weights (")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@pytest.mark.parametrize("write", [write_safetensors, write_bin, write_old_bin])
def test_damage_is_never_another_exception(
    tmp_path: Path, model: Wav2Vec2ForCTC, write: Callable[[Path, Weights], None]
) -> None:
    write(tmp_path, dict(list(model.state_dict().items())[:4]))
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    rng = random.Random(0)
    failed = 0
    for _ in range(200):
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(min(len(damaged), 700))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            read_weights(tmp_path)
        except CheckpointError as error:
            assert_one_sentence(str(error))
            failed += 1
    assert failed > 20


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@pytest.mark.parametrize("kind", ["torch.save", "torch.save of old", "pickle.dump", "shard"])
def test_code_in_a_bin_is_not_run(folder: Path, tmp_path: Path, model: Wav2Vec2ForCTC, kind: str) -> None:
    marker = tmp_path / "marker"
    content = model.state_dict() | {"lm_head.bias": Malicious(marker)}
    pickle.loads(pickle.dumps(Malicious(marker)))
    assert marker.exists(), "the pickle would do nothing even if it were run"
    marker.unlink()
    path = folder / "pytorch_model.bin"
    if kind == "pickle.dump":
        path.write_bytes(pickle.dumps(content))
        (folder / "model.safetensors").unlink()
    else:
        rewrite(folder, content, write_old_bin if kind == "torch.save of old" else write_bin)
    if kind == "shard":
        path = path.rename(folder / "pytorch_model-00001-of-00001.bin")
        index = json.dumps({"weight_map": dict.fromkeys(content, path.name)})
        (folder / "pytorch_model.bin.index.json").write_text(index)
    message = error_of(folder)
    assert message.startswith(f"{path} cannot be read as weights (")
    assert "it is damaged or holds objects that are not tensors" in message
    assert "weights_only" not in message
    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        [torch.zeros(3)],
        {"state_dict": {HEAD: torch.zeros(3)}},
        {HEAD: 3.0},
        {1: torch.zeros(3)},
        torch.zeros(3),
    ],
    ids=["list", "nested", "number", "number as name", "tensor"],
)
def test_a_bin_of_something_else_is_named(folder: Path, content: Any) -> None:
    rewrite(folder, content, write_bin)
    assert error_of(folder) == (
        f"{folder / 'pytorch_model.bin'} does not hold a mapping of names to tensors; "
        "name a checkpoint of a model"
    )


def test_an_absent_shard_is_named(folder: Path, model: Wav2Vec2ForCTC) -> None:
    rewrite(folder, model.state_dict(), write_shards)
    (folder / "model-00002-of-00003.safetensors").unlink()
    message = error_of(folder)
    assert message.startswith(f"{folder} has no model-00002-of-00003.safetensors (it holds config.json, ")


def test_a_shard_without_what_the_index_says_is_an_error(folder: Path, model: Wav2Vec2ForCTC) -> None:
    rewrite(folder, model.state_dict(), write_shards)
    path = folder / "model-00001-of-00003.safetensors"
    weights = load_file(path)
    name = next(iter(weights))
    save_file({k: w for k, w in weights.items() if k != name}, path)
    assert f"model.safetensors.index.json lacks {name};" in error_of(folder)


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": ["model.safetensors"]}])
def test_an_index_without_a_map_is_an_error(folder: Path, index: dict[str, Any]) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model.safetensors.index.json has no weight_map; fetch the file again" in error_of(folder)


def test_a_shard_elsewhere_is_not_read(folder: Path, model: Wav2Vec2ForCTC) -> None:
    (folder.parent / "outside.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").unlink()
    for shard in ("../outside.safetensors", str(folder.parent / "outside.safetensors")):
        index = {"weight_map": dict.fromkeys(model.state_dict(), shard)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        assert f"names the shard {shard!r}, expected a file beside it; fetch" in error_of(folder)


@pytest.mark.parametrize(
    ("present", "fix"),
    [
        (None, "name a checkpoint with torch weights"),
        ("tf_model.h5", "load it with from_tf=True"),
        ("flax_model.msgpack", "load it with from_flax=True"),
    ],
)
def test_no_weights_at_all_is_an_error(folder: Path, present: str | None, fix: str) -> None:
    (folder / "model.safetensors").unlink()
    if present is not None:
        (folder / present).touch()
    assert error_of(folder).endswith(f" has neither model.safetensors nor pytorch_model.bin; {fix}")


@pytest.mark.parametrize("missing", ["preprocessor_config.json", "vocab.json"])
def test_a_missing_file_of_the_processor_is_named(
    tiny_checkpoint: Path, tmp_path: Path, missing: str
) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    assert AutoProcessor.from_pretrained(tmp_path / "model") is not None
    (tmp_path / "model" / missing).unlink()
    with pytest.raises(CheckpointError, match=rf"^{tmp_path / 'model'} .*{missing}") as caught:
        AutoProcessor.from_pretrained(tmp_path / "model")
    assert_one_sentence(str(caught.value))


def test_no_config_is_an_error(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "has no config.json (it holds model.safetensors); name a folder that has one" in error_of(folder)
