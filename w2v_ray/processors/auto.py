"""Which feature extractor, tokenizer and processor a checkpoint needs, told from its files alone.

What is not built here is refused.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from w2v_ray.audio.features import Wav2Vec2FeatureExtractor
from w2v_ray.audio.seamless import SeamlessM4TFeatureExtractor
from w2v_ray.errors import CheckpointError
from w2v_ray.hub import checkpoint_file, read_json_file
from w2v_ray.processors.processor import (
    PROCESSOR_FILE,
    Processor,
    Wav2Vec2BertProcessor,
    Wav2Vec2Processor,
    extractor_of,
    family_of,
)
from w2v_ray.processors.with_lm import Wav2Vec2ProcessorWithLM
from w2v_ray.text.tokenizer import Wav2Vec2CTCTokenizer

__all__ = ["AutoFeatureExtractor", "AutoProcessor", "AutoTokenizer", "named_processor"]

_PROCESSORS: dict[str, type[Processor]] = {
    cls.__name__: cls for cls in (Wav2Vec2Processor, Wav2Vec2BertProcessor, Wav2Vec2ProcessorWithLM)
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
        extractor = extractor_of(model, revision)
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
                family_of(str(model), revision, "tokenizer")
            elif named != Wav2Vec2CTCTokenizer.__name__:
                raise CheckpointError(
                    f"{path} says tokenizer_class {named!r}, expected {Wav2Vec2CTCTokenizer.__name__!r}; "
                    "name a checkpoint with a character CTC tokenizer"
                )
        return Wav2Vec2CTCTokenizer.from_pretrained(model, revision=revision, **overrides)


class AutoProcessor:
    """Loads whatever processor a checkpoint needs."""

    @staticmethod
    def from_pretrained(model: str | PathLike[str], *, revision: str | None = None, **overrides: Any) -> Any:
        """Loads a folder or hub id as a Wav2Vec2Processor, Wav2Vec2BertProcessor or Wav2Vec2ProcessorWithLM.

        ``overrides`` are as of the processor.

        Its files are asked in this order: what the settings of the processor, of the feature extractor
        and of the tokenizer name as ``processor_class``, then the ``model_type`` of ``config.json``.

        Raises:
            CheckpointError: It needs a processor that is not built here, or no file says which; or as of
                the processor.
        """
        named, path = named_processor(model, revision)
        if named is None:
            needed: type[Processor] = family_of(str(model), revision, "processor")
        elif isinstance(named, str) and named in _PROCESSORS:
            needed = _PROCESSORS[named]
        else:
            raise CheckpointError(
                f"processor_class of {path} says {named!r}, expected {' or '.join(_PROCESSORS)}; "
                "name a checkpoint of those"
            )
        return needed.from_pretrained(model, revision=revision, **overrides)


def named_processor(model: str | PathLike[str], revision: str | None) -> tuple[Any, Path | None]:
    """What the first file of a checkpoint that names a ``processor_class`` says, and that file."""
    for filename in (PROCESSOR_FILE, "preprocessor_config.json", "tokenizer_config.json"):
        path = checkpoint_file(str(model), filename, revision=revision, required=False)
        named = read_json_file(path).get("processor_class") if path else None
        if named is not None:
            return named, path
    return None, None
