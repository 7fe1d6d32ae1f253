"""The configuration of a model, in the names of its ``config.json``."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from w2v_ray.errors import CheckpointError, ConfigError, W2vRayError
from w2v_ray.hub import checkpoint_file, read_json_file

__all__ = ["PretrainedConfig", "Wav2Vec2Config"]

_KINDS: dict[str, Any] = {
    "int": int,
    "float": float | int,
    "bool": bool,
    "str": str,
    "int | None": int | None,
    "str | None": str | None,
}
_COUNTS = {
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "feature_projection_input_dim",
    "num_conv_pos_embeddings",
    "num_conv_pos_embedding_groups",
    "conv_depthwise_kernel_size",
    "mask_time_length",
    "mask_feature_length",
    "adapter_kernel_size",
    "adapter_stride",
    "adapter_attn_dim",
    "output_hidden_size",
    "classifier_proj_size",
    "xvector_output_dim",
    "num_codevectors_per_group",
    "num_codevector_groups",
    "codevector_dim",
    "proj_codevector_dim",
}
_SHARES = {
    "hidden_dropout",
    "activation_dropout",
    "attention_dropout",
    "feat_proj_dropout",
    "feat_quantizer_dropout",
    "final_dropout",
    "conformer_conv_dropout",
    "layerdrop",
    "mask_time_prob",
    "mask_feature_prob",
}
_CHOICES: dict[str, tuple[str | None, ...]] = {
    "feat_extract_norm": ("group", "layer"),
    "ctc_loss_reduction": ("sum", "mean"),
    "position_embeddings_type": (None, "relative", "relative_key", "rotary"),
    "problem_type": (None, "regression", "single_label_classification", "multi_label_classification"),
}
_LABELS = ("id2label", "label2id", "num_labels")


@dataclass(kw_only=True)
class PretrainedConfig:
    """What the configs of all model families share: labels, checks, reading and writing.

    Attributes:
        id2label: The name of each class; LABEL_0, LABEL_1 and so on unless given.
        label2id: The other way round; made from ``id2label`` unless given.
        num_labels: How many classes there are. May be given instead of ``id2label``.
        problem_type: "regression", "single_label_classification", "multi_label_classification", or
            None for what the number and the dtype of the labels tell.
        output_attentions: Whether models return attention probabilities unless told otherwise.
        output_hidden_states: Whether they return every layer's output unless told otherwise.
        return_dict: Whether they return named fields unless told otherwise; if not, a tuple.
        extra: What ``config.json`` says beyond the options of the class; written back when saved.
    """

    model_type: ClassVar[str]

    id2label: dict[int, str] = field(default_factory=dict)
    label2id: dict[str, int] = field(default_factory=dict)
    num_labels: int = 0  # a property, see below: it can never say other than id2label
    problem_type: str | None = None
    output_attentions: bool = False
    output_hidden_states: bool = False
    return_dict: bool = True
    extra: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            self._check(option.name, str(option.type))
        if not self.id2label:
            self.num_labels = 2
        try:
            self.id2label = {int(index): str(label) for index, label in self.id2label.items()}
            self.label2id = {str(label): int(index) for label, index in self.label2id.items()}
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"id2label or label2id has an index that is not a number ({error}); mend config.json"
            ) from error
        self.label2id = self.label2id or {label: index for index, label in self.id2label.items()}
        if self.problem_type == "single_label_classification" and self.num_labels == 1:
            raise ConfigError(
                "problem_type is 'single_label_classification' with one class, expected two at least, as the "
                "loss is 0 whatever the labels; use 'regression', or name both classes in id2label"
            )

    def _check(self, name: str, kind: str) -> None:
        value: Any = getattr(self, name)
        if kind == "tuple[int, ...]":
            if not isinstance(value, list | tuple) or not all(type(v) is int and v > 0 for v in value):
                raise ConfigError(
                    f"{name} is {value!r}, expected a list of whole numbers above 0; mend config.json"
                )
            setattr(self, name, tuple(value))
        elif kind.startswith("dict"):
            if not isinstance(value, dict):
                raise ConfigError(f"{name} is {value!r}, expected an object; mend config.json")
        elif not isinstance(value, _KINDS[kind]) or (isinstance(value, bool) and kind != "bool"):
            raise ConfigError(f"{name} is {value!r}, expected {kind}; mend config.json")
        elif name in _COUNTS and value is not None and value < 1:
            raise ConfigError(f"{name} is {value!r}, expected at least 1; mend config.json")
        elif name in _SHARES and not 0 <= value <= 1:
            raise ConfigError(f"{name} is {value!r}, expected from 0 to 1; mend config.json")
        elif name in _CHOICES and value not in _CHOICES[name]:
            raise ConfigError(
                f"{name} is {value!r}, expected {' or '.join(map(repr, _CHOICES[name]))}; mend config.json"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any], **changes: Any) -> Self:
        """Builds a config from the object of a ``config.json``.

        Args:
            values: The object.
            **changes: Options to set otherwise. The names of the classes stay where ``num_labels`` is
                what it was, and go with another number.

        Raises:
            CheckpointError: ``model_type`` is another one.
            ConfigError: As of the constructor.
        """
        if "num_labels" in changes and changes["num_labels"] == cls.from_dict(values).num_labels:
            del changes["num_labels"]
        if changes.keys() & {"id2label", "num_labels"}:
            values = {k: v for k, v in values.items() if k not in _LABELS}
        values = values | changes
        found = values.get("model_type", cls.model_type)
        if found != cls.model_type:
            raise CheckpointError(
                f"model_type is {found!r}, expected {cls.model_type!r}; name a checkpoint of that family"
            )
        kinds = {f.name: str(f.type) for f in dataclasses.fields(cls) if f.name != "extra"}
        # None stands for "the default" in files that older versions wrote, except where None is a value.
        taken = {
            k: v for k, v in values.items() if k in kinds and (v is not None or kinds[k].endswith("None"))
        }
        extra = {k: v for k, v in values.items() if k not in kinds and k != "model_type"}
        return cls(**taken, extra=extra)

    @classmethod
    def from_pretrained(cls, model: str | Path, *, revision: str | None = None, **changes: Any) -> Self:
        """Reads ``config.json`` of a folder or hub id.

        Args:
            model: A folder or hub id.
            revision: Branch, tag or commit of a hub id.
            **changes: Options to set otherwise than the file does, such as ``num_labels=5``.

        Raises:
            CheckpointError: The file is missing, malformed, contradicts itself or is of another model type.
            ConfigError: There is no option of that name.
        """
        path = checkpoint_file(model, "config.json", revision=revision)
        assert path is not None
        values = read_json_file(path)
        known = {f.name for f in dataclasses.fields(cls)} - {"extra"}
        if unknown := sorted(changes.keys() - known):
            raise ConfigError(f"{unknown[0]} is no option of {cls.__name__}; use one that it documents")
        try:
            return cls.from_dict(values, **changes)
        except W2vRayError as error:
            raise CheckpointError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The object that ``config.json`` holds."""
        skipped = {"extra", "num_labels"}
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in skipped}
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
        return {**self.extra, **values, "model_type": self.model_type}

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes ``config.json`` into ``folder``, which is created if need be."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"
        (Path(folder) / "config.json").write_text(text, encoding="utf-8")


def _generic_labels(count: int) -> dict[int, str]:
    return {index: f"LABEL_{index}" for index in range(count)}


def _num_labels(config: PretrainedConfig) -> int:
    return len(config.id2label)


def _set_num_labels(config: PretrainedConfig, count: int) -> None:
    if type(count) is not int or count < 0:
        raise ConfigError(f"num_labels is {count!r}, expected a whole number; mend config.json")
    if not isinstance(config.id2label, dict):
        return  # which the checks that follow refuse
    if count in (0, len(config.id2label)):
        return
    if list(config.id2label.values()) not in ([], list(_generic_labels(len(config.id2label)).values())):
        raise ConfigError(
            f"num_labels is {count}, but id2label names {len(config.id2label)} classes; set id2label instead"
        )
    config.id2label = _generic_labels(count)
    config.label2id = {label: index for index, label in config.id2label.items()}


# Set here and not in the class body, where dataclass would take the property for the default value.
setattr(PretrainedConfig, "num_labels", property(_num_labels, _set_num_labels))  # noqa: B010


@dataclass(kw_only=True)
class Wav2Vec2Config(PretrainedConfig):
    """What a ``config.json`` of model type ``wav2vec2`` says; the defaults are those of the base model.

    Keys that the models do not use (``transformers_version`` and so on) are kept in ``extra`` and
    written back by ``save_pretrained``.

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

    def __post_init__(self) -> None:
        super().__post_init__()
        for names in (
            ("conv_dim", "conv_stride", "conv_kernel"),
            ("tdnn_dim", "tdnn_kernel", "tdnn_dilation"),
        ):
            counts = [len(getattr(self, name)) for name in names]
            if len(set(counts)) > 1 or not counts[0]:
                raise ConfigError(
                    f"{names[0]}, {names[1]} and {names[2]} have {counts[0]}, {counts[1]} and {counts[2]} "
                    "entries, expected equally many, at least one; mend config.json"
                )
        for name in ("num_attention_heads", "num_conv_pos_embedding_groups"):
            if self.hidden_size % getattr(self, name):
                raise ConfigError(
                    f"hidden_size is {self.hidden_size}, expected a multiple of {name} "
                    f"({getattr(self, name)}); mend config.json"
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
