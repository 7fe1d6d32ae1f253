"""The encoder and its heads: segments of a shard in, log-probabilities, embeddings or scores of each out.

Segments are sorted by length and run in batches that fit a budget of seconds, padding included; the
model's results do not depend on what a segment is padded with. Segments of one language follow each other,
those of the language that is loaded first, so that adapters are exchanged no more often than needed. A batch
that fails is tried again one segment at a time, so that one bad segment costs itself alone.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from w2v_ray.audio.fbank import FRAME_LENGTH, FRAME_SHIFT
from w2v_ray.errors import EncodeError, ItemError, LanguageError, TooShortError
from w2v_ray.heads import Head
from w2v_ray.models.config import Wav2Vec2Config
from w2v_ray.processors import AutoFeatureExtractor
from w2v_ray.schema import (
    CLASS_SCORES,
    EMBEDDING,
    EMISSION_DTYPE,
    ENCODED,
    ERROR,
    FRAME_SCORES,
    SAMPLE_RATE_HZ,
    error_value,
)
from w2v_ray.stages.encode_config import EncodeConfig
from w2v_ray.stages.encoder_heads import EncoderHeads
from w2v_ray.stages.take_language import languages_of

__all__ = ["Encode", "plan_batches"]

logger = logging.getLogger(__name__)

Result = list[np.ndarray | None]  # what each head gives for a segment


class Encode:
    """Adds what the heads give to a table of segments and drops ``samples``.

    A head that transcribes gives ``log_probs`` and ``num_frames``, one that embeds ``embedding``, one that
    classifies ``class_scores``, and one of frames ``frame_scores`` and ``num_frames``.

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
        first = config.heads[0]
        self._extract = AutoFeatureExtractor.from_pretrained(first.model, revision=first.revision)
        options = {"dtype": config.dtype, "attn_implementation": config.attn_implementation}
        self._heads = EncoderHeads(config.heads, device=self._device, **options)
        encoder = self._heads.encoder
        self._input_name = encoder.main_input_name
        self._dtype = next(encoder.parameters()).dtype
        settings = encoder.config
        # Mel features are scaled by their variance over time, which one frame alone has not.
        self._shortest = (
            settings.receptive_samples if isinstance(settings, Wav2Vec2Config) else FRAME_LENGTH + FRAME_SHIFT
        )
        # Where features are much work, they are made where the model is.
        makes_features = self._input_name == "input_features"
        self._on_device: dict[str, Any] = {"device": self._device} if makes_features else {}

    def __call__(self, table: pa.Table) -> pa.Table:
        if self._num_threads is not None:
            # Here and not in the constructor: it holds for the calling thread, and Ray calls from another.
            torch.set_num_threads(self._num_threads)
        errors = table.column("error").to_pylist()
        waves: dict[int, np.ndarray] = {}
        results: list[Result | None] = [None] * len(errors)
        for row, buffer in enumerate(_buffers(table.column("samples"))):
            if errors[row] is not None:
                continue
            assert buffer is not None, "an item without an error has samples"
            waves[row] = np.frombuffer(buffer, np.float32)
            if len(waves[row]) == 0:  # segment_audio found nobody speaking in it
                results[row] = [None] * len(self._heads.heads)
                del waves[row]
            elif len(waves[row]) < self._shortest:
                error = TooShortError(
                    f"the segment has {len(waves[row])} samples, the encoder needs {self._shortest} for one "
                    "frame; nothing can be recognised in so short a sound"
                )
                errors[row] = error_value("encode", error)
                del waves[row]
        languages = languages_of(table)
        groups: dict[str | None, list[int]] = {}
        for row in waves:
            groups.setdefault(languages[row], []).append(row)
        for language in sorted(groups, key=lambda name: name != self._heads.language):  # that there is first
            for row, found in self._encode_group(language, {row: waves[row] for row in groups[language]}):
                if isinstance(found, ItemError):
                    errors[row] = error_value("encode", found)
                else:
                    results[row] = found
        table = table.drop_columns(["samples", "error"])
        for place, head in enumerate(self._heads.heads):
            values = [None if result is None else (result[place],) for result in results]
            for column, array in _columns(head, values):
                if column.name not in table.column_names:  # num_frames, of two heads
                    table = table.append_column(column, array)
        return table.append_column("error", pa.array(errors, ERROR))

    def _encode_group(
        self, language: str | None, waves: dict[int, np.ndarray]
    ) -> Iterator[tuple[int, Result | ItemError]]:
        """The rows of one language, batch after batch, with what each gives."""
        try:
            self._heads.use(language)
        except LanguageError as error:
            yield from ((row, error) for row in waves)
            return
        todo, lengths = list(waves), [len(wave) for wave in waves.values()]
        for batch in plan_batches(lengths, self._budget_s * SAMPLE_RATE_HZ, self._max_padding):
            rows = [todo[i] for i in batch]
            if self._before is not None:
                self._before(rows)
            yield from zip(rows, self._encode([waves[row] for row in rows]), strict=True)
            if self._report is not None:
                self._report(sum(lengths[i] for i in batch) / SAMPLE_RATE_HZ)

    def _encode(self, waves: Sequence[np.ndarray]) -> list[Result | ItemError]:
        try:
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

    @torch.inference_mode()
    def _forward(self, waves: Sequence[np.ndarray]) -> Iterator[Result | ItemError]:
        features = self._extract(
            list(waves),
            sampling_rate=SAMPLE_RATE_HZ,
            padding=True,
            return_attention_mask=True,
            return_tensors="pt",
            **self._on_device,
        )
        values = features[self._input_name].to(self._device, self._dtype)
        mask = features["attention_mask"].to(self._device)
        for first, *others in zip(*self._heads(values, mask), strict=True):
            failed = next((found for found in others if isinstance(found, EncodeError)), None)
            if isinstance(first, ItemError):
                yield first
            elif failed is not None:
                yield failed
            else:
                yield [first, *(None if isinstance(found, ItemError) else found for found in others)]


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


def _columns(
    head: Head, results: Sequence[tuple[np.ndarray | None] | None]
) -> Iterator[tuple[pa.Field, pa.Array]]:
    """What a head gives as columns; a result is None where the segment failed, (None,) where it has none."""
    found = [None if result is None else result[0] for result in results]
    if head.task in ("transcribe", "frames"):
        empty = np.zeros((0, 0), EMISSION_DTYPE)
        arrays = [None if r is None else empty if r[0] is None else r[0] for r in results]
        field = ENCODED[0] if head.task == "transcribe" else FRAME_SCORES
        yield field, pa.array([None if a is None else a.tobytes() for a in arrays], field.type)
        yield ENCODED[1], pa.array([None if a is None else len(a) for a in arrays], ENCODED[1].type)
    elif head.task == "classify":
        yield CLASS_SCORES, pa.array(found, CLASS_SCORES.type)
    else:
        numbers = pa.from_numpy_dtype(head.dtype)
        type_ = pa.list_(numbers, head.size)
        field = EMBEDDING.field("embedding").with_type(type_)
        vectors = np.zeros((len(found), head.size), head.dtype)
        for row, vector in enumerate(found):
            if vector is not None:
                vectors[row] = vector
        missing = pa.array([vector is None for vector in found], pa.bool_())
        values = pa.array(vectors.ravel(), numbers)
        yield field, pa.FixedSizeListArray.from_arrays(values, type=type_, mask=missing)
