"""The local pipeline: audio in, text or labels out, in one process and without Ray.

It gives what transformers' pipeline of the same name gives for the same checkpoint, with one difference:
a recording's result never depends on what it shares a batch with.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch

from w2v_ray.errors import ConfigError
from w2v_ray.hub import checkpoint_file
from w2v_ray.inference.classification import AudioClassificationPipeline
from w2v_ray.inference.recognition import AutomaticSpeechRecognitionPipeline
from w2v_ray.models.auto import AutoModelForAudioClassification, AutoModelForCTC
from w2v_ray.processors import AutoFeatureExtractor, AutoTokenizer, Wav2Vec2ProcessorWithLM
from w2v_ray.processors.auto import named_processor
from w2v_ray.processors.with_lm import ALPHABET_FILE, load_decoder

__all__ = ["AudioClassificationPipeline", "AutomaticSpeechRecognitionPipeline", "pipeline"]

_log = logging.getLogger(__name__)


def pipeline(
    task: str,
    model: Any,
    *,
    feature_extractor: Any = None,
    tokenizer: Any = None,
    decoder: Any = None,
    revision: str | None = None,
    device: int | str | torch.device | None = None,
    device_map: str | None = None,
    dtype: torch.dtype | str = "auto",
    torch_dtype: torch.dtype | str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> Any:
    """Loads what a task needs from one checkpoint.

    Args:
        task: ``automatic-speech-recognition`` or ``audio-classification``.
        model: A folder, a hub id, or a loaded model; with a loaded one the feature extractor, and for
            recognition the tokenizer, must be given too.
        feature_extractor: Another one than the checkpoint's, loaded or by name.
        tokenizer: Another one than the checkpoint's, loaded or by name.
        decoder: Another beam search than the checkpoint's, loaded. A checkpoint has one if its files name
            Wav2Vec2ProcessorWithLM; a loaded feature extractor leaves it out, and text is decoded greedily.
        revision: Branch, tag or commit of a hub id.
        device: A torch device, the number of a GPU, or -1 for the CPU; null: a GPU where there is one. A
            loaded model stays where it is unless this is given.
        device_map: Instead of ``device``, as of the model's ``from_pretrained``.
        dtype: Of the weights in memory; ``auto`` takes the one they are stored in.
        torch_dtype: The older name of ``dtype``.
        model_kwargs: Further arguments of the model's ``from_pretrained``, such as ``attn_implementation``
            or ``target_lang``, which the tokenizer is set to as well.
        options: What ``AutomaticSpeechRecognitionPipeline`` or ``AudioClassificationPipeline`` takes.

    Returns:
        An object of one of these classes.

    Raises:
        CheckpointError: The checkpoint lacks a file, or is none for the task.
        ConfigError: There is no such task, or a part is missing.
    """
    if task not in ("automatic-speech-recognition", "audio-classification"):
        raise ConfigError(
            f"task is {task!r}, expected 'automatic-speech-recognition' or 'audio-classification'; "
            "choose one of these"
        )
    if device is not None and device_map is not None:
        raise ConfigError(f"device is {device!r} and device_map {device_map!r}; give one of the two")
    recognises = task == "automatic-speech-recognition"
    wanted = {"dtype": dtype if torch_dtype is None else torch_dtype} | dict(model_kwargs or {})
    is_name = isinstance(model, str | PathLike)
    if is_name:
        source, loader = model, AutoModelForCTC if recognises else AutoModelForAudioClassification
        wanted.setdefault("device_map", _device(device) if device_map is None else device_map)
        model = loader.from_pretrained(source, revision=revision, **wanted)
        if (
            recognises
            and decoder is None
            and (feature_extractor is None or isinstance(feature_extractor, str | PathLike))
        ):
            decoder = _decoder_of(source, revision)
        feature_extractor = source if feature_extractor is None else feature_extractor
        tokenizer = source if tokenizer is None else tokenizer
    elif feature_extractor is None or (recognises and tokenizer is None):
        raise ConfigError(
            "model is a loaded one, which does not say where its feature extractor and tokenizer are; "
            "pass feature_extractor" + (" and tokenizer" if recognises else "")
        )
    if isinstance(feature_extractor, str | PathLike):
        feature_extractor = AutoFeatureExtractor.from_pretrained(feature_extractor, revision=revision)
    if not is_name and device is not None:
        model.to(_device(device))
    model.eval()
    if not recognises:
        return AudioClassificationPipeline(model, feature_extractor, **options)
    if isinstance(tokenizer, str | PathLike):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer, revision=revision)
    if wanted.get("target_lang") is not None:
        tokenizer.set_target_lang(wanted["target_lang"])
    return AutomaticSpeechRecognitionPipeline(model, feature_extractor, tokenizer, decoder, **options)


def _decoder_of(model: Any, revision: str | None) -> Any:
    """The beam search of a checkpoint, where its files ask for it."""
    if named_processor(model, revision)[0] == Wav2Vec2ProcessorWithLM.__name__:
        return load_decoder(model, revision=revision)
    if checkpoint_file(model, ALPHABET_FILE, revision=revision, required=False):
        _log.warning(
            "the language model of %s is not used: no processor_class says Wav2Vec2ProcessorWithLM", model
        )
    return None


def _device(device: int | str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(device, int):
        return torch.device("cpu" if device < 0 else f"cuda:{device}")
    return torch.device(device)
