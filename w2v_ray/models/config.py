"""The configuration of a wav2vec 2.0 model, in the names of its ``config.json``."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from w2v_ray.errors import CheckpointError, ConfigError, W2vRayError
from w2v_ray.hub import checkpoint_file, read_json_file

__all__ = ["Wav2Vec2Config"]

_KINDS = {
    "int": int,
    "float": float | int,
    "bool": bool,
    "str": str,
    "int | None": int | None,
}
_COUNTS = {
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "num_conv_pos_embeddings",
    "num_conv_pos_embedding_groups",
    "mask_time_length",
    "mask_feature_length",
}
_SHARES = {
    "hidden_dropout",
    "activation_dropout",
    "attention_dropout",
    "feat_proj_dropout",
    "final_dropout",
    "layerdrop",
    "mask_time_prob",
    "mask_feature_prob",
}


@dataclass(kw_only=True)
class Wav2Vec2Config:
    """What a ``config.json`` of model type ``wav2vec2`` says; the defaults are those of the base model.

    Keys that the models do not use (``id2label``, ``transformers_version`` and so on) are kept in
    ``extra`` and written back by ``save_pretrained``.

    Raises:
        ConfigError: An option is of the wrong kind or out of bounds, or two contradict each other; the
            message names them.
    """

    model_type = "wav2vec2"

    vocab_size: int = 32
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout: float = 0.1
    activation_dropout: float = 0.1
    attention_dropout: float = 0.1
    feat_proj_dropout: float = 0.0
    feat_quantizer_dropout: float = 0.0
    final_dropout: float = 0.1
    layerdrop: float = 0.1
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    feat_extract_norm: str = "group"
    feat_extract_activation: str = "gelu"
    conv_dim: tuple[int, ...] = (512, 512, 512, 512, 512, 512, 512)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_bias: bool = False
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    do_stable_layer_norm: bool = False
    apply_spec_augment: bool = True
    mask_time_prob: float = 0.05
    mask_time_length: int = 10
    mask_time_min_masks: int = 2
    mask_feature_prob: float = 0.0
    mask_feature_length: int = 10
    mask_feature_min_masks: int = 0
    num_codevectors_per_group: int = 320
    num_codevector_groups: int = 2
    contrastive_logits_temperature: float = 0.1
    num_negatives: int = 100
    codevector_dim: int = 256
    proj_codevector_dim: int = 256
    diversity_loss_weight: float = 0.1
    ctc_loss_reduction: str = "sum"
    ctc_zero_infinity: bool = False
    use_weighted_layer_sum: bool = False
    classifier_proj_size: int = 256
    tdnn_dim: tuple[int, ...] = (512, 512, 512, 512, 1500)
    tdnn_kernel: tuple[int, ...] = (5, 3, 3, 1, 1)
    tdnn_dilation: tuple[int, ...] = (1, 2, 3, 1, 1)
    xvector_output_dim: int = 512
    add_adapter: bool = False
    adapter_kernel_size: int = 3
    adapter_stride: int = 2
    num_adapter_layers: int = 3
    adapter_attn_dim: int | None = None
    output_hidden_size: int | None = None
    pad_token_id: int = 0
    bos_token_id: int = 1
    eos_token_id: int = 2
    extra: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            name, value = option.name, getattr(self, option.name)
            if option.type == "tuple[int, ...]":
                if not isinstance(value, list | tuple) or not all(
                    isinstance(v, int) and v > 0 for v in value
                ):
                    raise ConfigError(
                        f"{name} is {value!r}, expected a list of whole numbers above 0; mend config.json"
                    )
                setattr(self, name, tuple(value))
            elif name != "extra" and not isinstance(value, _KINDS[str(option.type)]):
                raise ConfigError(f"{name} is {value!r}, expected {option.type}; mend config.json")
            elif name in _COUNTS and value < 1:
                raise ConfigError(f"{name} is {value!r}, expected at least 1; mend config.json")
            elif name in _SHARES and not 0 <= value <= 1:
                raise ConfigError(f"{name} is {value!r}, expected from 0 to 1; mend config.json")
        if not len(self.conv_dim) == len(self.conv_stride) == len(self.conv_kernel) > 0:
            raise ConfigError(
                f"conv_dim, conv_stride and conv_kernel have {len(self.conv_dim)}, {len(self.conv_stride)} "
                f"and {len(self.conv_kernel)} entries, expected equally many, at least one; mend config.json"
            )
        for name in ("num_attention_heads", "num_conv_pos_embedding_groups"):
            if self.hidden_size % getattr(self, name):
                raise ConfigError(
                    f"hidden_size is {self.hidden_size}, expected a multiple of {name} "
                    f"({getattr(self, name)}); mend config.json"
                )
        for name, choices in (
            ("feat_extract_norm", ("group", "layer")),
            ("ctc_loss_reduction", ("sum", "mean")),
        ):
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}, expected {' or '.join(map(repr, choices))}; "
                    "mend config.json"
                )

    @property
    def hop_samples(self) -> int:
        """Samples from one frame to the next: the product of the convolutions' strides."""
        hop = 1
        for stride in self.conv_stride:
            hop *= stride
        return hop

    @property
    def receptive_samples(self) -> int:
        """Samples that one frame sees, which is also the shortest input that gives a frame."""
        samples = 1
        for kernel, stride in zip(reversed(self.conv_kernel), reversed(self.conv_stride), strict=True):
            samples = (samples - 1) * stride + kernel
        return samples

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Builds a config from the object of a ``config.json``.

        Raises:
            CheckpointError: ``model_type`` is another one.
            ConfigError: As of the constructor.
        """
        found = values.get("model_type", cls.model_type)
        if found != cls.model_type:
            raise CheckpointError(
                f"model_type is {found!r}, expected {cls.model_type!r}; name a checkpoint of that family"
            )
        known = {f.name for f in dataclasses.fields(cls)} - {"extra"}
        # None stands for "the default" in files that older versions wrote, except where None is a value.
        nullable = {"adapter_attn_dim", "output_hidden_size"}
        taken = {k: v for k, v in values.items() if k in known and (v is not None or k in nullable)}
        extra = {k: v for k, v in values.items() if k not in known and k != "model_type"}
        return cls(**taken, extra=extra)

    @classmethod
    def from_pretrained(cls, model: str | Path, *, revision: str | None = None) -> Self:
        """Reads ``config.json`` of a folder or hub id.

        Raises:
            CheckpointError: The file is missing, malformed, contradicts itself or is of another model type.
        """
        path = checkpoint_file(model, "config.json", revision=revision)
        assert path is not None
        values = read_json_file(path)
        try:
            return cls.from_dict(values)
        except W2vRayError as error:
            raise CheckpointError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The object that ``config.json`` holds."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "extra"}
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
        return {**self.extra, **values, "model_type": self.model_type}

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes ``config.json`` into ``folder``, which is created if need be."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"
        (Path(folder) / "config.json").write_text(text, encoding="utf-8")
