"""What the documentation says about languages, run as it stands there, on a small checkpoint."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from w2v_ray.models.config import Wav2Vec2Config
from w2v_ray.models.heads import Wav2Vec2ForCTC

PAGE = Path(__file__).resolve().parents[1] / "docs" / "models.md"
LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"etaoinshr"]
SPEECH = np.sin(np.arange(16_000, dtype=np.float32) ** 1.3 / 300)


def code_blocks(section: str) -> list[str]:
    text = PAGE.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"(?ms)^```python\n(.*?)^```", text)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """English in the weights, French beside them, and a vocabulary for each."""
    folder = tmp_path / "mms"
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        adapter_attn_dim=8,
        mask_time_prob=0.0,
        vocab_size=len(LETTERS),
    )
    model = Wav2Vec2ForCTC(config)
    model.save_pretrained(folder)
    french = {name: weight.detach().clone() for name, weight in model.adapter_weights().items()}
    french["lm_head.weight"] = torch.randn(len(LETTERS) + 1, 32)
    french["lm_head.bias"] = torch.zeros(len(LETTERS) + 1)
    save_file(french, folder / "adapter.fra.safetensors")
    english = {name: french[name] for name in french if not name.startswith("lm_head")}
    english |= {"lm_head.weight": torch.randn(len(LETTERS), 32), "lm_head.bias": torch.zeros(len(LETTERS))}
    save_file(english, folder / "adapter.eng.safetensors")
    files: dict[str, Any] = {
        "vocab.json": {
            "eng": {letter: i for i, letter in enumerate(LETTERS)},
            "fra": {letter: i for i, letter in enumerate([*LETTERS, "\u00e9"])},
        },
        "tokenizer_config.json": {"tokenizer_class": "Wav2Vec2CTCTokenizer", "target_lang": "eng"},
        "preprocessor_config.json": {"feature_extractor_type": "Wav2Vec2FeatureExtractor"},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_the_documented_code_runs(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    choose, change, train = (
        block.replace("facebook/mms-1b-all", str(checkpoint)) for block in code_blocks("Languages of MMS")
    )
    names: dict[str, Any] = {}
    exec(choose, names)
    recognise = names["recognise"]
    assert (recognise.model.config.vocab_size, len(recognise.tokenizer.encoder)) == (15, 15)
    recognise(SPEECH)
    exec(change, names)
    assert (recognise.model.config.vocab_size, len(recognise.tokenizer.encoder)) == (14, 14)
    recognise(SPEECH)

    names = {"batches": [([SPEECH, SPEECH[:9000]], ["do ra", "a"])] * 2}
    exec(train, names)
    before = load_file(checkpoint / "model.safetensors")
    after = load_file(tmp_path / "sorbian" / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert all("adapter_layer" in name or name.startswith("lm_head") for name in changed)
    assert {"lm_head.weight", "lm_head.bias"} < changed

    (tmp_path / "adapter.hsb.safetensors").rename(checkpoint / "adapter.hsb.safetensors")
    ours = Wav2Vec2ForCTC.from_pretrained(checkpoint, target_lang="hsb")
    theirs = transformers.Wav2Vec2ForCTC.from_pretrained(
        checkpoint, target_lang="hsb", ignore_mismatched_sizes=True
    ).eval()
    trained = Wav2Vec2ForCTC.from_pretrained(tmp_path / "sorbian")
    wave = torch.from_numpy(SPEECH)[None]
    with torch.no_grad():
        for model in (ours, theirs):
            torch.testing.assert_close(model(wave).logits, trained(wave).logits, atol=1e-4, rtol=0)
