"""The heads that one pass of an encoder serves, told from the small files of checkpoints, without torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from w2v_ray.errors import CheckpointError, ConfigError
from w2v_ray.frame_rate import model_config, seconds_per_frame
from w2v_ray.head_config import HeadConfig, read_also
from w2v_ray.hub import absolute_model
from w2v_ray.models.bert_config import Wav2Vec2BertConfig
from w2v_ray.models.config import Wav2Vec2Config
from w2v_ray.processors import AutoFeatureExtractor

__all__ = ["Head", "find_heads"]

# What decides what the encoder computes: options that heads or training alone look at are not among these.
_ENCODER_OPTIONS = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "feature_projection_input_dim",
    "hidden_act",
    "layer_norm_eps",
    "feat_extract_norm",
    "feat_extract_activation",
    "conv_dim",
    "conv_stride",
    "conv_kernel",
    "conv_bias",
    "num_conv_pos_embeddings",
    "num_conv_pos_embedding_groups",
    "do_stable_layer_norm",
    "add_adapter",
    "adapter_attn_dim",
    "position_embeddings_type",
    "rotary_embedding_base",
    "left_max_position_embeddings",
    "right_max_position_embeddings",
    "conv_depthwise_kernel_size",
    "use_intermediate_ffn_before_adapter",
)
_ARCHITECTURES = {"transcribe": "ForCTC", "classify": "ForSequenceClassification"}
_ARCHITECTURES |= {"frames": "ForAudioFrameClassification", "xvector": "ForXVector"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """What one head computes of the encoder's output, and whose weights it has."""

    task: str
    """``transcribe``, ``embed``, ``classify`` or ``frames``."""
    model: str
    """The folder or hub id with the head."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    pooling: str = ""
    """Of ``embed``: ``xvector``, ``mean`` or ``mean+std``."""
    layer: int | None = None
    """Of ``embed``: the layer that is pooled; None: the last."""
    size: int = 0
    """Of ``embed``: how many numbers an embedding has."""
    dtype: str = "float32"
    """Of ``embed``: the type of these numbers."""
    classes: tuple[str, ...] = ()
    """Of ``classify`` and ``frames``: the names of the classes, in the order of the model's outputs."""
    activation: str = ""
    """Of ``classify`` and ``frames``: ``softmax`` or ``sigmoid``."""
    seconds_per_frame: float = 0.0
    """Of ``frames``: from one frame to the next."""


def find_heads(config: HeadConfig, model: str, *, revision: str | None = None) -> tuple[Head, ...]:
    """The heads that settings ask for: that of the task first, then those of ``also``.

    Args:
        config: The settings.
        model: The checkpoint of the task: folder or hub id.
        revision: Branch, tag or commit of a hub id.

    Raises:
        CheckpointError: A checkpoint cannot be found or read, or has not the head or the encoder that is
            needed.
        ConfigError: A setting does not fit its checkpoint.
    """
    task = "transcribe" if config.task == "align" else config.task
    heads = [_head(config, task, model, revision)]
    for text in config.also:
        task, other = read_also(text)
        heads.append(_head(config, task, other or model, None if other else revision))
        if other:
            _check_encoder(other, model, revision)
    return tuple(heads)


def _head(settings: HeadConfig, task: str, model: str, revision: str | None) -> Head:
    config = model_config(model, revision=revision)
    head = Head(task=task, model=absolute_model(model), revision=revision)
    if task == "embed":
        pooling = settings.pooling
        if pooling == "auto":
            pooling = "xvector" if _has_head(config, "xvector") and settings.layer is None else "mean"
        if pooling == "xvector":
            _check_head(config, "xvector", model)
        return dataclasses.replace(
            head,
            pooling=pooling,
            layer=_checked_layer(settings.layer, config, model),
            size=_size(config, pooling, settings.layer),
            dtype=settings.embedding_dtype,
        )
    _check_head(config, task, model)
    if task == "transcribe":
        return head
    classes = tuple(config.id2label[index] for index in range(len(config.id2label)))
    if task == "classify":
        several = settings.threshold is not None or config.problem_type == "multi_label_classification"
        return dataclasses.replace(head, classes=classes, activation="sigmoid" if several else "softmax")
    activation = settings.activation
    if activation == "auto":
        activation = "softmax" if config.problem_type == "single_label_classification" else "sigmoid"
    frame_s = seconds_per_frame(model, revision=revision)
    return dataclasses.replace(head, classes=classes, activation=activation, seconds_per_frame=frame_s)


def _checked_layer(layer: int | None, config: Wav2Vec2Config | Wav2Vec2BertConfig, model: str) -> int | None:
    if layer is not None and layer > config.num_hidden_layers:
        raise ConfigError(
            f"layer is {layer}, and model {model!r} has {config.num_hidden_layers}; choose 0 to that"
        )
    return layer


def _size(config: Wav2Vec2Config | Wav2Vec2BertConfig, pooling: str, layer: int | None) -> int:
    if pooling == "xvector":
        return config.xvector_output_dim
    width = config.hidden_size
    if layer is None and config.add_adapter:
        width = config.output_hidden_size or width
    return width * (2 if pooling == "mean+std" else 1)


def _has_head(config: Any, kind: str) -> bool:
    return any(str(name).endswith(_ARCHITECTURES[kind]) for name in config.extra.get("architectures") or ())


def _check_head(config: Any, kind: str, model: str) -> None:
    """Refuses a checkpoint that says that it has another head; one that says nothing is seen when loaded."""
    architectures = config.extra.get("architectures") or ()
    if architectures and not _has_head(config, kind):
        raise CheckpointError(
            f"model {model!r} is a {', '.join(map(str, architectures))}, and "
            f"{'an embedding of pooling xvector' if kind == 'xvector' else kind} needs one whose name ends "
            f"in {_ARCHITECTURES[kind]}; name another checkpoint"
        )


def _check_encoder(other: str, model: str, revision: str | None) -> None:
    """Refuses a checkpoint whose encoder is another; the weights are compared when they are loaded."""
    ours, theirs = model_config(model, revision=revision), model_config(other)
    for name in _ENCODER_OPTIONS:
        values = getattr(ours, name, None), getattr(theirs, name, None)
        if values[0] != values[1]:
            raise CheckpointError(
                f"model {other!r} has another encoder than {model!r} ({name} is {values[1]!r}, "
                f"not {values[0]!r}); run it as a job of its own"
            )
    extractors = [
        AutoFeatureExtractor.from_pretrained(name, revision=rev)
        for name, rev in ((model, revision), (other, None))
    ]
    scaled = [getattr(extractor, "do_normalize", None) for extractor in extractors]
    if scaled[0] != scaled[1]:
        raise CheckpointError(
            f"model {other!r} takes other input than {model!r} (do_normalize {scaled[1]}, not {scaled[0]}); "
            "run it as a job of its own"
        )
