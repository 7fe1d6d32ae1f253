"""The feature extractor of wav2vec 2.0: waveforms cut, padded, scaled and stacked for the model.

It takes samples at the model's rate and refuses another rate: it never resamples.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from w2v_ray.errors import CheckpointError, EmptyAudioError, OutputError
from w2v_ray.hub import checkpoint_file, read_json_file

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


class BatchFeature(dict[str, Any]):
    """Features by name; each name is an attribute too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def to(self, device: Any = None, dtype: Any = None, *, non_blocking: bool = False) -> BatchFeature:
        """Moves tensors to a device, and those of floats to a dtype, in place; other values stay.

        Either may be given alone: ``to("cuda")``, ``to(torch.float16)``.
        """
        import torch

        if isinstance(device, torch.dtype):
            device, dtype = None, device
        for name, value in self.items():
            if isinstance(value, torch.Tensor):
                kind = dtype if value.is_floating_point() else None
                self[name] = value.to(device=device, dtype=kind, non_blocking=non_blocking)
        return self


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
        raw, path = _read_settings(str(model), revision)
        found = raw.get("feature_extractor_type")
        if found not in (None, _TYPE):
            raise CheckpointError(
                f"{path} says feature_extractor_type {found!r}, expected {_TYPE!r}; "
                "name a checkpoint that takes waveforms"
            )
        if raw.get("padding_side", "right") != "right":
            raise CheckpointError(f"{path} says padding_side {raw['padding_side']!r}, expected 'right'")
        settings = {}
        for name, types in _SETTINGS.items():
            if name not in raw:
                continue
            if not isinstance(raw[name], types) or (isinstance(raw[name], bool) and bool not in types):
                expected = " or ".join(kind.__name__ for kind in types)
                raise CheckpointError(
                    f"{path} says {name} {raw[name]!r}, expected {expected}; correct the file"
                )
            settings[name] = raw[name]
        try:
            return cls(**(settings | overrides))
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}; correct the file") from error

    def save_pretrained(
        self, save_directory: str | PathLike[str], *, processor_class: str | None = None
    ) -> tuple[str, ...]:
        """Writes ``preprocessor_config.json``, which transformers reads too, and returns its path.

        Raises:
            OutputError: ``save_directory`` is a file.
        """
        folder = Path(save_directory)
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder} is a file; name a folder to save the feature extractor in")
        folder.mkdir(parents=True, exist_ok=True)
        settings = self.to_dict() | ({"processor_class": processor_class} if processor_class else {})
        path = folder / "preprocessor_config.json"
        path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        return (str(path),)

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
        strategy = self._strategy(padding, max_length)
        rows = [row[: _limit(max_length, truncation, pad_to_multiple_of)] for row in rows]
        lengths = [len(row) for row in rows]
        if self.do_normalize and masked:
            rows = [zero_mean_unit_variance(row) for row in rows]
        length = _padded_length(strategy, lengths, max_length, pad_to_multiple_of)
        rows = [_fill(row, length, self.padding_value) for row in rows]
        if self.do_normalize and not masked:
            rows = [zero_mean_unit_variance(row) for row in rows]
        features = BatchFeature(input_values=rows)
        if masked:
            features["attention_mask"] = [_fill(np.ones(n, np.int32), length, 0) for n in lengths]
        return _convert(features, return_tensors)

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
        columns: Mapping[str, Any] = (
            features
            if isinstance(features, Mapping)
            else {name: [row[name] for row in features] for name in (features[0] if features else {})}
        )
        if "input_values" not in columns:
            raise ValueError(
                f"the features have {', '.join(columns) or 'nothing'}, expected input_values to pad"
            )
        values = columns["input_values"]
        if any(len(column) != len(values) for column in columns.values()):
            raise ValueError(
                f"the features have columns of different lengths, expected {len(values)} rows in each"
            )
        masked = self.return_attention_mask if return_attention_mask is None else return_attention_mask
        if not len(values):
            return BatchFeature(dict(columns) | ({"attention_mask": []} if masked else {}))
        return_tensors = return_tensors or ("pt" if _is_tensor(values) or _is_tensor(values[0]) else "np")
        strategy = self._strategy(padding, max_length)
        limit = _limit(max_length, truncation, pad_to_multiple_of)
        rows = [_float32(row)[:limit] for row in values]
        lengths = [len(row) for row in rows]
        length = _padded_length(strategy, lengths, max_length, pad_to_multiple_of)
        padded = BatchFeature({name: [np.asarray(row) for row in column] for name, column in columns.items()})
        padded["input_values"] = [_fill(row, length, self.padding_value) for row in rows]
        if "attention_mask" in columns:
            padded["attention_mask"] = [_fill(mask[:limit], length, 0) for mask in padded["attention_mask"]]
        elif masked:
            padded["attention_mask"] = [_fill(np.ones(n, np.int32), length, 0) for n in lengths]
        return _convert(padded, return_tensors)

    def _rows(self, raw_speech: Any) -> list[NDArray[np.float32]]:
        is_list = isinstance(raw_speech, list | tuple)
        if is_list and len(raw_speech) and np.ndim(raw_speech[0]) > 0:
            rows = [_float32(row) for row in raw_speech]
        else:
            rows = [_float32(raw_speech)]
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

    def _strategy(self, padding: bool | str, max_length: int | None) -> str:
        strategy = ("longest" if padding else "do_not_pad") if isinstance(padding, bool) else padding
        if strategy not in ("longest", "max_length", "do_not_pad"):
            raise ValueError(
                f"padding is {padding!r}, expected true, false, 'longest', 'max_length' or 'do_not_pad'"
            )
        if strategy == "max_length" and max_length is None:
            raise ValueError("padding is 'max_length' and max_length is not given; pass it")
        return strategy


def _read_settings(model: str, revision: str | None) -> tuple[dict[str, Any], Path]:
    # transformers 5 saves the settings inside those of the processor, which win where both are present.
    path = checkpoint_file(model, "processor_config.json", revision=revision, required=False)
    nested = read_json_file(path).get("feature_extractor") if path else None
    if path and nested is not None:
        if not isinstance(nested, dict):
            raise CheckpointError(
                f"{path} says feature_extractor {nested!r}, expected an object; correct the file"
            )
        return nested, path
    path = checkpoint_file(model, "preprocessor_config.json", revision=revision)
    assert path is not None  # it is required
    return read_json_file(path), path


def _limit(max_length: int | None, truncation: bool, pad_to_multiple_of: int | None) -> int | None:
    if not truncation:
        return None
    if max_length is None:
        raise ValueError("truncation is on and max_length is not given; pass it")
    return _round_up(max_length, pad_to_multiple_of)


def _padded_length(strategy: str, lengths: list[int], max_length: int | None, multiple: int | None) -> int:
    if strategy == "do_not_pad":
        return 0
    return _round_up(max(lengths) if max_length is None or strategy == "longest" else max_length, multiple)


def _round_up(length: int, multiple: int | None) -> int:
    return -(-length // multiple) * multiple if multiple else length


def _fill(row: NDArray[Any], length: int, value: float) -> NDArray[Any]:
    missing = max(0, length - len(row))
    return np.pad(row, [(0, missing)] + [(0, 0)] * (row.ndim - 1), constant_values=value)


def _float32(values: Any) -> NDArray[np.float32]:
    return np.asarray(values.detach().cpu() if _is_tensor(values) else values, dtype=np.float32)


def _is_tensor(value: object) -> bool:
    torch = sys.modules.get("torch")  # where it was never loaded, nothing is a tensor
    return torch is not None and isinstance(value, torch.Tensor)


def _convert(features: BatchFeature, return_tensors: str | None) -> BatchFeature:
    if return_tensors not in ("np", "pt", None):
        raise ValueError(f"return_tensors is {return_tensors!r}, expected 'np', 'pt' or null for lists")
    for name, rows in features.items() if return_tensors else ():
        if len({np.shape(row) for row in rows}) == 1:
            array = np.stack(rows)
        elif return_tensors == "pt":
            raise ValueError(
                f"{name} has rows of different lengths; pass padding=True to make a tensor of them"
            )
        else:
            array = np.empty(len(rows), dtype=object)
            array[:] = rows
        if return_tensors == "pt":
            import torch

            features[name] = torch.from_numpy(array)
        else:
            features[name] = array
    return features
