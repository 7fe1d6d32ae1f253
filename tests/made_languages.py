"""A tiny checkpoint of three languages in the layout of MMS, with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from w2v_ray.models.config import Wav2Vec2Config
from w2v_ray.models.heads import Wav2Vec2ForCTC

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "|"]
# Of two of them the sizes are equal, so that a language that is taken for another does not show in a shape.
LETTERS = {"eng": "etaoinshr", "fra": "esaitnrulo\u00e9", "deu": "ensirt\u00e4\u00f6\u00fc\u00df"}
LETTERS["nld"] = LETTERS["deu"].translate(str.maketrans("\u00e4\u00f6\u00fc\u00df", "aojg"))


def make_checkpoint(folder: Path, *, pickled: tuple[str, ...] = ()) -> Path:
    """English in the weights and, like the others, in a file; the languages in ``pickled`` as ``.bin``."""
    config = Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        conv_dim=(16,) * 7,
        conv_bias=True,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        adapter_attn_dim=8,
        mask_time_prob=0.0,
        vocab_size=len(SPECIAL) + len(LETTERS["eng"]),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = Wav2Vec2ForCTC(config)
        model.save_pretrained(folder)
        for language, letters in LETTERS.items():
            size = len(SPECIAL) + len(letters)
            weights = {
                name: 0.3 * torch.randn(weight.shape)
                for name, weight in model.adapter_weights().items()
                if not name.startswith("lm_head")
            }
            # So that frames differ in what they spell, with pauses and spaces often enough to make words.
            weights["lm_head.weight"] = 0.5 * torch.randn(size, config.hidden_size)
            weights["lm_head.bias"] = torch.zeros(size)
            weights["lm_head.bias"][[0, 4]] = torch.tensor([4.0, 3.0])
            weights["lm_head.bias"][1:4] = -20.0
            if language in pickled:
                torch.save(weights, folder / f"adapter.{language}.bin")
            else:
                save_file(weights, folder / f"adapter.{language}.safetensors")
    files: dict[str, Any] = {
        "vocab.json": {
            language: {token: i for i, token in enumerate([*SPECIAL, *letters])}
            for language, letters in LETTERS.items()
        },
        "tokenizer_config.json": {"tokenizer_class": "Wav2Vec2CTCTokenizer", "target_lang": "eng"},
        "preprocessor_config.json": {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "do_normalize": True,
            "return_attention_mask": True,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder
