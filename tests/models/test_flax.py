"""Flax's classes and files: weights laid out by an independent rule, and a file that Flax wrote."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch

from w2v_ray.errors import CheckpointError
from w2v_ray.models.config import Wav2Vec2Config
from w2v_ray.models.flax import FlaxWav2Vec2ForCTC, FlaxWav2Vec2ForPreTraining, FlaxWav2Vec2Model
from w2v_ray.models.heads import Wav2Vec2ForCTC
from w2v_ray.models.pretraining import Wav2Vec2ForPreTraining
from w2v_ray.models.wav2vec2 import Wav2Vec2Model

WRITTEN_BY_FLAX = Path(__file__).parents[1] / "data" / "tf_flax" / "flax_pretraining"

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
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
    "num_codevectors_per_group": 4,
    "codevector_dim": 6,
    "proj_codevector_dim": 10,
}
CLASSES = {
    FlaxWav2Vec2Model: Wav2Vec2Model,
    FlaxWav2Vec2ForCTC: Wav2Vec2ForCTC,
    FlaxWav2Vec2ForPreTraining: Wav2Vec2ForPreTraining,
}
Tree = dict[str, Any]


def as_flax(model: torch.nn.Module) -> Tree:
    """What Flax has for the weights of a torch model: nested names, other last names, other layouts."""
    tree: Tree = {}
    for name, weight in model.state_dict().items():
        values = weight.float().numpy()
        if name.endswith("original0"):
            name = name.replace("parametrizations.weight.original0", "weight_g")
        elif name.endswith("original1"):
            name = name.replace("parametrizations.weight.original1", "weight_v")
        elif re.search(r"layers\.\d+\.conv\.weight$", name):
            name, values = name.removesuffix("weight") + "kernel", np.einsum("oik->kio", values)
        elif re.search(r"layer_norm\.weight$", name):
            name = name.removesuffix("weight") + "scale"
        elif name.endswith(".weight"):
            name, values = name.removesuffix("weight") + "kernel", np.einsum("oi->io", values)
        *above, last = name.split(".")
        here = tree
        for part in above:
            here = here.setdefault(part, {})
        here[last] = np.ascontiguousarray(values)
    return tree


def packed(tree: Any, dtype: str = "float32") -> bytes:
    """As flax.serialization writes: an array is extension 1, holding its shape, dtype and bytes."""

    def pack(array: np.ndarray) -> msgpack.ExtType:
        if dtype == "bfloat16":
            content = (array.view("uint32") >> 16).astype("uint16").tobytes()
        else:
            content = array.astype(dtype).tobytes()
        return msgpack.ExtType(1, msgpack.packb((array.shape, dtype, content), use_bin_type=True))

    return msgpack.packb(tree, default=pack, strict_types=True)


def write_msgpack(folder: Path, model: Any, dtype: str = "float32") -> None:
    model.config.save_pretrained(folder)
    (folder / "flax_model.msgpack").write_bytes(packed(as_flax(model), dtype))


def write_shards(folder: Path, model: Any) -> None:
    model.config.save_pretrained(folder)
    tree, weight_map = as_flax(model), {}
    if "wav2vec2" in tree:  # so that both shards hold a part of the encoder
        parts = [{"wav2vec2": {"encoder": tree["wav2vec2"].pop("encoder")}}, tree]
    else:
        parts = [{"encoder": tree.pop("encoder")}, tree]
    for number, part in enumerate(parts, 1):
        shard = f"flax_model-{number:05}-of-00002.msgpack"
        (folder / shard).write_bytes(packed(part))
        weight_map[f"part/{number}"] = shard
    (folder / "flax_model.msgpack.index.json").write_text(json.dumps({"weight_map": weight_map}))


def write_chunked(folder: Path, model: Any) -> None:
    """As Flax splits arrays above 1 GiB."""

    def split(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {name: split(value) for name, value in tree.items()}
        if tree.size < 100:
            return tree
        flat = tree.ravel()
        return {
            "__msgpack_chunked_array__": True,
            "shape": {str(i): size for i, size in enumerate(tree.shape)},
            "chunks": {str(i): flat[start : start + 50] for i, start in enumerate(range(0, flat.size, 50))},
        }

    model.config.save_pretrained(folder)
    (folder / "flax_model.msgpack").write_bytes(packed(split(as_flax(model))))


def make(torch_class: type[Any], **options: Any) -> Any:
    torch.manual_seed(0)
    model = torch_class(Wav2Vec2Config(**{**SMALL, **options}))
    for parameter in model.parameters():  # off the ones and zeros that many start from
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def batch() -> dict[str, np.ndarray]:
    waves = np.random.default_rng(1).standard_normal((2, 400), dtype="float32")
    mask = np.ones((2, 400), dtype="int32")
    mask[1, 300:] = 0
    return {"input_values": np.where(mask, waves, 0), "attention_mask": mask}


def expect(model: Any, **more: Any) -> Any:
    with torch.no_grad():
        return model(**{name: torch.from_numpy(value) for name, value in batch().items()}, **more)


def assert_equal(ours: Any, theirs: Any) -> None:
    names = ours.keys()
    assert names
    for name in names:
        assert isinstance(ours[name], np.ndarray)
        assert np.array_equal(ours[name], theirs[name].numpy()), name


@pytest.mark.parametrize("write", [write_msgpack, write_shards, write_chunked])
@pytest.mark.parametrize("flax_class", CLASSES)
def test_equal_to_torch(tmp_path: Path, flax_class: type[Any], write: Any) -> None:
    model = make(CLASSES[flax_class])
    write(tmp_path, model)
    loaded = flax_class.from_pretrained(tmp_path)
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    output = loaded(**batch())
    assert type(output) is flax_class.output_class
    assert_equal(output, expect(model))
    as_tuple = loaded(**batch(), return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert np.array_equal(as_tuple[0], output[0])
    from_torch = CLASSES[flax_class].from_pretrained(tmp_path, from_flax=True)
    assert_equal(output, expect(from_torch))


def test_a_file_that_flax_wrote() -> None:
    expected = np.load(WRITTEN_BY_FLAX / "expected.npz")
    output = FlaxWav2Vec2ForPreTraining.from_pretrained(WRITTEN_BY_FLAX)(expected["wave"])
    assert set(output.keys()) == set(expected.files) - {"wave"}
    for name in output:
        np.testing.assert_allclose(output[name], expected[name], atol=1e-5, err_msg=name)
    assert expected["projected_states"].std() > 0.1


def test_adapter_and_bfloat16(tmp_path: Path) -> None:
    model = make(Wav2Vec2Model, add_adapter=True, output_hidden_size=20, num_adapter_layers=2)
    write_msgpack(tmp_path, model, "bfloat16")
    loaded = FlaxWav2Vec2Model.from_pretrained(tmp_path)
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], weight, rtol=2**-7, atol=0, msg=name)
    half = FlaxWav2Vec2Model.from_pretrained(tmp_path, dtype="auto")
    assert half.dtype == torch.bfloat16
    output = half(**batch()).last_hidden_state
    assert output.dtype == np.float32
    assert np.abs(output - expect(model).last_hidden_state.numpy()).max() < 0.2


def test_params_are_those_of_flax() -> None:
    model = make(FlaxWav2Vec2ForPreTraining)

    def compare(ours: Any, theirs: Any) -> None:
        assert isinstance(ours, dict) == isinstance(theirs, dict)
        if isinstance(theirs, dict):
            assert ours.keys() == theirs.keys()
            for name in theirs:
                compare(ours[name], theirs[name])
        else:
            assert np.array_equal(ours, theirs)

    compare(model.params, as_flax(model))


def test_other_params_for_one_call() -> None:
    model, other = make(FlaxWav2Vec2ForCTC), make(Wav2Vec2ForCTC)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    before = model(**batch())
    assert_equal(model(**batch(), params=as_flax(other)), expect(other))
    assert np.array_equal(model(**batch()).logits, before.logits)
    with pytest.raises(CheckpointError, match=r"params lacks lm_head\.bias, lm_head\.weight"):
        model(**batch(), params={"wav2vec2": as_flax(other)["wav2vec2"]})


def test_masked_frames_and_what_else_is_asked_for() -> None:
    model = make(Wav2Vec2Model)
    flax_model = FlaxWav2Vec2Model(model.config, attn_implementation="eager")
    flax_model.load_state_dict(model.state_dict())
    masked = np.random.default_rng(2).random((2, 39)) < 0.4
    asked = {"output_hidden_states": True, "output_attentions": True}
    output = flax_model(**batch(), mask_time_indices=masked, **asked)
    reference = make(lambda config: Wav2Vec2Model(config, attn_implementation="eager"))
    reference.load_state_dict(model.state_dict())
    expected = expect(reference, mask_time_indices=torch.from_numpy(masked), **asked)
    assert len(output.hidden_states) == 3
    assert len(output.attentions) == 2
    for ours, theirs in zip(
        (output.last_hidden_state, *output.hidden_states, *output.attentions),
        (expected.last_hidden_state, *expected.hidden_states, *expected.attentions),
        strict=True,
    ):
        assert np.array_equal(ours, theirs.numpy())
    ctc = make(FlaxWav2Vec2ForCTC)
    assert not np.array_equal(ctc(**batch(), mask_time_indices=masked).logits, ctc(**batch()).logits)


def test_training_draws_from_the_key() -> None:
    model = make(FlaxWav2Vec2ForPreTraining, layerdrop=0.0, apply_spec_augment=False)
    key = np.array([0, 7], dtype="uint32")  # what jax.random.PRNGKey(7) looks like
    first, again = (model(**batch(), train=True, dropout_rng=key) for _ in range(2))
    other = model(**batch(), train=True, dropout_rng=np.array([0, 8], dtype="uint32"))
    assert np.array_equal(first.projected_states, again.projected_states)
    assert not np.array_equal(first.projected_states, other.projected_states)
    assert not model.training
    codes, other_codes = (
        model(**batch(), train=True, gumbel_rng=rng, gumbel_temperature=0.5).projected_quantized_states
        for rng in (3, 4)
    )
    assert not np.array_equal(codes, other_codes)
    assert model.quantizer.temperature == 2  # as before


def error_of(folder: Path, content: bytes) -> str:
    make(Wav2Vec2ForCTC).config.save_pretrained(folder)
    (folder / "flax_model.msgpack").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        FlaxWav2Vec2ForCTC.from_pretrained(folder)
    message = str(caught.value)
    assert str(folder / "flax_model.msgpack") in message
    assert "\n" not in message
    return message


def array(shape: Any, dtype: Any, content: bytes, code: int = 1) -> bytes:
    return msgpack.packb({"lm_head": {"bias": msgpack.ExtType(code, msgpack.packb((shape, dtype, content)))}})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", ""),
        (b"<html>404</html>", ""),
        (msgpack.packb([1, 2]), "(it is not a dictionary)"),
        (msgpack.packb({"a": {"b": 3}}), "(a.b is int, expected an array)"),
        (msgpack.packb({"a": {3: b"x"}}), ""),
        (array((4,), "float32", b"\0" * 12), "(it holds an array of shape (4,) in 12 bytes)"),
        (array((-1, -3), "float32", b"\0" * 12), "(it holds an array of shape (-1, -3) in 12 bytes)"),
        (array((3,), "load", b"\0" * 12), "(it holds an array of load)"),
        (array((3,), "complex256", b"\0" * 12), "(it holds an array of complex256)"),
        (array((3,), "float32", b"\0" * 12, code=9), "(it holds msgpack's extension type 9)"),
        (msgpack.packb({"a": {"__msgpack_chunked_array__": True, "shape": {"1": 3}, "chunks": {}}}), ""),
        (b"\x81\xa1a" * 2000 + b"\xc0", ""),
        (packed({"lm_head": {"bias": np.zeros(7, "float32")}}), "has lm_head.bias of another shape"),
    ],
)
def test_a_malformed_file_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    message = error_of(tmp_path, content)
    assert (reason or " cannot be read as weights (") in message
    assert "()" not in message


@pytest.mark.parametrize("keep", [0.01, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path: Path, keep: float) -> None:
    content = packed(as_flax(make(Wav2Vec2ForCTC)))
    assert " cannot be read as weights (" in error_of(tmp_path, content[: int(keep * len(content))])


def test_damage_is_never_another_exception(tmp_path: Path) -> None:
    model, rng, messages = make(Wav2Vec2ForCTC), random.Random(0), []
    write_msgpack(tmp_path, model)
    path = tmp_path / "flax_model.msgpack"
    content = path.read_bytes()
    for _ in range(200):
        damaged = bytearray(content)
        for _ in range(3):
            damaged[rng.randrange(400)] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            FlaxWav2Vec2ForCTC.from_pretrained(tmp_path)
        except CheckpointError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert all(message.startswith(str(path)) for message in messages)
