"""TensorFlow's classes and files: weights laid out by an independent rule, and files TensorFlow wrote."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from w2v_ray.errors import CheckpointError, ConfigError
from w2v_ray.models.config import Wav2Vec2Config
from w2v_ray.models.heads import Wav2Vec2ForCTC, Wav2Vec2ForSequenceClassification
from w2v_ray.models.pretrained import PretrainedModel
from w2v_ray.models.tensorflow import TFWav2Vec2ForCTC, TFWav2Vec2ForSequenceClassification, TFWav2Vec2Model
from w2v_ray.models.wav2vec2 import Wav2Vec2Model

WRITTEN_BY_TENSORFLOW = Path(__file__).parents[1] / "data" / "tf_flax" / "tf_ctc"

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": (8, 12),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 11,
    "num_labels": 3,
    "classifier_proj_size": 10,
}
FAMILIES = {
    "group": {"feat_extract_norm": "group"},
    "layer": {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
    "weighted": {"use_weighted_layer_sum": True},
}
CLASSES = {
    TFWav2Vec2Model: Wav2Vec2Model,
    TFWav2Vec2ForCTC: Wav2Vec2ForCTC,
    TFWav2Vec2ForSequenceClassification: Wav2Vec2ForSequenceClassification,
}


def as_tensorflow(model: PretrainedModel) -> dict[str, np.ndarray]:
    """The variables that TensorFlow has for the weights of a torch model, without the model's name."""
    variables = {}
    for name, weight in model.state_dict().items():
        values = weight.numpy()
        if isinstance(model, Wav2Vec2Model):
            name = f"wav2vec2.{name}"
        if name.endswith("original0"):
            name, values = (
                name.replace("parametrizations.weight.original0", "weight_g"),
                values.reshape(-1, 1, 1),
            )
        elif name.endswith("original1"):
            name = name.replace("parametrizations.weight.original1", "weight_v")
        elif re.search(r"conv_layers\.\d+\.conv\.weight$", name):
            name, values = name.removesuffix("weight") + "kernel", np.einsum("oik->kio", values)
        elif "layer_norm." in name:
            name = name.replace(".weight", ".gamma").replace(".bias", ".beta")
        elif name.endswith(".weight"):
            name, values = name.removesuffix("weight") + "kernel", np.einsum("oi->io", values)
        path = re.sub(r"\.(?!\d)", "/", name)  # layers.0 is one name
        variables[f"{path}:0"] = np.ascontiguousarray(values)
    return variables


def write_h5(folder: Path, model: PretrainedModel, name: str = "tf_model") -> None:
    """As Keras 2 does: a group per layer, in it the variables under their full names."""
    model.config.save_pretrained(folder)
    variables = as_tensorflow(model)
    layers: dict[str, list[str]] = {}
    for variable in variables:
        layer = variable.split("/")[0] if "/" in variable else "top_level_model_weights"
        layers.setdefault(layer, []).append(variable)
    with h5py.File(folder / "tf_model.h5", "w") as file:
        file.attrs["layer_names"] = [layer.encode() for layer in layers]
        for layer, members in layers.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = [f"{name}/{member}".encode() for member in members]
            for member in members:
                group.create_dataset(f"{name}/{member}", data=variables[member])


def write_h5_shards(folder: Path, model: PretrainedModel) -> None:
    """As transformers did: variables at the top, without the model's name."""
    model.config.save_pretrained(folder)
    variables = as_tensorflow(model)
    weight_map = {}
    for number, part in enumerate((list(variables)[::2], list(variables)[1::2]), 1):
        shard = f"tf_model-{number:05}-of-00002.h5"
        with h5py.File(folder / shard, "w") as file:
            file.attrs["layer_names"] = [variable.encode() for variable in part]
            for variable in part:
                file.create_dataset(variable, data=variables[variable])
        weight_map |= {f"tf_model/{variable}": shard for variable in part}
    (folder / "tf_model.h5.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def make(torch_class: type[Any], family: str) -> Any:
    torch.manual_seed(0)
    model = torch_class(Wav2Vec2Config(**SMALL, **FAMILIES[family]))
    for parameter in model.parameters():  # off the ones and zeros that many start from
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def batch() -> dict[str, np.ndarray]:
    waves = np.random.default_rng(1).standard_normal((2, 400), dtype="float32")
    mask = np.ones((2, 400), dtype="int32")
    mask[1, 300:] = 0
    return {"input_values": np.where(mask, waves, 0), "attention_mask": mask}


def values_of(output: Any) -> list[torch.Tensor]:
    return [value for value in output.to_tuple() if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("write", [write_h5, write_h5_shards])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tf_class", CLASSES)
def test_equal_to_torch(tmp_path: Path, tf_class: type[Any], family: str, write: Any) -> None:
    model = make(CLASSES[tf_class], family)
    write(tmp_path, model)
    loaded = tf_class.from_pretrained(tmp_path)
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    with torch.no_grad():
        expected = model(**{name: torch.from_numpy(value) for name, value in batch().items()})
    for output in (loaded(batch()), loaded.call(**batch()), loaded(*batch().values())):
        assert type(output) is type(expected)
        for ours, theirs in zip(values_of(output), values_of(expected), strict=True):
            assert torch.equal(ours, theirs)
    as_tuple = loaded(**batch(), return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], values_of(expected)[0])
    in_torch = CLASSES[tf_class].from_pretrained(tmp_path, from_tf=True)
    assert type(in_torch) is CLASSES[tf_class]
    for name, weight in model.state_dict().items():
        assert torch.equal(in_torch.state_dict()[name], weight), name


def test_a_file_that_tensorflow_wrote() -> None:
    expected = np.load(WRITTEN_BY_TENSORFLOW / "expected.npz")
    output = TFWav2Vec2ForCTC.from_pretrained(WRITTEN_BY_TENSORFLOW)(expected["wave"])
    assert expected["logits"].std() > 0.1
    np.testing.assert_allclose(output.logits.numpy(), expected["logits"], atol=1e-5)


def test_losses_and_gradients_in_training(tmp_path: Path) -> None:
    model = make(Wav2Vec2ForCTC, "layer")
    write_h5(tmp_path, model)
    loaded = TFWav2Vec2ForCTC.from_pretrained(
        tmp_path,
        apply_spec_augment=False,
        layerdrop=0.0,
        **dict.fromkeys(
            (
                "hidden_dropout",
                "activation_dropout",
                "attention_dropout",
                "feat_proj_dropout",
                "final_dropout",
            ),
            0.0,
        ),
    )
    labels = np.array([[3, 4, 5], [6, -100, -100]])
    expected = model(
        **{k: torch.from_numpy(v) for k, v in batch().items()}, labels=torch.from_numpy(labels)
    ).loss
    quiet = loaded(batch(), labels=labels).loss
    assert torch.equal(quiet, expected)
    assert not quiet.requires_grad
    loss = loaded(batch(), labels=labels, training=True).loss
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert loaded.lm_head.weight.grad is not None
    assert not loaded.training


def test_what_the_call_refuses(tmp_path: Path) -> None:
    model = TFWav2Vec2Model(Wav2Vec2Config(**SMALL))
    with pytest.raises(
        ConfigError, match=r"head_mask is given, which wav2vec 2\.0 has no use for; leave it out"
    ):
        model(batch(), head_mask=np.ones(2))
    model.config.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        TFWav2Vec2Model.from_pretrained(tmp_path)


def test_torch_files_serve_where_there_is_no_h5(tmp_path: Path) -> None:
    model = make(Wav2Vec2ForCTC, "group")
    model.save_pretrained(tmp_path)
    loaded = TFWav2Vec2ForCTC.from_pretrained(tmp_path)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    write_h5(tmp_path, make(Wav2Vec2ForCTC, "group").requires_grad_(False).apply(_zero))
    assert not TFWav2Vec2ForCTC.from_pretrained(tmp_path).lm_head.weight.any()
    assert TFWav2Vec2ForCTC.from_pretrained(tmp_path, from_pt=True).lm_head.weight.any()
    loaded.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["architectures"] == ["Wav2Vec2ForCTC"]
    assert torch.equal(
        Wav2Vec2ForCTC.from_pretrained(tmp_path / "again").lm_head.weight, model.lm_head.weight
    )


def _zero(module: torch.nn.Module) -> None:
    if isinstance(module, torch.nn.Linear):
        module.weight.zero_()


def edit(folder: Path, change: Any) -> str:
    write_h5(folder, make(Wav2Vec2ForCTC, "group"))
    with h5py.File(folder / "tf_model.h5", "a") as file:
        change(file)
    with pytest.raises(CheckpointError) as caught:
        TFWav2Vec2ForCTC.from_pretrained(folder)
    assert str(caught.value).startswith(f"{folder / 'tf_model.h5'} ")
    return str(caught.value)


KERNEL = "lm_head/tf_model/lm_head/kernel:0"


def test_missing_and_misshapen_weights_are_named(tmp_path: Path) -> None:
    def remove(file: Any) -> None:
        del file[KERNEL]

    def turn(file: Any) -> None:
        values = file[KERNEL][()].T
        del file[KERNEL]
        file.create_dataset(KERNEL, data=values)

    assert edit(tmp_path, remove).startswith(f"{tmp_path / 'tf_model.h5'} lacks lm_head.weight; use")
    assert "(lm_head.weight is (16, 11), the config asks for (11, 16))" in edit(tmp_path, turn)


@pytest.mark.parametrize("kind", ["external", "virtual", "link"])
def test_weights_are_not_read_from_other_files(tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"\1" * 16 * 11 * 4)
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other.create_dataset("weight", data=np.ones((16, 11), dtype="float32"))

    def point_elsewhere(file: Any) -> None:
        del file[KERNEL]
        if kind == "external":
            file.create_dataset(KERNEL, (16, 11), dtype="float32", external=[(str(secret), 0, 16 * 11 * 4)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout((16, 11), dtype="float32")
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "weight", (16, 11))
            file.create_virtual_dataset(KERNEL, layout)
        else:
            file[KERNEL] = h5py.ExternalLink(str(tmp_path / "other.h5"), "weight")

    message = edit(tmp_path, point_elsewhere)
    assert ("lacks lm_head.weight" if kind == "link" else f"({KERNEL} lies in another file)") in message


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path: Path, keep: float) -> None:
    write_h5(tmp_path, make(Wav2Vec2ForCTC, "group"))
    path = tmp_path / "tf_model.h5"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(
        CheckpointError, match=r"tf_model\.h5 cannot be read as weights \(.+\); fetch"
    ) as caught:
        TFWav2Vec2ForCTC.from_pretrained(tmp_path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_file_of_something_else_is_named(tmp_path: Path) -> None:
    make(Wav2Vec2ForCTC, "group").config.save_pretrained(tmp_path)
    path = tmp_path / "tf_model.h5"
    for content in (b"<html>404</html>", b"\x89HDF\r\n\x1a\n" + b"\0" * 600):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"^{path} cannot be read as weights \(.+\); fetch"):
            TFWav2Vec2ForCTC.from_pretrained(tmp_path)


def test_damage_is_never_another_exception(tmp_path: Path) -> None:
    write_h5(tmp_path, make(Wav2Vec2ForCTC, "group"))
    path, rng, messages = tmp_path / "tf_model.h5", random.Random(0), []
    content = path.read_bytes()
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(20):
            damaged[rng.randrange(4096)] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            TFWav2Vec2ForCTC.from_pretrained(tmp_path)
        except CheckpointError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert all(message.startswith(str(path)) for message in messages)
