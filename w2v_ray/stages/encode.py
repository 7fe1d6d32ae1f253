"""The encoder: segments of a shard in, log-probabilities of each out.

Segments are sorted by length and run in batches that fit a budget of seconds, padding included; the
model's results do not depend on what a segment is padded with. A batch that fails is tried again one
segment at a time, so that one bad segment costs itself alone.

torch is loaded by what encodes: the workers of other stages, which import this as well, start in half the
time and a third of the memory without it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from w2v_ray.errors import ConfigError, EncodeError, ItemError, TooShortError
from w2v_ray.models.config import Wav2Vec2Config
from w2v_ray.processors import AutoFeatureExtractor
from w2v_ray.schema import EMISSION_DTYPE, ENCODED, ERROR, SAMPLE_RATE_HZ, error_value

__all__ = ["Encode", "EncodeConfig", "plan_batches"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeConfig:
    """What the encoder computes, and with what."""

    model: str
    """A folder or hub id with a CTC head."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    device: str = "cpu"
    """A torch device: cpu, cuda or cuda:N."""
    attn_implementation: str = "sdpa"
    """The attention kernel."""
    dtype: str = "float32"
    """Of weights and activations; the softmax is in float32 always."""
    max_batch_seconds: float | None = None
    """Seconds in a batch, padding included; None: 240, or 8 on a CPU, where long segments are best alone."""
    max_padding: float = 0.1
    """Share of a batch that may be padding; on a CPU padding costs more than batching gains."""
    num_threads: int | None = None
    """CPU threads of torch; None: leave torch's default."""

    def __post_init__(self) -> None:
        if self.max_batch_seconds is not None and self.max_batch_seconds <= 0:
            raise ConfigError(f"max_batch_seconds is {self.max_batch_seconds}, expected above 0; try 30")
        if not 0 <= self.max_padding < 1:
            raise ConfigError(f"max_padding is {self.max_padding}, expected from 0 up to below 1; try 0.1")
        if self.num_threads is not None and self.num_threads < 1:
            raise ConfigError(f"num_threads is {self.num_threads}, expected at least 1; try 1")


class Encode:
    """Adds ``log_probs`` and ``num_frames`` to a table of segments and drops ``samples``.

    Args:
        config: What to load and how to run it.
        before: Called with the row numbers of each batch before anything is done with it.
        report: Called with the seconds of audio of each batch as it is done.

    Raises:
        CheckpointError: The model cannot be loaded.
    """

    def __init__(
        self,
        config: EncodeConfig,
        *,
        before: Callable[[Sequence[int]], None] | None = None,
        report: Callable[[float], None] | None = None,
    ) -> None:
        import torch

        from w2v_ray.audio.fbank import FRAME_LENGTH, FRAME_SHIFT
        from w2v_ray.models.auto import AutoModelForCTC

        self._before = before
        self._num_threads = config.num_threads
        self._device = torch.device(config.device)
        if self._device.type == "cpu":
            # oneDNN keeps a kernel for each of the last 1,024 shapes, and every segment has its own: 100 to
            # 500 MB that are of no use. Read when the process first needs one, so it is set here.
            os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "4")
        self._budget_s = config.max_batch_seconds or (8.0 if self._device.type == "cpu" else 240.0)
        self._max_padding = config.max_padding
        self._report = report
        self._extract = AutoFeatureExtractor.from_pretrained(config.model, revision=config.revision)
        self._model = AutoModelForCTC.from_pretrained(
            config.model,
            revision=config.revision,
            dtype=config.dtype,
            attn_implementation=config.attn_implementation,
        ).to(self._device)
        self._dtype = next(self._model.parameters()).dtype
        settings = self._model.config
        # Mel features are scaled by their variance over time, which one frame alone has not.
        self._shortest = (
            settings.receptive_samples if isinstance(settings, Wav2Vec2Config) else FRAME_LENGTH + FRAME_SHIFT
        )
        # Where features are much work, they are made where the model is.
        makes_features = self._model.main_input_name == "input_features"
        self._on_device: dict[str, Any] = {"device": self._device} if makes_features else {}

    def __call__(self, table: pa.Table) -> pa.Table:
        import torch

        if self._num_threads is not None:
            # Here and not in the constructor: it holds for the calling thread, and Ray calls from another.
            torch.set_num_threads(self._num_threads)
        errors = table.column("error").to_pylist()
        waves: dict[int, np.ndarray] = {}
        emissions: list[np.ndarray | None] = [None] * len(errors)
        for row, buffer in enumerate(_buffers(table.column("samples"))):
            if errors[row] is not None:
                continue
            assert buffer is not None, "an item without an error has samples"
            waves[row] = np.frombuffer(buffer, np.float32)
            if len(waves[row]) == 0:  # segment_audio found nobody speaking in it
                emissions[row] = np.zeros((0, 0), getattr(np, EMISSION_DTYPE))
                del waves[row]
            elif len(waves[row]) < self._shortest:
                error = TooShortError(
                    f"the segment has {len(waves[row])} samples, the encoder needs {self._shortest} for one "
                    "frame; nothing can be recognised in so short a sound"
                )
                errors[row] = error_value("encode", error)
                del waves[row]
        todo = list(waves)
        lengths = [len(wave) for wave in waves.values()]
        for batch in plan_batches(lengths, self._budget_s * SAMPLE_RATE_HZ, self._max_padding):
            rows = [todo[i] for i in batch]
            if self._before is not None:
                self._before(rows)
            for row, result in zip(rows, self._encode([waves[row] for row in rows]), strict=True):
                if isinstance(result, ItemError):
                    errors[row] = error_value("encode", result)
                else:
                    emissions[row] = result
            if self._report is not None:
                self._report(sum(lengths[i] for i in batch) / SAMPLE_RATE_HZ)
        table = table.drop_columns(["samples", "error"])
        columns = {
            ENCODED[0]: [None if e is None else e.tobytes() for e in emissions],
            ENCODED[1]: [None if e is None else len(e) for e in emissions],
        }
        for column, values in columns.items():
            table = table.append_column(column, pa.array(values, column.type))
        return table.append_column("error", pa.array(errors, ERROR))

    def _encode(self, waves: Sequence[np.ndarray]) -> list[np.ndarray | ItemError]:
        import torch

        try:
            with torch.inference_mode():
                return list(self._forward(waves))
        except torch.AcceleratorError:
            # After such an error every later call on this device fails too. Only a new process has a
            # working device again, and Ray starts one for an actor whose process has ended.
            logger.exception("the device failed; this worker ends so that a new one can take over")
            os._exit(1)
        except Exception as error:  # one segment must never cost its neighbours
            if len(waves) == 1:
                seconds = len(waves[0]) / SAMPLE_RATE_HZ
                reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
                if not isinstance(error, RuntimeError | MemoryError):
                    reason = f"{type(error).__name__}: {reason}"
                return [EncodeError(f"the encoder failed on a segment of {seconds:.1f} s: {reason}")]
        return [result for wave in waves for result in self._encode([wave])]

    def _forward(self, waves: Sequence[np.ndarray]) -> Iterator[np.ndarray | ItemError]:
        import torch

        features = self._extract(
            list(waves),
            sampling_rate=SAMPLE_RATE_HZ,
            padding=True,
            return_attention_mask=True,
            return_tensors="pt",
            **self._on_device,
        )
        values = features[self._model.main_input_name].to(self._device, self._dtype)
        mask = features["attention_mask"].to(self._device)
        # Said here, as a config.json can ask for more, or for a tuple.
        asked = {"output_attentions": False, "output_hidden_states": False, "return_dict": True}
        logits = self._model(values, mask, **asked).logits
        log_probs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
        finite = log_probs.isfinite().all(-1).cpu().numpy()
        emissions = log_probs.to(getattr(torch, EMISSION_DTYPE)).cpu().numpy()
        num_frames = self._model.base_model.num_frames(mask.sum(-1)).cpu().tolist()
        for row, frames in enumerate(num_frames):
            if finite[row, :frames].all():
                yield emissions[row, :frames]
            else:
                yield EncodeError("the encoder gave numbers that are not finite; try dtype float32")


def plan_batches(lengths: Sequence[int], budget: float, max_padding: float) -> Iterator[list[int]]:
    """Groups items of like length.

    Args:
        lengths: Of the items, in any unit.
        budget: The longest length times the number of items of a batch is at most this; an item
            above it is a batch of its own.
        max_padding: Share of that product which may be padding.

    Yields:
        Indices into ``lengths``, longest items first, each index once.
    """
    batch: list[int] = []
    total = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch:
            area = lengths[batch[0]] * (len(batch) + 1)
            if area > budget or area - total - lengths[index] > max_padding * area:
                yield batch
                batch, total = [], 0
        batch.append(index)
        total += lengths[index]
    if batch:
        yield batch


def _buffers(column: pa.ChunkedArray) -> Iterator[pa.Buffer | None]:
    """The values of a binary column without copying them."""
    for value in column:
        yield value.as_buffer()
