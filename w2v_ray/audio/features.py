"""The feature extractor of wav2vec 2.0: waveforms cut, padded, scaled and stacked for the model.

It takes samples at the model's rate and refuses another rate: it never resamples.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from w2v_ray.audio.padding import (
    BatchFeature,
    as_float32,
    convert,
    fill,
    kept_length,
    pad_features,
    padded_length,
    padding_strategy,
)
from w2v_ray.audio.settings import checked_settings, read_settings, write_settings
from w2v_ray.errors import CheckpointError, EmptyAudioError
from w2v_ray.hub import upload_saved

__all__ = ["BatchFeature", "Wav2Vec2FeatureExtractor", "zero_mean_unit_variance"]

_log = logging.getLogger(__name__)

_TYPE = "Wav2Vec2FeatureExtractor"
_SETTINGS: dict[str, tuple[type, ...]] = {
    "feature_size": (int,),
    "sampling_rate": (int,),
    "padding_value": (int, float),
    "return_attention_mask": (bool,),
    "do_normalize": (bool,),
}


def zero_mean_unit_variance(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scales samples as the models were trained on them; silence stays finite.

    Raises:
        EmptyAudioError: There are no samples, so there is no mean.
    """
    if not len(samples):
        raise EmptyAudioError("the audio has no samples, expected at least one; leave it out of the batch")
    return (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)  # type: ignore[no-any-return]


class Wav2Vec2FeatureExtractor:
    """Makes the ``input_values`` of wav2vec 2.0 from waveforms.

    Args:
        feature_size: Values per step of the input; 1 for waveforms.
        sampling_rate: Of the audio that the model was trained on, in Hz.
        padding_value: What shorter rows are filled up with.
        return_attention_mask: Whether to say by default which samples are audio. Models whose
            ``feat_extract_norm`` is ``layer`` were trained with the mask, those with ``group`` without.
        do_normalize: Whether each row is scaled to zero mean and unit variance.

    Raises:
        ValueError: A setting is out of bounds.
    """

    model_input_names = ("input_values", "attention_mask")

    def __init__(
        self,
        feature_size: int = 1,
        sampling_rate: int = 16_000,
        padding_value: float = 0.0,
        return_attention_mask: bool = False,
        do_normalize: bool = True,
    ) -> None:
        if feature_size < 1 or sampling_rate < 1:
            raise ValueError(
                f"feature_size is {feature_size} and sampling_rate {sampling_rate}, expected both from 1"
            )
        self.feature_size = feature_size
        self.sampling_rate = sampling_rate
        self.padding_value = padding_value
        self.return_attention_mask = return_attention_mask
        self.do_normalize = do_normalize

    @classmethod
    def from_pretrained(
        cls, model: str | PathLike[str], *, revision: str | None = None, **overrides: Any
    ) -> Wav2Vec2FeatureExtractor:
        """Loads a folder or hub id; ``overrides`` are constructor arguments that replace what its files say.

        Raises:
            CheckpointError: The files are missing or malformed, or are of another feature extractor.
        """
        raw, path = read_settings(model, revision)
        settings = checked_settings(raw, path, _TYPE, _SETTINGS)
        try:
            return cls(**(settings | overrides))
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}; correct the file") from error

    def save_pretrained(
        self,
        save_directory: str | PathLike[str],
        *,
        processor_class: str | None = None,
        push_to_hub: bool = False,
        **hub: Any,
    ) -> tuple[str, ...]:
        """Writes ``preprocessor_config.json``, which transformers reads too, and returns its path.

        Args:
            save_directory: A folder; it is made where there is none.
            processor_class: Named in the file, for AutoProcessor.
            push_to_hub: Whether to put what was written into a repository of the hub too.
            hub: As of ``hub.upload_saved``: ``repo_id``, ``commit_message``, ``private``, ``token``, ...

        Raises:
            OutputError: ``save_directory`` is a file, or the hub does not take it.
        """
        named = {"processor_class": processor_class} if processor_class else {}
        written = write_settings(save_directory, self.to_dict() | named)
        upload_saved(written, push_to_hub, hub)
        return written

    def to_dict(self) -> dict[str, Any]:
        """The settings, under the names that the files use."""
        settings = {name: getattr(self, name) for name in _SETTINGS}
        return settings | {"feature_extractor_type": _TYPE, "padding_side": "right"}

    def __call__(
        self,
        raw_speech: Any,
        *,
        sampling_rate: int | None = None,
        padding: bool | str = False,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Makes a batch of one or more waveforms.

        With padding and no attention mask, a row is scaled over its padding too, as in transformers: it
        then depends on the longest row of its batch. With a mask it does not.

        Args:
            raw_speech: One waveform, shape (samples,), or several: an array of shape (rows, samples) or a
                list of arrays, lists of floats or tensors.
            sampling_rate: Of ``raw_speech``, in Hz; null is taken for the model's, with a warning in the log.
            padding: True or ``longest``, ``max_length``, false or ``do_not_pad``.
            max_length: Samples that rows are cut or filled up to.
            truncation: Whether to cut longer rows.
            pad_to_multiple_of: Rounds ``max_length`` and padded lengths up.
            return_attention_mask: Whether to add 1 for samples and 0 for padding; null: as set.
            return_tensors: ``np`` or ``pt``; null gives lists of arrays.

        Returns:
            ``input_values`` (float32) and, if asked for, ``attention_mask`` (int32), a row a waveform.

        Raises:
            EmptyAudioError: A waveform to be scaled has no samples.
            ValueError: The rate is another, a waveform has several channels, options contradict each
                other, or rows of different lengths were asked for as a tensor.
        """
        if sampling_rate is None:
            _log.warning("sampling_rate is not given and taken for %d Hz; pass it", self.sampling_rate)
        elif sampling_rate != self.sampling_rate:
            raise ValueError(
                f"the audio has {sampling_rate} Hz, expected {self.sampling_rate}; resample it before"
            )
        rows = self._rows(raw_speech)
        masked = self.return_attention_mask if return_attention_mask is None else return_attention_mask
        strategy = padding_strategy(padding, max_length)
        rows = [row[: kept_length(max_length, truncation, pad_to_multiple_of)] for row in rows]
        lengths = [len(row) for row in rows]
        if self.do_normalize and masked:
            rows = [zero_mean_unit_variance(row) for row in rows]
        length = padded_length(strategy, lengths, max_length, pad_to_multiple_of)
        rows = [fill(row, length, self.padding_value) for row in rows]
        if self.do_normalize and not masked:
            rows = [zero_mean_unit_variance(row) for row in rows]
        features = BatchFeature(input_values=rows)
        if masked:
            features["attention_mask"] = [fill(np.ones(n, np.int32), length, 0) for n in lengths]
        return convert(features, return_tensors)

    def pad(
        self,
        features: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        padding: bool | str = True,
        *,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Pads features that were made one by one, without scaling them again.

        Args:
            features: Columns of rows, or a list of rows; ``input_values`` and ``attention_mask`` are padded,
                other columns are passed on.
            padding: As of calling the extractor, and the options after it.
            max_length: See ``padding``.
            truncation: See ``padding``.
            pad_to_multiple_of: See ``padding``.
            return_attention_mask: See ``padding``.
            return_tensors: ``np`` or ``pt``; null: ``pt`` where the values are tensors, else ``np``.

        Raises:
            ValueError: There are no ``input_values``, or as of calling the extractor.
        """
        masked = self.return_attention_mask if return_attention_mask is None else return_attention_mask
        return pad_features(
            features,
            "input_values",
            padding_value=self.padding_value,
            padding=padding,
            max_length=max_length,
            truncation=truncation,
            pad_to_multiple_of=pad_to_multiple_of,
            return_attention_mask=masked,
            return_tensors=return_tensors,
        )

    def _rows(self, raw_speech: Any) -> list[NDArray[np.float32]]:
        is_list = isinstance(raw_speech, list | tuple)
        if is_list and len(raw_speech) and np.ndim(raw_speech[0]) > 0:
            rows = [as_float32(row) for row in raw_speech]
        else:
            rows = [as_float32(raw_speech)]
            if rows[0].ndim == (2 if self.feature_size == 1 else 3):
                rows = list(rows[0])
        wanted = 1 if self.feature_size == 1 else 2
        for row in rows:
            if row.ndim != wanted or (wanted == 2 and row.shape[1] != self.feature_size):
                expected = "(samples,)" if wanted == 1 else f"(steps, {self.feature_size})"
                raise ValueError(
                    f"a waveform has shape {row.shape}, expected {expected}; mix its channels to one"
                )
        return rows
