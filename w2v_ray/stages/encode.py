"""The encoder and its heads: segments of a shard in, log-probabilities, embeddings or scores of each out.

Segments are sorted by length and run end to end in batches that fit a budget of seconds; nothing is padded,
and what a segment gives does not depend on its neighbours. Segments of one language follow each other, those
of the language that is loaded first, so that adapters are exchanged no more often than needed. Where memory
ends, the budget is halved and the same segments are tried again, one that cannot fit in overlapping windows.
A batch that fails otherwise is tried again one segment at a time, so that one bad segment costs itself alone.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from w2v_ray.audio.fbank import FRAME_LENGTH, FRAME_SHIFT
from w2v_ray.audio.windows import Window, cut_windows, window_samples
from w2v_ray.encoder_config import float_dtype
from w2v_ray.errors import ConfigError, EncodeError, ItemError, LanguageError
from w2v_ray.models.packed import PackedOutput
from w2v_ray.models.products import has_fast_int8
from w2v_ray.processors import AutoFeatureExtractor
from w2v_ray.schema import (
    ERROR,
    SAMPLE_RATE_HZ,
    error_value,
)
from w2v_ray.stages.batches import Budget, attention_seconds, tried_budget
from w2v_ray.stages.encode_config import EncodeConfig
from w2v_ray.stages.encode_failures import encode_error, is_out_of_memory, needs_thread, too_short
from w2v_ray.stages.encoded_columns import columns_of
from w2v_ray.stages.encoder_heads import EncoderHeads, TopTokens
from w2v_ray.stages.take_language import languages_of

__all__ = ["Encode"]

logger = logging.getLogger(__name__)

_CPU_BUDGET_S = 16.0  # of which a product's rows are enough to be fast, and still fit the cache
_LONGEST_S = 300.0  # that is computed whole, where nothing is said
_WINDOW_S = 60.0
_LEAST_WINDOW_S = 5.0  # less hears too little to both sides

Result = list[np.ndarray | TopTokens | None]  # what each head gives for a segment


class Encode:
    """Adds what the heads give to a table of segments and drops ``samples``.

    A head that transcribes gives ``log_probs`` and ``num_frames``, and with the setting ``top_tokens`` the
    columns that say which tokens these are of, one that embeds ``embedding``, one that
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
        self._is_cuda = self._device.type == "cuda"
        self._ahead: list[np.ndarray] = []
        self._ready: dict[int, torch.Tensor] = {}
        self._thread: ThreadPoolExecutor | None = None  # None: that of who calls
        if self._device.type == "cpu":
            # oneDNN keeps a kernel for each of the last 1,024 shapes, and every segment has its own: 100 to
            # 500 MB that are of no use. These are enough for the layers of one batch, which are alike. Read
            # when the process first needs one, so it is set here.
            os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
        self._config = config
        self._report = report
        first = config.heads[0]
        self._extract = AutoFeatureExtractor.from_pretrained(first.model, revision=first.revision)
        int8 = config.dtype == "int8"
        if int8 and not has_fast_int8(self._device):
            raise ConfigError(
                f"dtype is 'int8', and device {config.device!r} has no instructions for it, without "
                "which it takes minutes for a second; choose float32, or bfloat16"
            )
        is_padded = config.reference_batch is not None
        dtype = float_dtype(config.dtype, on_gpu=self._device.type != "cpu")
        options = {"dtype": dtype, "attn_implementation": config.attn_implementation}
        self._heads = EncoderHeads(
            config.heads,
            device=self._device,
            int8=int8,
            padded=is_padded,
            top_tokens=config.top_tokens,
            **options,
        )
        encoder = self._heads.encoder
        self._input_name = encoder.main_input_name
        self._dtype = getattr(torch, dtype)
        settings = encoder.config
        # Where features are much work, they are made where the model is.
        makes_features = self._input_name == "input_features"
        self._on_device: dict[str, Any] = {"device": self._device} if makes_features else {}
        self._count_steps: Callable[[int], int] = getattr(self._extract, "num_steps", int)
        stride = getattr(self._extract, "stride", 1)
        self._hop = stride * FRAME_SHIFT if makes_features else settings.hop_samples
        # Mel features are scaled by their variance over time, which one frame alone has not.
        self._shortest = FRAME_LENGTH + FRAME_SHIFT if makes_features else settings.receptive_samples
        # An adapter may need several frames for one of its own.
        while not encoder.num_frames(self._num_inputs(self._shortest) // stride):
            self._shortest += self._hop
        self._last_hop = self._hop
        if settings.add_adapter:
            self._last_hop *= settings.adapter_stride**settings.num_adapter_layers
        self._window = None
        if config.chunk_length_s is not None:
            try:
                self._window = self._window_of(config.chunk_length_s, config.stride_length_s)
            except ValueError as error:
                raise ConfigError(str(error)) from None
            if self._window[0] < self._shortest:
                raise ConfigError(
                    f"chunk_length_s is {config.chunk_length_s}, expected at least the "
                    f"{self._shortest / SAMPLE_RATE_HZ} s of one frame; try 20"
                )
        self.budget_bytes: float | None = None
        """What a full batch took of a GPU's memory as it was tried out; None where it was not."""
        budget_s = config.max_batch_seconds or _CPU_BUDGET_S
        if config.max_batch_seconds is None and self._is_cuda and not is_padded:
            # With the heads: the scores of a large vocabulary are as large as a layer.
            budget_s, self.budget_bytes = tried_budget(
                lambda waves: self._heads(self._heads.encode(list(map(self._input, waves)))), self._device
            )
        self._budget = Budget(budget_s, quadratic_s=attention_seconds(settings))
        self.stats: dict[str, float] = {
            "batches": 0,
            "audio_s": 0.0,
            "padded_s": 0.0,
            "budget_s": self._budget.seconds,
        }
        """What was done since the model was loaded; seconds are of audio, those of padding apart."""
        self.attention = {"name": encoder.attn_implementation, "reason": encoder.attn_reason}
        """The kernel that was chosen, and why."""

    def __call__(self, table: pa.Table) -> pa.Table:
        self._set_threads()
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
            for column, array in columns_of(head, values, has_tops=self._config.top_tokens is not None):
                if column.name not in table.column_names:  # num_frames, of two heads
                    table = table.append_column(column, array)
        return table.append_column("error", pa.array(errors, ERROR))

    def _set_threads(self) -> None:
        if self._num_threads is not None:
            # Not in the constructor: it holds for the calling thread, and Ray calls from another.
            torch.set_num_threads(self._num_threads)

    def _encode_group(
        self, language: str | None, waves: dict[int, np.ndarray]
    ) -> Iterator[tuple[int, Result | ItemError]]:
        """The rows of one language, batch after batch, with what each gives."""
        try:
            self._heads.use(language)
        except LanguageError as error:
            yield from ((row, error) for row in waves)
            return
        # Longest first: where memory is too small, that shows at once.
        in_order = self._config.reference_batch is not None
        todo = list(waves) if in_order else sorted(waves, key=lambda row: -len(waves[row]))
        while todo:
            count = self._num_next([len(waves[row]) for row in todo])
            rows, todo = todo[:count], todo[count:]
            # Here, as they have a place in a padded batch of the reference, whose other rows stay the same.
            for row in [row for row in rows if len(waves[row]) < self._shortest]:
                yield row, too_short(waves[row], self._shortest)
                rows.remove(row)
            if not rows:
                continue
            if self._before is not None:
                self._before(rows)
            ahead = todo[: self._num_next([len(waves[row]) for row in todo])]
            self._ahead = [
                wave
                for wave in map(waves.__getitem__, ahead)
                if len(wave) >= self._shortest and self._window_for(wave) is None
            ]
            batch = [waves[row] for row in rows]
            yield from zip(rows, self._encode(batch), strict=True)
            self._count(batch)
        self._ahead, self._ready = [], {}

    def _num_next(self, lengths: Sequence[int]) -> int:
        """How many segments of these lengths are computed together next."""
        if self._config.reference_batch is not None:
            return self._config.reference_batch
        if self._config.deterministic:
            return 1
        return self._budget.next_batch([length / SAMPLE_RATE_HZ for length in lengths])

    def _count(self, waves: Sequence[np.ndarray]) -> None:
        audio_s = sum(map(len, waves)) / SAMPLE_RATE_HZ
        self.stats["batches"] += 1
        self.stats["audio_s"] += audio_s
        if self._config.reference_batch is not None:
            self.stats["padded_s"] += max(map(len, waves)) * len(waves) / SAMPLE_RATE_HZ - audio_s
        if self._report is not None:
            self._report(audio_s)

    def _encode(
        self,
        waves: Sequence[np.ndarray],
        window: tuple[int, int, int] | None = None,
        *,
        padded: int = 0,
        again: bool = False,
    ) -> list[Result | ItemError]:
        """What each of them gives, in windows or padded to so many samples if any are named."""
        padded = max(padded, *map(len, waves))
        try:
            if self._thread is not None:
                return self._thread.submit(self._forward, waves, window, padded).result()
            return self._forward(waves, window, padded)
        except torch.AcceleratorError:
            # After such an error every later call on this device fails too. Only a new process has a
            # working device again, and Ray starts one for an actor whose process has ended.
            logger.exception("the device failed; this worker ends so that a new one can take over")
            os._exit(1)
        except Exception as error:  # one segment must never cost its neighbours
            memory_ended, thread_ended = is_out_of_memory(error), needs_thread(error)
            failed = encode_error(waves[0], error)
        # Outside of the handler, as the error holds on to what took the memory.
        self._ahead, self._ready = [], {}
        if memory_ended and self._is_cuda:
            torch.cuda.empty_cache()
        if thread_ended:
            self._thread = ThreadPoolExecutor(1, "encode", self._set_threads)
        if memory_ended and len(waves) == 1 and not again:  # others may have had it, for a moment
            return self._encode(waves, window, padded=padded, again=True)
        if memory_ended and self._config.reference_batch is None:
            return self._encode_less(waves, window, failed)
        if len(waves) == 1:
            return [failed]
        # Rows of a padded batch stay as long as they were in it, and so their numbers are the same.
        return [result for wave in waves for result in self._encode([wave], padded=padded)]

    def _encode_less(
        self, waves: Sequence[np.ndarray], window: tuple[int, int, int] | None, failed: EncodeError
    ) -> list[Result | ItemError]:
        """The same segments in smaller batches, and one alone in windows, each half of the one before."""
        seconds = [len(wave) / SAMPLE_RATE_HZ for wave in waves]
        if len(waves) > 1:
            self._budget.halve(seconds)
            self.stats["budget_s"] = self._budget.seconds
            logger.warning("out of memory; batches are of %.0f s from here on", self._budget.seconds)
            results: list[Result | ItemError] = []
            while len(results) < len(waves):
                begin = len(results)
                results += self._encode(
                    waves[begin : begin + self._num_next([len(w) for w in waves[begin:]])]
                )
            return results
        window = window or self._window_for(waves[0])
        window_s = (seconds[0] if window is None else window[0] / SAMPLE_RATE_HZ) / 2
        return (
            [failed] if window_s < _LEAST_WINDOW_S else self._encode(waves, self._window_of(window_s, None))
        )

    @torch.inference_mode()
    def _forward(
        self, waves: Sequence[np.ndarray], window: tuple[int, int, int] | None, padded: int
    ) -> list[Result | ItemError]:
        if self._config.reference_batch is not None:
            outputs = self._encode_padded(waves, padded)
        else:
            windows = [window or self._window_for(wave) for wave in waves]
            whole = [wave for wave, cut in zip(waves, windows, strict=True) if cut is None]
            found = iter(self._heads.encode([self._input(wave) for wave in whole]) if whole else ())
            # While the device computes, what comes next goes to its memory.
            self._make_ready()
            outputs = [
                next(found) if cut is None else self._encode_windows(wave, *cut)
                for wave, cut in zip(waves, windows, strict=True)
            ]
        results: list[Result | ItemError] = []
        for first, *others in zip(*self._heads(outputs), strict=True):
            failed = next((one for one in others if isinstance(one, EncodeError)), None)
            if isinstance(first, ItemError):
                results.append(first)
            elif failed is not None:
                results.append(failed)
            else:
                results.append([first, *(None if isinstance(one, ItemError) else one for one in others)])
        return results

    def _make_ready(self) -> None:
        """Makes what the next batch hears, on a GPU; where that fails, it is told when its turn comes."""
        for wave in self._ahead if self._is_cuda else ():
            try:
                self._ready[id(wave)] = self._input(wave)
            except Exception:
                return

    def _encode_padded(self, waves: Sequence[np.ndarray], num_samples: int) -> list[PackedOutput]:
        features = self._extract(
            list(waves),
            sampling_rate=SAMPLE_RATE_HZ,
            padding="max_length",
            max_length=self._num_inputs(num_samples),
            return_tensors="pt",
            **self._on_device,
        )
        values = features[self._input_name].to(self._device, self._dtype)
        mask = features.get("attention_mask")
        return self._heads.encode_padded(values, None if mask is None else mask.to(self._device))

    def _num_inputs(self, num_samples: int) -> int:
        """What the extractor counts of so many samples: they themselves, or frames of mel bins."""
        if self._input_name == "input_values":
            return num_samples
        return 1 + (num_samples - FRAME_LENGTH) // FRAME_SHIFT

    def _encode_windows(self, wave: np.ndarray, length: int, left: int, right: int) -> PackedOutput:
        """What the encoder gives for a segment whose windows are computed one after another and joined."""
        kept: list[PackedOutput] = []
        whole = self._input(wave) if self._config.normalize == "segment" else None
        windows = list(cut_windows(len(wave), length, left, right))
        if windows[-1].end - windows[-1].start < self._shortest and len(windows) > 1:
            # Less than a frame, so the window before it goes on to the end.
            windows.pop()
            windows[-1] = Window(windows[-1].start, len(wave), windows[-1].left, 0)
        for window in windows:
            if whole is None:
                piece = self._input(wave[window.start : window.end])
            elif self._input_name == "input_values":
                piece = whole[window.start : window.end]
            else:
                piece = whole[window.start // self._hop : round(window.end / self._hop)]
            (output,) = self._heads.encode([piece])
            last, layers = window.kept(self._last_hop), window.kept(self._hop)
            kept.append(PackedOutput(output.last[last], tuple(layer[layers] for layer in output.layers)))
        layers_of_all = zip(*(output.layers for output in kept), strict=True)
        return PackedOutput(torch.cat([output.last for output in kept]), tuple(map(torch.cat, layers_of_all)))

    def _window_for(self, wave: np.ndarray) -> tuple[int, int, int] | None:
        """The samples of a window and its strides, for a segment that is too long to be computed whole."""
        if self._window is not None:
            return self._window if len(wave) > self._window[0] else None
        return self._window_of(_WINDOW_S, None) if len(wave) > _LONGEST_S * SAMPLE_RATE_HZ else None

    def _window_of(self, chunk_s: float, stride_s: float | Sequence[float] | None) -> tuple[int, int, int]:
        return window_samples(chunk_s, stride_s, rate=SAMPLE_RATE_HZ, hop=self._last_hop)

    def _input(self, samples: np.ndarray) -> torch.Tensor:
        """What the encoder hears of these samples, on its device; the host waits for none of it."""
        if (ready := self._ready.pop(id(samples), None)) is not None:
            return ready
        audio: Any = samples
        if self._on_device and self._is_cuda:
            audio = torch.from_numpy(samples.copy()).pin_memory().to(self._device, non_blocking=True)
        features = self._extract(
            audio,
            sampling_rate=SAMPLE_RATE_HZ,
            return_attention_mask=False,
            return_tensors="pt",
            **self._on_device,
        )
        # Said by the length and not by a mask, which would have to come from the device.
        length = self._count_steps(len(samples))
        values: torch.Tensor = features[self._input_name][0][:length].to(self._dtype)
        if self._is_cuda and values.device.type == "cpu":
            values = values.pin_memory()
        return values.to(self._device, non_blocking=True)


def _buffers(column: pa.ChunkedArray) -> Iterator[pa.Buffer | None]:
    """The values of a binary column without copying them."""
    for value in column:
        yield value.as_buffer()
