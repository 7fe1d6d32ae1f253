"""Processors: a feature extractor and a tokenizer as one object, loaded from one checkpoint.

``AutoProcessor`` tells from the files alone which processor a checkpoint needs, and refuses what is not
built here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from w2v_ray.audio.features import BatchFeature, Wav2Vec2FeatureExtractor
from w2v_ray.errors import CheckpointError
from w2v_ray.hub import checkpoint_file, read_json_file
from w2v_ray.text.tokenizer import Wav2Vec2CTCTokenizer

__all__ = ["AutoProcessor", "Wav2Vec2Processor"]

_PROCESSOR_FILE = "processor_config.json"
_FOR_AUDIO = ("sampling_rate",)
_FOR_TEXT = (
    "add_special_tokens",
    "is_split_into_words",
    "padding_side",
    "return_length",
    "return_special_tokens_mask",
    "return_token_type_ids",
    "text_target",
)
_FOR_BOTH = (
    "max_length",
    "pad_to_multiple_of",
    "padding",
    "return_attention_mask",
    "return_tensors",
    "truncation",
)


class Wav2Vec2Processor:
    """A wav2vec 2.0 feature extractor and a CTC tokenizer behind one call.

    Args:
        feature_extractor: For audio.
        tokenizer: For texts and ids.
    """

    def __init__(self, feature_extractor: Wav2Vec2FeatureExtractor, tokenizer: Wav2Vec2CTCTokenizer) -> None:
        self.feature_extractor = feature_extractor
        self.tokenizer = tokenizer

    @property
    def model_input_names(self) -> list[str]:
        """What the model takes of this processor's output."""
        return [*self.feature_extractor.model_input_names, "labels"]

    @classmethod
    def from_pretrained(cls, model: str | PathLike[str], *, revision: str | None = None) -> Wav2Vec2Processor:
        """Loads a folder or hub id.

        Raises:
            CheckpointError: A file is missing or malformed, or is of another class.
        """
        return cls(
            Wav2Vec2FeatureExtractor.from_pretrained(model, revision=revision),
            Wav2Vec2CTCTokenizer.from_pretrained(model, revision=revision),
        )

    def save_pretrained(self, save_directory: str | PathLike[str]) -> tuple[str, ...]:
        """Writes the files that ``from_pretrained`` and transformers read, and returns their paths.

        The feature extractor's settings go to ``preprocessor_config.json``, for transformers 4, and into
        ``processor_config.json``, where transformers 5 looks first.

        Raises:
            OutputError: ``save_directory`` is a file.
        """
        name = type(self).__name__
        written = self.feature_extractor.save_pretrained(save_directory, processor_class=name)
        written += self.tokenizer.save_pretrained(save_directory, processor_class=name)
        path = Path(save_directory) / _PROCESSOR_FILE
        settings = {"feature_extractor": self.feature_extractor.to_dict(), "processor_class": name}
        path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        return (*written, str(path))

    def __call__(
        self,
        audio: Any = None,
        text: Any = None,
        *,
        audio_kwargs: Mapping[str, Any] | None = None,
        text_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Makes features of audio, ids of texts, or features with the ids as ``labels``.

        Args:
            audio: As of calling the feature extractor.
            text: As of calling the tokenizer.
            audio_kwargs: Options for the feature extractor alone.
            text_kwargs: Options for the tokenizer alone.
            options: For both, those that both know (padding, max_length, return_tensors, ...).

        Returns:
            A BatchFeature, or the tokenizer's BatchEncoding for texts alone.

        Raises:
            TypeError: An option is known to neither.
            ValueError: There is neither audio nor text, or as of the feature extractor and the tokenizer.
        """
        if audio is None and text is None:
            raise ValueError("neither audio nor text is given; pass at least one")
        for name in options:
            if name not in _FOR_AUDIO + _FOR_TEXT + _FOR_BOTH:
                known = ", ".join(sorted(_FOR_AUDIO + _FOR_TEXT + _FOR_BOTH))
                raise TypeError(f"the processor has no option {name!r}; it knows {known}")
        features = encoded = None
        if audio is not None:
            chosen = {name: value for name, value in options.items() if name not in _FOR_TEXT}
            features = self.feature_extractor(audio, **(chosen | dict(audio_kwargs or {})))
        if text is not None:
            chosen = {name: value for name, value in options.items() if name not in _FOR_AUDIO}
            encoded = self.tokenizer(text, **(chosen | dict(text_kwargs or {})))
        if features is None or encoded is None:
            return encoded if features is None else features
        features["labels"] = encoded["input_ids"]
        return features

    def pad(self, input_features: Any = None, *, labels: Any = None, **options: Any) -> Any:
        """Pads features, encoded texts, or both: the padded ids are the ``labels`` of the features then.

        Args:
            input_features: As of the feature extractor's ``pad``.
            labels: As of the tokenizer's ``pad``.
            options: As of both.

        Raises:
            ValueError: There is neither, or as of the feature extractor and the tokenizer.
        """
        if input_features is None and labels is None:
            raise ValueError("neither input_features nor labels are given; pass at least one")
        encoded = None if labels is None else self.tokenizer.pad(labels, **options)
        if input_features is None:
            return encoded
        features: BatchFeature = self.feature_extractor.pad(input_features, **options)
        if encoded is not None:
            features["labels"] = encoded["input_ids"]
        return features

    def decode(self, token_ids: Any, **options: Any) -> Any:
        """Reads a path of ids as text; as of the tokenizer."""
        return self.tokenizer.decode(token_ids, **options)

    def batch_decode(self, sequences: Any, **options: Any) -> Any:
        """Reads a path a row; as of the tokenizer."""
        return self.tokenizer.batch_decode(sequences, **options)


class AutoProcessor:
    """Loads whatever processor a checkpoint needs."""

    @staticmethod
    def from_pretrained(model: str | PathLike[str], *, revision: str | None = None) -> Wav2Vec2Processor:
        """Loads a folder or hub id.

        Its files are asked in this order: what the settings of the processor, of the feature extractor
        and of the tokenizer name as ``processor_class``, then the ``model_type`` of ``config.json``.

        Raises:
            CheckpointError: It needs a processor that is not built here, or no file says which; or as of
                the processor.
        """
        where, found = _find_class(str(model), revision)
        if found not in ("Wav2Vec2Processor", "wav2vec2"):
            raise CheckpointError(
                f"{where} says {found!r}, expected 'Wav2Vec2Processor' or model_type 'wav2vec2'; "
                "name a checkpoint of that family"
            )
        return Wav2Vec2Processor.from_pretrained(model, revision=revision)


def _find_class(model: str, revision: str | None) -> tuple[str, object]:
    for filename, key in (
        (_PROCESSOR_FILE, "processor_class"),
        ("preprocessor_config.json", "processor_class"),
        ("tokenizer_config.json", "processor_class"),
        ("config.json", "model_type"),
    ):
        path = checkpoint_file(model, filename, revision=revision, required=False)
        value = read_json_file(path).get(key) if path else None
        if value is not None:
            return f"{key} of {path}", value
    raise CheckpointError(
        f"no file of model {model!r} says which processor it needs; name one that has a config.json"
    )
