"""What the reference pages show how to do, step by step as they write it, with checkpoints made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from w2v_ray.audio.features import Wav2Vec2FeatureExtractor
from w2v_ray.audio.seamless import SeamlessM4TFeatureExtractor
from w2v_ray.errors import CheckpointError
from w2v_ray.models.auto import AutoModel, AutoModelForCTC
from w2v_ray.models.bert_config import Wav2Vec2BertConfig
from w2v_ray.models.config import Wav2Vec2Config
from w2v_ray.models.heads import (
    Wav2Vec2BertForAudioFrameClassification,
    Wav2Vec2BertForCTC,
    Wav2Vec2BertForSequenceClassification,
    Wav2Vec2ForAudioFrameClassification,
    Wav2Vec2ForCTC,
    Wav2Vec2ForSequenceClassification,
)
from w2v_ray.models.xvector import Wav2Vec2BertForXVector, Wav2Vec2ForXVector
from w2v_ray.processors import (
    AutoFeatureExtractor,
    AutoProcessor,
    Wav2Vec2BertProcessor,
    Wav2Vec2Processor,
)
from w2v_ray.text.tokenizer import Wav2Vec2CTCTokenizer

TINY: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "classifier_proj_size": 12,
    "tdnn_dim": [16, 16, 24],
    "tdnn_kernel": [5, 3, 1],
    "tdnn_dilation": [1, 2, 1],
    "xvector_output_dim": 12,
    "vocab_size": 12,
}
CONFIGS: dict[str, Any] = {
    "wav2vec2": Wav2Vec2Config(
        **TINY,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
    ),
    "wav2vec2-bert": Wav2Vec2BertConfig(**TINY),
}
RATE = 16_000


def save_checkpoint(folder: Path, family: str, model_class: Any) -> Path:
    """A random model, with a processor whose vocabulary has twelve tokens."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = model_class(CONFIGS[family])
        with torch.no_grad():
            for weight in model.parameters():
                weight += (0.2 if weight.ndim > 1 else 0.02) * torch.randn(weight.shape)
    model.save_pretrained(folder)
    tokens = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ADEHLOR"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    tokenizer = Wav2Vec2CTCTokenizer(folder / "vocab.json")
    if family == "wav2vec2":
        extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True)
        Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder)
    else:
        Wav2Vec2BertProcessor(SeamlessM4TFeatureExtractor(), tokenizer).save_pretrained(folder)
    return folder


def sounds() -> list[np.ndarray]:
    """A hiss of 1.25 s, and a tone that rises for 0.8 s."""
    time = np.arange(13_000) / RATE
    hiss = np.random.default_rng(5).standard_normal(20_000) * 0.1
    return [hiss.astype(np.float32), np.sin(2 * np.pi * time * (200 + 600 * time)).astype(np.float32)]


@pytest.mark.parametrize(
    ("family", "model_class"), [("wav2vec2", Wav2Vec2ForCTC), ("wav2vec2-bert", Wav2Vec2BertForCTC)]
)
def test_speech_is_recognised_and_the_loss_computed(family: str, model_class: Any, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path, family, model_class)
    processor = AutoProcessor.from_pretrained(checkpoint)
    model = AutoModelForCTC.from_pretrained(checkpoint)
    assert type(model) is model_class
    inputs = processor(sounds()[0], sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    predicted_ids = torch.argmax(logits, dim=-1)
    (transcription,) = processor.batch_decode(predicted_ids)
    assert transcription == processor.decode(predicted_ids[0])
    inputs["labels"] = processor(text="HELLO OLD HARE", return_tensors="pt").input_ids
    assert inputs["labels"].tolist() == [[8, 7, 9, 9, 10, 4, 10, 9, 6, 4, 8, 5, 11, 7]]
    loss = model(**inputs).loss
    assert loss.ndim == 0
    assert loss > 0


@pytest.mark.parametrize(
    ("family", "model_class"),
    [
        ("wav2vec2", Wav2Vec2ForSequenceClassification),
        ("wav2vec2-bert", Wav2Vec2BertForSequenceClassification),
    ],
)
def test_recordings_are_of_one_class_or_of_several(family: str, model_class: Any, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path, family, model_class)
    inputs = AutoFeatureExtractor.from_pretrained(checkpoint)(
        sounds()[0], sampling_rate=RATE, return_tensors="pt"
    )
    model = model_class.from_pretrained(checkpoint)
    with torch.no_grad():
        logits = model(**inputs).logits
    predicted_class_id = logits.argmax().item()
    assert model.config.id2label[predicted_class_id] == f"LABEL_{predicted_class_id}"
    loss = model(**inputs, labels=torch.tensor([1])).loss
    torch.testing.assert_close(loss, -logits.log_softmax(-1)[0, 1])
    model = model_class.from_pretrained(
        checkpoint,
        num_labels=3,
        problem_type="multi_label_classification",
        ignore_mismatched_sizes=True,
    )
    with torch.no_grad():
        logits = model(**inputs).logits
    predicted_class_ids = torch.arange(0, logits.shape[-1])[torch.sigmoid(logits).squeeze(dim=0) > 0.5]
    labels = torch.sum(
        torch.nn.functional.one_hot(predicted_class_ids[None, :].clone(), num_classes=3), dim=1
    ).to(torch.float)
    loss = model(**inputs, labels=labels).loss
    assert 0 < loss.item() < torch.log(torch.tensor(2.0)), "labels that agree cost less than a coin"


@pytest.mark.parametrize(
    ("family", "model_class"),
    [
        ("wav2vec2", Wav2Vec2ForAudioFrameClassification),
        ("wav2vec2-bert", Wav2Vec2BertForAudioFrameClassification),
    ],
)
def test_speakers_of_each_frame(family: str, model_class: Any, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path, family, model_class)
    feature_extractor = AutoFeatureExtractor.from_pretrained(checkpoint)
    model = model_class.from_pretrained(checkpoint)
    inputs = feature_extractor(sounds()[0], return_tensors="pt", sampling_rate=RATE)
    with torch.no_grad():
        logits = model(**inputs).logits
    probabilities = torch.sigmoid(logits[0])
    labels = (probabilities > 0.5).long()
    num_frames = 62  # of 20,000 samples, 20 ms apart
    assert labels.shape == (num_frames, model.config.num_labels)
    assert torch.equal(labels, (logits[0] > 0).long())


@pytest.mark.parametrize(
    ("family", "model_class"),
    [("wav2vec2", Wav2Vec2ForXVector), ("wav2vec2-bert", Wav2Vec2BertForXVector)],
)
def test_speakers_are_compared_by_cosine(family: str, model_class: Any, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path, family, model_class)
    feature_extractor = AutoFeatureExtractor.from_pretrained(checkpoint)
    model = model_class.from_pretrained(checkpoint)
    one, other = sounds()
    inputs = feature_extractor([one, other, one * 0.5], sampling_rate=RATE, return_tensors="pt", padding=True)
    with torch.no_grad():
        embeddings = model(**inputs).embeddings
    embeddings = torch.nn.functional.normalize(embeddings, dim=-1).cpu()
    cosine_sim = torch.nn.CosineSimilarity(dim=-1)
    threshold = 0.7
    assert cosine_sim(embeddings[0], embeddings[2]) > 0.999 > threshold, "loudness says nothing of a speaker"
    similarity = cosine_sim(embeddings[0], embeddings[1]).item()
    assert similarity == pytest.approx((embeddings[0] @ embeddings[1]).item(), abs=1e-6)
    assert similarity < 0.995


@pytest.mark.parametrize(
    ("family", "model_class"), [("wav2vec2", Wav2Vec2ForCTC), ("wav2vec2-bert", Wav2Vec2BertForCTC)]
)
def test_features_are_those_of_the_last_layer(family: str, model_class: Any, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path, family, model_class)
    processor, model = AutoProcessor.from_pretrained(checkpoint), AutoModel.from_pretrained(checkpoint)
    inputs = processor(sounds()[0], sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs, output_hidden_states=True)
    assert list(outputs.last_hidden_state.shape) == [1, 62, 16]
    assert len(outputs.hidden_states) == 3


@pytest.mark.parametrize(
    ("family", "model_class"),
    [
        ("wav2vec2", Wav2Vec2ForSequenceClassification),
        ("wav2vec2-bert", Wav2Vec2BertForSequenceClassification),
    ],
)
def test_a_new_head_on_a_published_encoder(family: str, model_class: Any, tmp_path: Path) -> None:
    encoder_class = AutoModel.classes[family]
    checkpoint = save_checkpoint(tmp_path, family, encoder_class)
    with pytest.raises(CheckpointError, match=r"classifier\.bias"):  # no head is drawn unasked
        model_class.from_pretrained(checkpoint)
    encoder = AutoModel.from_pretrained(checkpoint)
    model = model_class(encoder_class.config_class.from_pretrained(checkpoint, num_labels=5)).eval()
    model.base_model.load_state_dict(encoder.state_dict())
    inputs = AutoFeatureExtractor.from_pretrained(checkpoint)(
        sounds()[0], sampling_rate=RATE, return_tensors="pt"
    )
    with torch.no_grad():
        assert model(**inputs).logits.shape == (1, 5)
        expected = encoder(**inputs).last_hidden_state
        assert torch.equal(model.base_model(**inputs).last_hidden_state, expected)
