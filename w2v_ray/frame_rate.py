"""What a checkpoint's small files say of its encoder, and how far apart its frames are, without torch."""

from __future__ import annotations

from w2v_ray.audio.seamless import SeamlessM4TFeatureExtractor
from w2v_ray.errors import CheckpointError
from w2v_ray.hub import checkpoint_file, read_json_file
from w2v_ray.models.bert_config import Wav2Vec2BertConfig
from w2v_ray.models.config import Wav2Vec2Config
from w2v_ray.processors import AutoFeatureExtractor
from w2v_ray.schema import SAMPLE_RATE_HZ

__all__ = ["model_config", "seconds_per_frame"]

_HOP_OF_MEL_FRAMES = 160  # samples, at any rate
_CONFIGS: dict[str, type[Wav2Vec2Config] | type[Wav2Vec2BertConfig]] = {
    "wav2vec2": Wav2Vec2Config,
    "wav2vec2-bert": Wav2Vec2BertConfig,
}


def model_config(model: str, *, revision: str | None = None) -> Wav2Vec2Config | Wav2Vec2BertConfig:
    """The options of a checkpoint of either family.

    Raises:
        CheckpointError: ``config.json`` is missing or malformed, or the model is of another kind.
    """
    path = checkpoint_file(model, "config.json", revision=revision)
    assert path is not None  # it is required
    model_type = read_json_file(path).get("model_type")
    if model_type not in _CONFIGS:
        raise CheckpointError(
            f"{path} says model_type {model_type!r}, expected {' or '.join(map(repr, _CONFIGS))}; "
            "name a checkpoint of those"
        )
    return _CONFIGS[model_type].from_pretrained(model, revision=revision)


def seconds_per_frame(model: str, *, revision: str | None = None) -> float:
    """The seconds from one output frame of a model to the next.

    Raises:
        CheckpointError: A file is missing or malformed, or the model is of another kind or rate.
    """
    config = model_config(model, revision=revision)
    extractor = AutoFeatureExtractor.from_pretrained(model, revision=revision)
    if extractor.sampling_rate != SAMPLE_RATE_HZ:
        raise CheckpointError(
            f"model {model!r} takes audio at {extractor.sampling_rate} Hz, expected {SAMPLE_RATE_HZ}; "
            "use another"
        )
    if isinstance(config, Wav2Vec2Config):
        hop = config.hop_samples
    else:
        stacked = extractor.stride if isinstance(extractor, SeamlessM4TFeatureExtractor) else 1
        hop = _HOP_OF_MEL_FRAMES * stacked
    if config.add_adapter:
        hop *= config.adapter_stride**config.num_adapter_layers
    return hop / SAMPLE_RATE_HZ
