"""Processors: a feature extractor and a tokenizer as one object, loaded from one checkpoint.

The ``Auto`` classes tell from the files alone which class a checkpoint needs, and refuse what is not built
here.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

from w2v_ray.audio.features import BatchFeature, Wav2Vec2FeatureExtractor
from w2v_ray.audio.seamless import SeamlessM4TFeatureExtractor
from w2v_ray.audio.settings import read_settings
from w2v_ray.errors import CheckpointError
from w2v_ray.hub import checkpoint_file, read_json_file, upload_saved
from w2v_ray.text.tokenizer import Wav2Vec2CTCTokenizer

__all__ = [
    "AutoFeatureExtractor",
    "AutoProcessor",
    "AutoTokenizer",
    "Wav2Vec2BertProcessor",
    "Wav2Vec2Processor",
]

FeatureExtractor = Wav2Vec2FeatureExtractor | SeamlessM4TFeatureExtractor

_PROCESSOR_FILE = "processor_config.json"
_FOR_TEXT = (
    "add_special_tokens",
    "is_split_into_words",
    "padding_side",
    "return_length",
    "return_overflowing_tokens",
    "return_special_tokens_mask",
    "return_token_type_ids",
    "stride",
    "text_pair",
    "text_pair_target",
    "text_target",
    "verbose",
)
_FOR_BOTH = (
    "max_length",
    "pad_to_multiple_of",
    "padding",
    "return_attention_mask",
    "return_tensors",
    "truncation",
)


class _Processor:
    """What the processors of both families do; they differ in what their audio becomes."""

    _default_extractor: ClassVar[type[Wav2Vec2FeatureExtractor] | type[SeamlessM4TFeatureExtractor]]
    _for_audio: ClassVar[tuple[str, ...]]

    def __init__(self, feature_extractor: FeatureExtractor, tokenizer: Wav2Vec2CTCTokenizer) -> None:
        if not isinstance(feature_extractor, FeatureExtractor):
            raise TypeError(
                f"feature_extractor is a {type(feature_extractor).__name__}, expected a "
                "Wav2Vec2FeatureExtractor or a SeamlessM4TFeatureExtractor; pass it first"
            )
        if not isinstance(tokenizer, Wav2Vec2CTCTokenizer):
            raise TypeError(
                f"tokenizer is a {type(tokenizer).__name__}, expected a Wav2Vec2CTCTokenizer; pass it second"
            )
        self.feature_extractor = feature_extractor
        self.tokenizer = tokenizer

    @property
    def model_input_names(self) -> list[str]:
        """What the model takes of this processor's output."""
        return [*self.feature_extractor.model_input_names, "labels"]

    @classmethod
    def from_pretrained(
        cls, model: str | PathLike[str], *, revision: str | None = None, **overrides: Any
    ) -> Self:
        """Loads a folder or hub id.

        Args:
            model: Its settings say which feature extractor it needs; where they do not, it is the one of
                this processor's family.
            revision: A branch, tag or commit of the hub repository.
            overrides: Constructor arguments of the feature extractor and of the tokenizer that replace what
                the files say: ``target_lang``, ``do_lower_case``, ``return_attention_mask`` and others.

        Raises:
            CheckpointError: A file is missing or malformed, or is of another class.
            TypeError: An override is known to neither.
        """
        named = read_settings(model, revision)[0].get("feature_extractor_type")
        extractor = _EXTRACTORS.get(str(named), cls._default_extractor)
        for_audio = {name: value for name, value in overrides.items() if name in _arguments(extractor)}
        for_text = {
            name: value for name, value in overrides.items() if name in _arguments(Wav2Vec2CTCTokenizer)
        }
        unknown = [name for name in overrides if name not in for_audio and name not in for_text]
        if unknown:
            known = sorted({*_arguments(extractor), *_arguments(Wav2Vec2CTCTokenizer)} - {"vocab_file"})
            raise TypeError(f"the processor has no setting {unknown[0]!r}; it knows {', '.join(known)}")
        return cls(
            extractor.from_pretrained(model, revision=revision, **for_audio),
            Wav2Vec2CTCTokenizer.from_pretrained(model, revision=revision, **for_text),
        )

    def save_pretrained(
        self, save_directory: str | PathLike[str], *, push_to_hub: bool = False, **hub: Any
    ) -> tuple[str, ...]:
        """Writes the files that ``from_pretrained`` and transformers read, and returns their paths.

        The feature extractor's settings go to ``preprocessor_config.json``, for transformers 4, and into
        ``processor_config.json``, where transformers 5 looks first.

        Args:
            save_directory: A folder; it is made where there is none.
            push_to_hub: Whether to put what was written into a repository of the hub too.
            hub: As of ``hub.upload_saved``: ``repo_id``, ``commit_message``, ``private``, ``token``, ...

        Raises:
            OutputError: ``save_directory`` is a file, or the hub does not take it.
        """
        name = type(self).__name__
        written = self.feature_extractor.save_pretrained(save_directory, processor_class=name)
        written += self.tokenizer.save_pretrained(save_directory, processor_class=name)
        path = Path(save_directory) / _PROCESSOR_FILE
        settings = {"feature_extractor": self.feature_extractor.to_dict(), "processor_class": name}
        path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        written += (str(path),)
        upload_saved(written, push_to_hub, hub)
        return written

    def __call__(
        self,
        audio: Any = None,
        text: Any = None,
        *,
        audio_kwargs: Mapping[str, Any] | None = None,
        text_kwargs: Mapping[str, Any] | None = None,
        common_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Makes features of audio, ids of texts, or features with the ids as ``labels``.

        Args:
            audio: As of calling the feature extractor.
            text: As of calling the tokenizer.
            audio_kwargs: Options for the feature extractor alone.
            text_kwargs: Options for the tokenizer alone.
            common_kwargs: As ``options``, which win over it.
            options: For both, those that both know (padding, max_length, return_tensors, ...).

        Returns:
            A BatchFeature, or the tokenizer's BatchEncoding for texts alone.

        Raises:
            TypeError: An option is known to neither.
            ValueError: There is neither audio nor text, an option is given twice, or as of the feature
                extractor and the tokenizer.
        """
        if audio is None and text is None:
            raise ValueError("neither audio nor text is given; pass at least one")
        known = sorted((*self._for_audio, *_FOR_TEXT, *_FOR_BOTH))
        for name in (*options, *(common_kwargs or {})):
            if name not in known:
                raise TypeError(f"the processor has no option {name!r}; it knows {', '.join(known)}")
        for where, given in (("audio_kwargs", audio_kwargs), ("text_kwargs", text_kwargs)):
            for name in (given or {}).keys() & options.keys():
                raise ValueError(f"{name} is given twice, in {where} and beside it; pass it once")
        options = dict(common_kwargs or {}) | options
        features = encoded = None
        if audio is not None:
            chosen = {name: value for name, value in options.items() if name not in _FOR_TEXT}
            features = self.feature_extractor(audio, **(chosen | dict(audio_kwargs or {})))
        if text is not None:
            chosen = {name: value for name, value in options.items() if name not in self._for_audio}
            encoded = self.tokenizer(text, **(chosen | dict(text_kwargs or {})))
        if features is None or encoded is None:
            return encoded if features is None else features
        features["labels"] = encoded["input_ids"]
        return features

    def pad(self, input_features: Any = None, labels: Any = None, **options: Any) -> Any:
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

    def decode(self, token_ids: Any, *args: Any, **options: Any) -> Any:
        """Reads a path of ids as text; as of the tokenizer."""
        return self.tokenizer.decode(token_ids, *args, **options)

    def batch_decode(self, sequences: Any, *args: Any, **options: Any) -> Any:
        """Reads a path a row; as of the tokenizer."""
        return self.tokenizer.batch_decode(sequences, *args, **options)


class Wav2Vec2Processor(_Processor):
    """A wav2vec 2.0 feature extractor and a CTC tokenizer behind one call.

    Args:
        feature_extractor: For audio.
        tokenizer: For texts and ids.

    Raises:
        TypeError: One is of another class.
    """

    _default_extractor = Wav2Vec2FeatureExtractor
    _for_audio = ("sampling_rate",)


class Wav2Vec2BertProcessor(_Processor):
    """A log-mel feature extractor and a CTC tokenizer behind one call, for Wav2Vec2-BERT.

    Args:
        feature_extractor: For audio.
        tokenizer: For texts and ids.

    Raises:
        TypeError: One is of another class.
    """

    _default_extractor = SeamlessM4TFeatureExtractor
    _for_audio = ("sampling_rate", "device", "do_normalize_per_mel_bins")


_EXTRACTORS: dict[str, type[Wav2Vec2FeatureExtractor] | type[SeamlessM4TFeatureExtractor]] = {
    "Wav2Vec2FeatureExtractor": Wav2Vec2FeatureExtractor,
    "SeamlessM4TFeatureExtractor": SeamlessM4TFeatureExtractor,
}
_PROCESSORS: dict[str, type[Wav2Vec2Processor] | type[Wav2Vec2BertProcessor]] = {
    "Wav2Vec2Processor": Wav2Vec2Processor,
    "Wav2Vec2BertProcessor": Wav2Vec2BertProcessor,
}
_PROCESSOR_OF: dict[str, type[Wav2Vec2Processor] | type[Wav2Vec2BertProcessor]] = {
    "wav2vec2": Wav2Vec2Processor,
    "wav2vec2-bert": Wav2Vec2BertProcessor,
}


class AutoFeatureExtractor:
    """Loads whatever feature extractor a checkpoint needs."""

    @staticmethod
    def from_pretrained(
        model: str | PathLike[str], *, revision: str | None = None, **overrides: Any
    ) -> Wav2Vec2FeatureExtractor | SeamlessM4TFeatureExtractor:
        """Loads a folder or hub id; ``overrides`` as of the feature extractor.

        Its class is the ``feature_extractor_type`` of its settings, or the one of the ``model_type`` of
        ``config.json``.

        Raises:
            CheckpointError: It needs one that is not built here, or no file says which; or as of the
                feature extractor.
        """
        settings, path = read_settings(model, revision)
        named = settings.get("feature_extractor_type")
        if named is None:
            extractor = _family(str(model), revision, "feature extractor")._default_extractor
        elif isinstance(named, str) and named in _EXTRACTORS:
            extractor = _EXTRACTORS[named]
        else:
            raise CheckpointError(
                f"{path} says feature_extractor_type {named!r}, expected {' or '.join(_EXTRACTORS)}; "
                "name a checkpoint of those"
            )
        return extractor.from_pretrained(model, revision=revision, **overrides)


class AutoTokenizer:
    """Loads the tokenizer of a checkpoint, where it is the one that is built here."""

    @staticmethod
    def from_pretrained(
        model: str | PathLike[str], *, revision: str | None = None, **overrides: Any
    ) -> Wav2Vec2CTCTokenizer:
        """Loads a folder or hub id; ``overrides`` as of the tokenizer.

        Its class is the ``tokenizer_class`` of ``tokenizer_config.json`` or ``config.json``, or the one of
        the ``model_type`` of the latter.

        Raises:
            CheckpointError: It needs one that is not built here, or no file says which; or as of the
                tokenizer.
        """
        path = checkpoint_file(str(model), "tokenizer_config.json", revision=revision, required=False)
        if path is None or read_json_file(path).get("tokenizer_class") is None:
            path = checkpoint_file(str(model), "config.json", revision=revision, required=False)
            named = read_json_file(path).get("tokenizer_class") if path else None
            if named is None:
                _family(str(model), revision, "tokenizer")
            elif named != Wav2Vec2CTCTokenizer.__name__:
                raise CheckpointError(
                    f"{path} says tokenizer_class {named!r}, expected {Wav2Vec2CTCTokenizer.__name__!r}; "
                    "name a checkpoint with a character CTC tokenizer"
                )
        return Wav2Vec2CTCTokenizer.from_pretrained(model, revision=revision, **overrides)


class AutoProcessor:
    """Loads whatever processor a checkpoint needs."""

    @staticmethod
    def from_pretrained(
        model: str | PathLike[str], *, revision: str | None = None, **overrides: Any
    ) -> Wav2Vec2Processor | Wav2Vec2BertProcessor:
        """Loads a folder or hub id; ``overrides`` as of the processor.

        Its files are asked in this order: what the settings of the processor, of the feature extractor
        and of the tokenizer name as ``processor_class``, then the ``model_type`` of ``config.json``.

        Raises:
            CheckpointError: It needs a processor that is not built here, or no file says which; or as of
                the processor.
        """
        for filename in (_PROCESSOR_FILE, "preprocessor_config.json", "tokenizer_config.json"):
            path = checkpoint_file(str(model), filename, revision=revision, required=False)
            named = read_json_file(path).get("processor_class") if path else None
            if isinstance(named, str) and named in _PROCESSORS:
                return _PROCESSORS[named].from_pretrained(model, revision=revision, **overrides)
            if named is not None:
                raise CheckpointError(
                    f"processor_class of {path} says {named!r}, expected {' or '.join(_PROCESSORS)}; "
                    "name a checkpoint of those"
                )
        return _family(str(model), revision, "processor").from_pretrained(
            model, revision=revision, **overrides
        )


def _family(
    model: str, revision: str | None, what: str
) -> type[Wav2Vec2Processor] | type[Wav2Vec2BertProcessor]:
    path = checkpoint_file(model, "config.json", revision=revision, required=False)
    named = read_json_file(path).get("model_type") if path else None
    if named is None:
        raise CheckpointError(
            f"no file of model {model!r} says which {what} it needs; name one that has a config.json"
        )
    if not isinstance(named, str) or named not in _PROCESSOR_OF:
        raise CheckpointError(
            f"model_type of {path} says {named!r}, expected {' or '.join(_PROCESSOR_OF)}; "
            "name a checkpoint of those"
        )
    return _PROCESSOR_OF[named]


def _arguments(cls: type) -> frozenset[str]:
    return frozenset(inspect.signature(cls).parameters)
