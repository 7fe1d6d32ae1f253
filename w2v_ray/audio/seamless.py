"""The feature extractor of Wav2Vec2-BERT: log-mel frames, scaled per mel bin and stacked in pairs.

All of it is torch, on the device of the audio or the one asked for, a batch at a time; arrays are only how
it may come in and go out.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from w2v_ray.audio.padding import (
    BatchFeature,
    is_tensor,
    kept_length,
    pad_features,
    padded_length,
    padding_strategy,
)
from w2v_ray.audio.settings import checked_settings, read_settings, write_settings
from w2v_ray.errors import CheckpointError, TooShortError
from w2v_ray.hub import upload_saved

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["SeamlessM4TFeatureExtractor"]

_log = logging.getLogger(__name__)

_TYPE = "SeamlessM4TFeatureExtractor"
_SETTINGS: dict[str, tuple[type, ...]] = {
    "feature_size": (int,),
    "sampling_rate": (int,),
    "num_mel_bins": (int,),
    "padding_value": (int, float),
    "stride": (int,),
    "return_attention_mask": (bool,),
}


class SeamlessM4TFeatureExtractor:
    """Makes the ``input_features`` of Wav2Vec2-BERT from waveforms.

    Args:
        feature_size: Values per frame before stacking; kept for the files alone.
        sampling_rate: Of the audio that the model was trained on, in Hz. Frames are 400 samples long and
            160 apart at any rate.
        num_mel_bins: Mel bins of a frame.
        padding_value: What shorter rows are filled up with.
        stride: Frames that are stacked to one step of the input: ``stride * num_mel_bins`` values.
        return_attention_mask: Whether to say by default which steps are audio.

    Raises:
        ValueError: A setting is out of bounds.
    """

    model_input_names = ("input_features", "attention_mask")

    def __init__(
        self,
        feature_size: int = 80,
        sampling_rate: int = 16_000,
        num_mel_bins: int = 80,
        padding_value: float = 0.0,
        stride: int = 2,
        *,
        return_attention_mask: bool = True,
    ) -> None:
        self.feature_size = feature_size
        self.sampling_rate = sampling_rate
        self.num_mel_bins = num_mel_bins
        self.padding_value = padding_value
        self.stride = stride
        self.return_attention_mask = return_attention_mask
        for name in ("feature_size", "sampling_rate", "num_mel_bins", "stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a whole number from 1")

    @classmethod
    def from_pretrained(
        cls, model: str | PathLike[str], *, revision: str | None = None, **overrides: Any
    ) -> SeamlessM4TFeatureExtractor:
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
        padding: bool | str = True,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = 2,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        do_normalize_per_mel_bins: bool = True,
        device: str | torch.device | None = None,
    ) -> BatchFeature:
        """Makes a batch of one or more waveforms. No row depends on its neighbours.

        Args:
            raw_speech: One waveform, shape (samples,), or several: an array or tensor of shape
                (rows, samples) or a list of arrays, lists of floats or tensors. Of a row of shape
                (channels, samples) the first channel is taken. Full scale is 1.
            sampling_rate: Of ``raw_speech``, in Hz; null is taken for the model's, with a warning in the log.
            padding: True or ``longest``, ``max_length``, false or ``do_not_pad``.
            max_length: Frames, before they are stacked, that rows are cut or filled up to.
            truncation: Whether to cut longer rows.
            pad_to_multiple_of: Rounds ``max_length`` and padded lengths up, in frames too. Frames beyond a
                multiple of ``stride`` are dropped.
            return_attention_mask: Whether to add 1 for steps of audio and 0 for padding; null: as set. A
                step counts as audio if its second frame does.
            return_tensors: ``np`` or ``pt``; null: ``np``.
            do_normalize_per_mel_bins: Whether each mel bin of a row is scaled to zero mean and unit variance.
            device: Where to compute, and where tensors are returned; null: where the audio is.

        Returns:
            ``input_features`` (float32), shape (rows, steps, ``stride * num_mel_bins``), and, if asked for,
            ``attention_mask`` (int32), shape (rows, steps).

        Raises:
            TooShortError: A waveform has fewer samples than a frame, or fewer than two frames to scale.
            ValueError: The rate is another, a row has no such shape, options contradict each other, or rows
                of different lengths are not padded.
        """
        from w2v_ray.audio.fbank import log_mel

        if return_tensors not in ("np", "pt", None):
            raise ValueError(f"return_tensors is {return_tensors!r}, expected 'np', 'pt' or null for arrays")
        if sampling_rate is None:
            _log.warning("sampling_rate is not given and taken for %d Hz; pass it", self.sampling_rate)
        elif sampling_rate != self.sampling_rate:
            raise ValueError(
                f"the audio has {sampling_rate} Hz, expected {self.sampling_rate}; resample it before"
            )
        strategy = padding_strategy(padding, max_length)
        kept = kept_length(max_length, truncation, pad_to_multiple_of)
        waveforms = _waveforms(raw_speech, device)
        _check_lengths(waveforms, num_frames=2 if do_normalize_per_mel_bins else 1)
        rows = log_mel(waveforms, num_mel_bins=self.num_mel_bins, sampling_rate=self.sampling_rate)
        if do_normalize_per_mel_bins:
            for row in rows:  # in place: the bins of an hour are 230 MB
                mean, deviation = row.mean(0), (row.var(0) + 1e-7).sqrt()
                row.sub_(mean).div_(deviation)
        rows = [row[:kept] for row in rows]
        lengths = [len(row) for row in rows]
        length = padded_length(strategy, lengths, max_length, pad_to_multiple_of)
        lengths = [max(n, length) for n in lengths]
        if len(set(lengths)) > 1:
            raise ValueError(
                f"rows have {min(lengths)} to {max(lengths)} frames and cannot be stacked; pass padding=True"
            )
        batch = self._stack(rows, lengths[0])
        features = BatchFeature(input_features=batch)
        if self.return_attention_mask if return_attention_mask is None else return_attention_mask:
            features["attention_mask"] = self._mask(rows, batch)
        if return_tensors != "pt":
            for name, value in features.items():
                features[name] = value.cpu().numpy()
        return features

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
        """Pads features that were made one by one, on the CPU.

        Args:
            features: Columns of rows, or a list of rows; ``input_features`` (steps, values) and
                ``attention_mask`` are padded, other columns are passed on.
            padding: As of calling the extractor, and the options after it; lengths are in steps.
            max_length: See ``padding``.
            truncation: See ``padding``.
            pad_to_multiple_of: See ``padding``.
            return_attention_mask: See ``padding``.
            return_tensors: ``np`` or ``pt``; null: ``pt`` where the values are tensors, else ``np``.

        Raises:
            ValueError: There are no ``input_features``, or as of calling the extractor.
        """
        masked = self.return_attention_mask if return_attention_mask is None else return_attention_mask
        return pad_features(
            features,
            "input_features",
            padding_value=self.padding_value,
            padding=padding,
            max_length=max_length,
            truncation=truncation,
            pad_to_multiple_of=pad_to_multiple_of,
            return_attention_mask=masked,
            return_tensors=return_tensors,
        )

    def num_steps(self, num_samples: int) -> int:
        """The steps that count as audio, of a waveform of so many samples that is not cut."""
        from w2v_ray.audio.fbank import num_frames

        frames = num_frames(num_samples)
        even = -(-frames // 2) * 2  # as rows are padded
        return min(even // self.stride, -(-(frames - self._counted) // self.stride)) if frames else 0

    @property
    def _counted(self) -> int:
        """The frame that a step counts by: of a pair the second, so that one half padding is left out."""
        return min(1, self.stride - 1)

    def _stack(self, rows: list[Tensor], length: int) -> Tensor:
        """Rows filled up to a length, and their frames stacked to steps."""
        import torch

        shape = len(rows), length, self.num_mel_bins
        batch = rows[0].new_full(shape, self.padding_value, dtype=torch.float32)
        for index, row in enumerate(rows):
            batch[index, : len(row)] = row
        steps = length // self.stride
        return batch[:, : steps * self.stride].reshape(len(rows), steps, self.stride * self.num_mel_bins)

    def _mask(self, rows: list[Tensor], batch: Tensor) -> Tensor:
        """Which steps of a batch are of their row, and no padding."""
        import torch

        counted = torch.arange(batch.shape[1]) * self.stride + self._counted
        mask = counted < torch.tensor([len(row) for row in rows])[:, None]
        return mask.to(device=batch.device, dtype=torch.int32)


def _waveforms(raw_speech: Any, device: str | torch.device | None) -> list[Tensor]:
    if isinstance(raw_speech, list | tuple):
        first = raw_speech[0] if raw_speech else 0.0
        several = isinstance(first, list | tuple) or np.ndim(first) > 0
    else:
        several = np.ndim(raw_speech) > 1
    return [_waveform(row, device) for row in (raw_speech if several else [raw_speech])]


def _waveform(row: Any, device: str | torch.device | None) -> Tensor:
    import torch

    # Arrays are copied: torch takes none that is read-only.
    tensor = row.detach() if is_tensor(row) else torch.from_numpy(np.array(row, dtype=np.float32))
    if tensor.ndim not in (1, 2):
        raise ValueError(
            f"a waveform has shape {tuple(tensor.shape)}, expected (samples,) or (channels, samples)"
        )
    return (tensor if tensor.ndim == 1 else tensor[0]).to(device=device, dtype=torch.float32)


def _check_lengths(waveforms: Sequence[Tensor], *, num_frames: int) -> None:
    from w2v_ray.audio.fbank import FRAME_LENGTH, FRAME_SHIFT

    needed = FRAME_LENGTH + (num_frames - 1) * FRAME_SHIFT
    for waveform in waveforms:
        if len(waveform) < needed:
            raise TooShortError(
                f"the audio has {len(waveform)} samples, expected at least {needed}, which make {num_frames} "
                f"frame{'s' if num_frames > 1 else ''}; leave it out of the batch"
            )
