"""Writes the checkpoints beside it; see README.md for what it needs."""

from pathlib import Path

import jax
import numpy as np
from transformers import FlaxWav2Vec2ForPreTraining, TFWav2Vec2ForCTC, Wav2Vec2Config

FOLDER = Path(__file__).parent
SMALL = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "conv_dim": [6, 6],
    "conv_kernel": [10, 3],
    "conv_stride": [5, 2],
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 9,
    "num_codevectors_per_group": 4,
    "codevector_dim": 6,
    "proj_codevector_dim": 10,
}

generator = np.random.default_rng(0)
wave = generator.standard_normal((2, 400)).astype("float32")


def shake(weight: np.ndarray) -> np.ndarray:
    """Off the values that weights start from, so that no two of them can be mistaken for each other."""
    return np.asarray(weight) + 0.1 * generator.standard_normal(weight.shape).astype("float32")


def save(model: TFWav2Vec2ForCTC | FlaxWav2Vec2ForPreTraining, name: str) -> None:
    model.save_pretrained(FOLDER / name)
    outputs = {key: np.asarray(value) for key, value in model(wave).items()}
    np.savez(FOLDER / name / "expected.npz", wave=wave, **outputs)


tf_model = TFWav2Vec2ForCTC(Wav2Vec2Config(**SMALL))
tf_model(wave)  # a TensorFlow model has no weights before it is called
tf_model.set_weights([shake(weight) for weight in tf_model.get_weights()])
save(tf_model, "tf_ctc")

options = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
flax_model = FlaxWav2Vec2ForPreTraining(Wav2Vec2Config(**SMALL, **options), input_shape=(1, 400))
flax_model.params = jax.tree_util.tree_map(shake, flax_model.params)
save(flax_model, "flax_pretraining")
