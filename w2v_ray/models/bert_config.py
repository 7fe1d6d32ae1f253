"""The configuration of a Wav2Vec2-BERT model, in the names of its ``config.json``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from w2v_ray.errors import ConfigError
from w2v_ray.models.config import PretrainedConfig

__all__ = ["Wav2Vec2BertConfig"]


@dataclass(kw_only=True)
class Wav2Vec2BertConfig(PretrainedConfig):
    """What a ``config.json`` of model type ``wav2vec2-bert`` says; the defaults are those of w2v-bert-2.0.

    ``vocab_size`` has no default: a model with a CTC head needs one. ``max_source_positions`` is read and
    written back, and bounds nothing: the relative positions reach as far as the input does.

    Raises:
        ConfigError: An option is of the wrong kind or out of bounds, or two contradict each other; the
            message names them.
    """

    model_type: ClassVar[str] = "wav2vec2-bert"

    vocab_size: int | None = None
    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    feature_projection_input_dim: int = 160
    hidden_act: str = "swish"
    hidden_dropout: float = 0.0
    activation_dropout: float = 0.0
    attention_dropout: float = 0.0
    feat_proj_dropout: float = 0.0
    final_dropout: float = 0.1
    layerdrop: float = 0.1
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    apply_spec_augment: bool = True
    mask_time_prob: float = 0.05
    mask_time_length: int = 10
    mask_time_min_masks: int = 2
    mask_feature_prob: float = 0.0
    mask_feature_length: int = 10
    mask_feature_min_masks: int = 0
    ctc_loss_reduction: str = "sum"
    ctc_zero_infinity: bool = False
    use_weighted_layer_sum: bool = False
    classifier_proj_size: int = 768
    tdnn_dim: tuple[int, ...] = (512, 512, 512, 512, 1500)
    tdnn_kernel: tuple[int, ...] = (5, 3, 3, 1, 1)
    tdnn_dilation: tuple[int, ...] = (1, 2, 3, 1, 1)
    xvector_output_dim: int = 512
    pad_token_id: int = 0
    bos_token_id: int = 1
    eos_token_id: int = 2
    add_adapter: bool = False
    adapter_kernel_size: int = 3
    adapter_stride: int = 2
    num_adapter_layers: int = 1
    adapter_act: str = "relu"
    use_intermediate_ffn_before_adapter: bool = False
    output_hidden_size: int | None = None
    position_embeddings_type: str | None = "relative_key"
    rotary_embedding_base: int = 10000
    max_source_positions: int = 5000
    left_max_position_embeddings: int = 64
    right_max_position_embeddings: int = 8
    conv_depthwise_kernel_size: int = 31
    conformer_conv_dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = [len(self.tdnn_dim), len(self.tdnn_kernel), len(self.tdnn_dilation)]
        if len(set(counts)) > 1 or not counts[0]:
            raise ConfigError(
                f"tdnn_dim, tdnn_kernel and tdnn_dilation have {counts[0]}, {counts[1]} and {counts[2]} "
                "entries, expected equally many, at least one; mend config.json"
            )
        widths = {"hidden_size": self.hidden_size}
        if self.add_adapter and self.output_hidden_size is not None:
            widths["output_hidden_size"] = self.output_hidden_size
        for name, width in widths.items():
            if width % self.num_attention_heads:
                raise ConfigError(
                    f"{name} is {width}, expected a multiple of num_attention_heads "
                    f"({self.num_attention_heads}); mend config.json"
                )
        for name in ("rotary_embedding_base", "max_source_positions"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 1; mend config.json")
        for name in ("left_max_position_embeddings", "right_max_position_embeddings", "num_adapter_layers"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 0; mend config.json")
        if self.conv_depthwise_kernel_size % 2 == 0:
            raise ConfigError(
                f"conv_depthwise_kernel_size is {self.conv_depthwise_kernel_size}, expected an odd number; "
                "mend config.json"
            )
        # Sine and cosine come in pairs: one pair per two elements of a head, or of the whole width.
        paired = {"rotary": self.hidden_size // self.num_attention_heads, "relative": self.hidden_size}
        if paired.get(self.position_embeddings_type or "", 0) % 2:
            raise ConfigError(
                f"position_embeddings_type is {self.position_embeddings_type!r}, expected 'relative_key' or "
                f"None where it has an odd width ({paired[str(self.position_embeddings_type)]}); "
                "mend config.json"
            )
        if self.use_intermediate_ffn_before_adapter and not self.add_adapter:
            raise ConfigError(
                "use_intermediate_ffn_before_adapter is True and add_adapter is False, expected an adapter "
                "behind the feed-forward; mend config.json"
            )
