"""How much arithmetic a model needs for one input, counted from its config; no torch is loaded.

A multiplication and the addition after it count as two, as is usual. Only matrix products and convolutions
count: norms, activations and the softmax are a hundredth of them.

Letters: L frames, E hidden width, W width behind an adapter.
"""

from __future__ import annotations

from collections import Counter

from w2v_ray.models.bert_config import Wav2Vec2BertConfig
from w2v_ray.models.config import Wav2Vec2Config

__all__ = ["count_flops"]

_ADAPTER_PADDING = 1  # of wav2vec 2.0, whatever the kernel


def count_flops(
    config: Wav2Vec2Config | Wav2Vec2BertConfig, length: int, *, head: str | None = None
) -> dict[str, int]:
    """The floating-point operations of one input that is alone in its batch.

    Args:
        config: Of the model.
        length: Of the input: samples for wav2vec 2.0, steps of features for Wav2Vec2-BERT.
        head: ``transcribe``, ``classify``, ``frames`` or ``xvector``; None: the encoder alone.

    Returns:
        The operations of each part: convolutions, projection, positions, attention (with its scores),
        feed_forward, adapter, head.
    """
    if isinstance(config, Wav2Vec2Config):
        flops, frames = _wav2vec2(config, length)
    else:
        flops, frames = _conformer(config, length)
    inside = frames
    if config.add_adapter:
        frames = _adapter(config, frames, flops)
    if head is not None:
        is_of_layers = head != "transcribe" and config.use_weighted_layer_sum
        flops["head"] = _head(config, inside if is_of_layers else frames, head)
    return dict(flops)


def _wav2vec2(config: Wav2Vec2Config, samples: int) -> tuple[Counter[str], int]:
    flops: Counter[str] = Counter()
    frames, channels, width = samples, 1, config.hidden_size
    for size, kernel, stride in zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True):
        frames = max(0, (frames - kernel) // stride + 1)
        flops["convolutions"] += 2 * frames * size * channels * kernel
        channels = size
    flops["projection"] = 2 * frames * channels * width
    kernel = config.num_conv_pos_embeddings
    # An even kernel gives a frame too many, which is cut off.
    positions = frames + 2 * (kernel // 2) - kernel + 1
    flops["positions"] = 2 * positions * width * (width // config.num_conv_pos_embedding_groups) * kernel
    layers = config.num_hidden_layers
    flops["attention"] = layers * _attention(frames, width)
    flops["feed_forward"] = layers * _feed_forward(frames, width, config.intermediate_size)
    if config.do_stable_layer_norm and config.adapter_attn_dim is not None:
        flops["adapter"] = layers * _feed_forward(frames, width, config.adapter_attn_dim)
    return flops, frames


def _conformer(config: Wav2Vec2BertConfig, frames: int) -> tuple[Counter[str], int]:
    width, layers = config.hidden_size, config.num_hidden_layers
    pointwise = 2 * frames * width * 2 * width + 2 * frames * width * width
    depthwise = 2 * frames * width * config.conv_depthwise_kernel_size
    flops = Counter(
        {
            "projection": 2 * frames * config.feature_projection_input_dim * width,
            "attention": layers * _attention(frames, width),
            "convolutions": layers * (pointwise + depthwise),
            "feed_forward": layers * 2 * _feed_forward(frames, width, config.intermediate_size),
        }
    )
    if config.position_embeddings_type == "relative_key":
        distances = config.left_max_position_embeddings + config.right_max_position_embeddings + 1
        flops["positions"] = layers * 2 * frames * width * distances
    elif config.position_embeddings_type == "relative":
        distances = max(0, 2 * frames - 1)
        flops["positions"] = layers * 2 * width * distances * (width + frames)
    if config.use_intermediate_ffn_before_adapter:
        flops["adapter"] = _feed_forward(frames, width, config.intermediate_size)
    return flops, frames


def _adapter(config: Wav2Vec2Config | Wav2Vec2BertConfig, frames: int, flops: Counter[str]) -> int:
    """Counts the layers that shorten the encoder's output; the frames that they leave."""
    width = config.output_hidden_size or config.hidden_size
    is_conformer = isinstance(config, Wav2Vec2BertConfig)
    if width != config.hidden_size:
        flops["adapter"] += 2 * frames * config.hidden_size * width
    padding = config.adapter_stride // 2 if is_conformer else _ADAPTER_PADDING
    for _ in range(config.num_adapter_layers):
        frames = max(0, (frames + 2 * padding - config.adapter_kernel_size) // config.adapter_stride + 1)
        convolution = 2 * frames * 2 * width * width * config.adapter_kernel_size
        if is_conformer:
            flops["adapter"] += 2 * convolution + _attention(frames, width)
            flops["adapter"] += _feed_forward(frames, width, config.intermediate_size)
        else:
            flops["adapter"] += convolution
    return frames


def _head(config: Wav2Vec2Config | Wav2Vec2BertConfig, frames: int, head: str) -> int:
    width, classes = config.hidden_size, config.num_labels
    if head == "transcribe":
        if config.add_adapter:
            width = config.output_hidden_size or width
        return 2 * frames * width * (config.vocab_size or 0)
    if head == "frames":
        return 2 * frames * width * classes
    if head == "classify":
        return 2 * config.classifier_proj_size * (frames * width + classes)
    assert head == "xvector", head
    size = config.tdnn_dim[0]
    flops = 2 * frames * width * size
    reach = sum((k - 1) * d for k, d in zip(config.tdnn_kernel, config.tdnn_dilation, strict=True))
    frames = max(frames, reach + 1)  # as they are padded
    for out, kernel, dilation in zip(config.tdnn_dim, config.tdnn_kernel, config.tdnn_dilation, strict=True):
        frames -= (kernel - 1) * dilation
        flops += 2 * frames * size * kernel * out
        size = out
    return flops + 2 * config.xvector_output_dim * (2 * size + config.xvector_output_dim)


def _attention(frames: int, width: int) -> int:
    """Four projections, and the scores and the sums of all heads."""
    return 8 * frames * width * width + 4 * frames * frames * width


def _feed_forward(frames: int, width: int, inner: int) -> int:
    return 4 * frames * width * inner
