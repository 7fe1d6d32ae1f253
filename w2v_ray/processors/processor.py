"""A feature extractor and a tokenizer as one object, loaded from one checkpoint."""

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
    "PROCESSOR_FILE",
    "FeatureExtractor",
    "Processor",
    "Wav2Vec2BertProcessor",
    "Wav2Vec2Processor",
    "extractor_of",
    "family_of",
    "load_parts",
]

FeatureExtractor = Wav2Vec2FeatureExtractor | SeamlessM4TFeatureExtractor

_EXTRACTORS: dict[str, type[Wav2Vec2FeatureExtractor] | type[SeamlessM4TFeatureExtractor]] = {
    "Wav2Vec2FeatureExtractor": Wav2Vec2FeatureExtractor,
    "SeamlessM4TFeatureExtractor": SeamlessM4TFeatureExtractor,
}
PROCESSOR_FILE = "processor_config.json"

_FOR_AUDIO: dict[type, tuple[str, ...]] = {
    Wav2Vec2FeatureExtractor: ("sampling_rate",),
    SeamlessM4TFeatureExtractor: ("sampling_rate", "device", "do_normalize_per_mel_bins"),
}
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


class Processor:
    """What all processors do; they differ in what their audio becomes, and in how text is decoded."""

    default_extractor: ClassVar[type[Wav2Vec2FeatureExtractor] | type[SeamlessM4TFeatureExtractor]]
    """For checkpoints that name none."""

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
        extractor = _EXTRACTORS.get(str(named), cls.default_extractor)
        return cls(*load_parts(model, revision, extractor, overrides))

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
        written = self._save(Path(save_directory))
        upload_saved(written, push_to_hub, hub)
        return written

    def _save(self, folder: Path) -> tuple[str, ...]:
        name = type(self).__name__
        written = self.feature_extractor.save_pretrained(folder, processor_class=name)
        written += self.tokenizer.save_pretrained(folder, processor_class=name)
        path = folder / PROCESSOR_FILE
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
        for_audio = _FOR_AUDIO[type(self.feature_extractor)]
        known = sorted((*for_audio, *_FOR_TEXT, *_FOR_BOTH))
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
            chosen = {name: value for name, value in options.items() if name not in for_audio}
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


class Wav2Vec2Processor(Processor):
    """A wav2vec 2.0 feature extractor and a CTC tokenizer behind one call.

    Args:
        feature_extractor: For audio.
        tokenizer: For texts and ids.

    Raises:
        TypeError: One is of another class.
    """

    default_extractor = Wav2Vec2FeatureExtractor


class Wav2Vec2BertProcessor(Processor):
    """A log-mel feature extractor and a CTC tokenizer behind one call, for Wav2Vec2-BERT.

    Args:
        feature_extractor: For audio.
        tokenizer: For texts and ids.

    Raises:
        TypeError: One is of another class.
    """

    default_extractor = SeamlessM4TFeatureExtractor


_PROCESSOR_OF: dict[str, type[Wav2Vec2Processor] | type[Wav2Vec2BertProcessor]] = {
    "wav2vec2": Wav2Vec2Processor,
    "wav2vec2-bert": Wav2Vec2BertProcessor,
}


def family_of(
    model: str, revision: str | None, what: str
) -> type[Wav2Vec2Processor] | type[Wav2Vec2BertProcessor]:
    """The processor that goes with the ``model_type`` of a checkpoint.

    Args:
        model: A folder or hub id.
        revision: A branch, tag or commit of the hub repository.
        what: What is looked for, for the message.

    Raises:
        CheckpointError: There is no ``config.json``, or it is of a model that is not built here.
    """
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


def extractor_of(
    model: str | PathLike[str], revision: str | None
) -> type[Wav2Vec2FeatureExtractor] | type[SeamlessM4TFeatureExtractor]:
    """The class of the feature extractor that a checkpoint needs.

    Raises:
        CheckpointError: It is not built here, or no file says which.
    """
    settings, path = read_settings(model, revision)
    named = settings.get("feature_extractor_type")
    if named is None:
        return family_of(str(model), revision, "feature extractor").default_extractor
    if not isinstance(named, str) or named not in _EXTRACTORS:
        raise CheckpointError(
            f"{path} says feature_extractor_type {named!r}, expected {' or '.join(_EXTRACTORS)}; "
            "name a checkpoint of those"
        )
    return _EXTRACTORS[named]


def load_parts(
    model: str | PathLike[str],
    revision: str | None,
    extractor: type[Wav2Vec2FeatureExtractor] | type[SeamlessM4TFeatureExtractor],
    overrides: Mapping[str, Any],
    *,
    known_besides: tuple[str, ...] = (),
) -> tuple[FeatureExtractor, Wav2Vec2CTCTokenizer]:
    """The feature extractor and the tokenizer of a checkpoint, each with the overrides that it knows.

    Raises:
        CheckpointError: A file is missing or malformed, or is of another class.
        TypeError: An override is known to neither; ``known_besides`` are named in the message too.
    """
    of_extractor, of_tokenizer = _arguments(extractor), _arguments(Wav2Vec2CTCTokenizer)
    unknown = overrides.keys() - of_extractor - of_tokenizer
    if unknown:
        known = sorted({*of_extractor, *of_tokenizer, *known_besides} - {"vocab_file"})
        raise TypeError(f"the processor has no setting {min(unknown)!r}; it knows {', '.join(known)}")
    for_audio, for_text = (
        {name: value for name, value in overrides.items() if name in names}
        for names in (of_extractor, of_tokenizer)
    )
    return (
        extractor.from_pretrained(model, revision=revision, **for_audio),
        Wav2Vec2CTCTokenizer.from_pretrained(model, revision=revision, **for_text),
    )


def _arguments(cls: type) -> frozenset[str]:
    return frozenset(inspect.signature(cls).parameters)
