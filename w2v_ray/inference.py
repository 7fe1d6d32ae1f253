"""The local pipeline: audio in, text or labels out, in one process and without Ray.

It gives what transformers' pipeline of the same name gives for the same checkpoint, with one difference:
a recording's result never depends on what it shares a batch with.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from os import PathLike
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence

from w2v_ray.audio.fbank import FRAME_SHIFT
from w2v_ray.audio.recordings import read_recording
from w2v_ray.errors import ConfigError, EmptyAudioError, TooShortError
from w2v_ray.hub import checkpoint_file
from w2v_ray.models.auto import AutoModelForAudioClassification, AutoModelForCTC
from w2v_ray.processors import AutoFeatureExtractor, AutoTokenizer

__all__ = ["AudioClassificationPipeline", "AutomaticSpeechRecognitionPipeline", "pipeline"]

_log = logging.getLogger(__name__)

Output = TypeVar("Output")

_ONE_RECORDING = (str, bytes, bytearray, memoryview, PathLike, Mapping, np.ndarray, torch.Tensor)
_LANGUAGE_MODEL = "alphabet.json"  # lies beside the n-grams of checkpoints that have them


@dataclass(frozen=True, slots=True)
class _Piece:
    """What the model hears at once: a recording or a chunk of one."""

    samples: NDArray[np.float32]
    stride: tuple[int, int] | None = None  # samples at its ends that are not kept
    extra: dict[str, Any] = field(default_factory=dict)
    is_last: bool = True  # of its recording


def pipeline(
    task: str,
    model: Any,
    *,
    feature_extractor: Any = None,
    tokenizer: Any = None,
    revision: str | None = None,
    device: int | str | torch.device | None = None,
    device_map: str | None = None,
    dtype: torch.dtype | str = "auto",
    torch_dtype: torch.dtype | str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> Any:
    """Loads what a task needs from one checkpoint.

    Args:
        task: ``automatic-speech-recognition`` or ``audio-classification``.
        model: A folder, a hub id, or a loaded model; with a loaded one the feature extractor, and for
            recognition the tokenizer, must be given too.
        feature_extractor: Another one than the checkpoint's, loaded or by name.
        tokenizer: Another one than the checkpoint's, loaded or by name.
        revision: Branch, tag or commit of a hub id.
        device: A torch device, the number of a GPU, or -1 for the CPU; null: a GPU where there is one. A
            loaded model stays where it is unless this is given.
        device_map: Instead of ``device``, as of the model's ``from_pretrained``.
        dtype: Of the weights in memory; ``auto`` takes the one they are stored in.
        torch_dtype: The older name of ``dtype``.
        model_kwargs: Further arguments of the model's ``from_pretrained``, such as ``attn_implementation``
            or ``target_lang``, which the tokenizer is set to as well.
        options: What ``AutomaticSpeechRecognitionPipeline`` or ``AudioClassificationPipeline`` takes.

    Returns:
        An object of one of these classes.

    Raises:
        CheckpointError: The checkpoint lacks a file, or is none for the task.
        ConfigError: There is no such task, or a part is missing.
    """
    if task not in ("automatic-speech-recognition", "audio-classification"):
        raise ConfigError(
            f"task is {task!r}, expected 'automatic-speech-recognition' or 'audio-classification'; "
            "choose one of these"
        )
    if device is not None and device_map is not None:
        raise ConfigError(f"device is {device!r} and device_map {device_map!r}; give one of the two")
    recognises = task == "automatic-speech-recognition"
    wanted = {"dtype": dtype if torch_dtype is None else torch_dtype} | dict(model_kwargs or {})
    is_name = isinstance(model, str | PathLike)
    if is_name:
        source, loader = model, AutoModelForCTC if recognises else AutoModelForAudioClassification
        wanted.setdefault("device_map", _device(device) if device_map is None else device_map)
        model = loader.from_pretrained(source, revision=revision, **wanted)
        if recognises and checkpoint_file(source, _LANGUAGE_MODEL, revision=revision, required=False):
            _log.warning("the language model of %s is not used: text is decoded greedily", source)
        feature_extractor = source if feature_extractor is None else feature_extractor
        tokenizer = source if tokenizer is None else tokenizer
    elif feature_extractor is None or (recognises and tokenizer is None):
        raise ConfigError(
            "model is a loaded one, which does not say where its feature extractor and tokenizer are; "
            "pass feature_extractor" + (" and tokenizer" if recognises else "")
        )
    if isinstance(feature_extractor, str | PathLike):
        feature_extractor = AutoFeatureExtractor.from_pretrained(feature_extractor, revision=revision)
    if not is_name and device is not None:
        model.to(_device(device))
    model.eval()
    if not recognises:
        return AudioClassificationPipeline(model, feature_extractor, **options)
    if isinstance(tokenizer, str | PathLike):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer, revision=revision)
    if wanted.get("target_lang") is not None:
        tokenizer.set_target_lang(wanted["target_lang"])
    return AutomaticSpeechRecognitionPipeline(model, feature_extractor, tokenizer, **options)


class AutomaticSpeechRecognitionPipeline:
    """Reads recordings as text, by the best character of each frame.

    The options may be given here, for all calls, or in a call.

    Args:
        model: A model with a CTC head.
        feature_extractor: The one that the model was trained with.
        tokenizer: Names the model's outputs.
        chunk_length_s: Seconds that the model hears at once; null or 0: the whole recording.
        stride_length_s: Seconds at both ends of a chunk that are heard and not kept, or a pair for the left
            and the right; null: a sixth of the chunk at each end.
        return_timestamps: ``char`` or ``word`` for the seconds of each; null for the text alone.
        batch_size: Chunks, or whole recordings, that the model computes at once.
    """

    def __init__(
        self,
        model: Any,
        feature_extractor: Any,
        tokenizer: Any,
        *,
        chunk_length_s: float | None = None,
        stride_length_s: float | Sequence[float] | None = None,
        return_timestamps: str | None = None,
        batch_size: int = 1,
    ) -> None:
        self.model, self.feature_extractor, self.tokenizer = model, feature_extractor, tokenizer
        self.chunk_length_s, self.stride_length_s = chunk_length_s, stride_length_s
        self.return_timestamps = return_timestamps
        self.batch_size = batch_size

    def __call__(
        self,
        inputs: Any,
        *,
        chunk_length_s: float | None = None,
        stride_length_s: float | Sequence[float] | None = None,
        return_timestamps: str | None = None,
        batch_size: int | None = None,
    ) -> Any:
        """Recognises one recording, or several.

        Args:
            inputs: A recording, a list of them, or anything that yields them. A recording is a path, an
                http(s) URL, the bytes of a file, samples at the model's rate, shape (samples,) or
                (channels, samples), or a mapping: of ``raw`` or ``array`` with ``sampling_rate``, and at
                will ``stride``, a pair of samples at its ends that are heard and not kept; or of ``bytes``
                or ``path``. What else a mapping holds comes back in its result, in a list.
            chunk_length_s: As of the constructor, and the options after it.
            stride_length_s: See ``chunk_length_s``.
            return_timestamps: See ``chunk_length_s``.
            batch_size: See ``chunk_length_s``.

        Returns:
            For a recording a dict of ``text`` and, if asked for, ``chunks``: dicts of ``text`` and
            ``timestamp``, a pair of seconds. For a list a list; for what yields recordings an iterator,
            which takes them as it is read.

        Raises:
            ItemError: A recording cannot be read or decoded, or is too short for one frame.
            ValueError: An option is none of those, or samples are not as described.
            TypeError: A recording is of another type.
        """
        chunk_length_s = self.chunk_length_s if chunk_length_s is None else chunk_length_s
        stride_length_s = self.stride_length_s if stride_length_s is None else stride_length_s
        timestamps = return_timestamps or self.return_timestamps
        if timestamps not in (None, False, "char", "word"):
            raise ValueError(f"return_timestamps is {timestamps!r}, expected 'char', 'word' or null")
        cut = partial(self._cut, window=self._window(chunk_length_s, stride_length_s))
        join = partial(self._join, timestamps)
        batch_size = self.batch_size if batch_size is None else batch_size
        return _answer(inputs, cut, self._tokens, join, batch_size)

    @property
    def _hop(self) -> int:
        """Samples from one output of the model to the next."""
        config, extractor = self.model.config, self.feature_extractor
        hop: int = extractor.stride * FRAME_SHIFT if hasattr(extractor, "stride") else config.hop_samples
        return hop * config.adapter_stride**config.num_adapter_layers if config.add_adapter else hop

    def _window(
        self, chunk_length_s: float | None, stride_length_s: float | Sequence[float] | None
    ) -> tuple[int, int, int] | None:
        """The samples of a chunk and of its left and right stride, in whole frames."""
        if not chunk_length_s:
            return None
        if stride_length_s is None:
            stride_length_s = chunk_length_s / 6
        if isinstance(stride_length_s, int | float):
            stride_length_s = stride_length_s, stride_length_s
        if len(stride_length_s) != 2:
            raise ValueError(
                f"stride_length_s is {stride_length_s!r}, expected seconds, or a pair of them: left and right"
            )
        left_s, right_s = stride_length_s
        rate, hop = self.feature_extractor.sampling_rate, self._hop
        length, left, right = (round(s * rate / hop) * hop for s in (chunk_length_s, left_s, right_s))
        if length <= left + right or min(left, right) < 0:
            raise ValueError(
                f"chunk_length_s is {chunk_length_s} and stride_length_s {left_s} and {right_s}, expected "
                "strides from 0 whose sum is shorter than the chunk"
            )
        return length, left, right

    def _cut(self, item: Any, *, window: tuple[int, int, int] | None) -> Iterator[_Piece]:
        recording = read_recording(item, self.feature_extractor.sampling_rate)
        samples, extra = recording.samples, recording.extra
        if window is None:
            yield _Piece(samples, recording.stride, extra)
            return
        length, left, right = window
        for start in range(0, max(len(samples), 1), length - left - right):
            is_last = start + length >= len(samples)
            kept = (left if start else 0, 0 if is_last else right)
            yield _Piece(samples[start : start + length], kept, extra, is_last)
            if is_last:
                break

    def _tokens(self, pieces: Sequence[_Piece]) -> Iterator[NDArray[np.int64]]:
        """The best token of each frame that a piece keeps."""
        for piece, logits in zip(pieces, _forward(self.model, self.feature_extractor, pieces), strict=True):
            if logits is None:
                yield np.zeros(0, np.int64)
                continue
            path = logits.argmax(-1).cpu().numpy()
            if piece.stride is not None:
                size = len(piece.samples)
                num_frames = round(size / self._hop)
                left, right = (round(edge / size * num_frames) for edge in piece.stride)
                path = path[left : num_frames - right]
            yield path

    def _join(
        self, timestamps: str | None, pieces: Sequence[_Piece], paths: Sequence[NDArray[np.int64]]
    ) -> dict[str, Any]:
        path = np.concatenate(paths)
        if not len(path):
            _refuse_short(sum(len(piece.samples) for piece in pieces))
        result: dict[str, Any] = {}
        if not timestamps:
            result["text"] = self.tokenizer.decode(path)
        else:
            decoded = self.tokenizer.decode(path, **{f"output_{timestamps}_offsets": True})
            result["text"] = decoded.text
            rate = self.feature_extractor.sampling_rate
            result["chunks"] = [
                {
                    "text": found[timestamps],
                    "timestamp": tuple(
                        found[edge] * self._hop / rate for edge in ("start_offset", "end_offset")
                    ),
                }
                for found in decoded[f"{timestamps}_offsets"]
            ]
        return result | {name: [piece.extra[name] for piece in pieces] for name in pieces[0].extra}


class AudioClassificationPipeline:
    """Says of which class a recording is; the options may be given here, for all calls, or in a call.

    Args:
        model: A model for sequence classification.
        feature_extractor: The one that the model was trained with.
        top_k: How many labels to return, the most likely first; null: all.
        function_to_apply: ``softmax``, ``sigmoid`` or ``none``; null: ``none`` for regression, ``sigmoid``
            for several labels at once, else ``softmax``, as the config's ``problem_type`` says.
        batch_size: Recordings that the model computes at once.
    """

    def __init__(
        self,
        model: Any,
        feature_extractor: Any,
        *,
        top_k: int | None = None,
        function_to_apply: str | None = None,
        batch_size: int = 1,
    ) -> None:
        self.model, self.feature_extractor = model, feature_extractor
        self.top_k, self.function_to_apply = top_k, function_to_apply
        self.batch_size = batch_size

    def __call__(
        self,
        inputs: Any,
        *,
        top_k: int | None = None,
        function_to_apply: str | None = None,
        batch_size: int | None = None,
    ) -> Any:
        """Classifies one recording, or several.

        Args:
            inputs: As of AutomaticSpeechRecognitionPipeline; further keys of mappings are left out.
            top_k: As of the constructor, and the options after it.
            function_to_apply: See ``top_k``.
            batch_size: See ``top_k``.

        Returns:
            For a recording a list of dicts of ``score`` and ``label``, the highest score first; for a list
            a list of them; for what yields recordings an iterator.

        Raises:
            ItemError: As of AutomaticSpeechRecognitionPipeline, and its other errors.
        """
        function = function_to_apply or self.function_to_apply or self._default_function()
        if function not in ("softmax", "sigmoid", "none"):
            raise ValueError(f"function_to_apply is {function!r}, expected 'softmax', 'sigmoid' or 'none'")
        top_k = self.top_k if top_k is None else top_k
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k is {top_k}, expected at least 1, or null for all labels")
        name = partial(self._name, function, top_k)
        return _answer(
            inputs, self._whole, self._logits, name, self.batch_size if batch_size is None else batch_size
        )

    def _default_function(self) -> str:
        functions = {"regression": "none", "multi_label_classification": "sigmoid"}
        return functions.get(self.model.config.problem_type, "softmax")

    def _whole(self, item: Any) -> Iterator[_Piece]:
        yield _Piece(read_recording(item, self.feature_extractor.sampling_rate).samples)

    def _logits(self, pieces: Sequence[_Piece]) -> Iterator[torch.Tensor | None]:
        return _forward(self.model, self.feature_extractor, pieces)

    def _name(
        self, function: str, top_k: int | None, pieces: Sequence[_Piece], rows: Sequence[torch.Tensor | None]
    ) -> list[dict[str, Any]]:
        (logits,) = rows
        if logits is None:
            _refuse_short(len(pieces[0].samples))
        scores = logits.float().cpu()
        if function != "none":
            scores = scores.softmax(-1) if function == "softmax" else scores.sigmoid()
        best = scores.topk(min(top_k or len(scores), len(scores)))
        names = self.model.config.id2label
        return [
            {"score": score, "label": names[index]}
            for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]


def _answer(
    inputs: Any,
    cut: Callable[[Any], Iterator[_Piece]],
    compute: Callable[[Sequence[_Piece]], Iterator[Output]],
    finish: Callable[[Sequence[_Piece], Sequence[Output]], Any],
    batch_size: int,
) -> Any:
    """The result of one recording, a list for a list, an iterator for what yields recordings."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1")

    def results(items: Iterable[Any]) -> Iterator[Any]:
        pieces = (piece for item in items for piece in cut(item))
        of_one: list[tuple[_Piece, Output]] = []
        while batch := list(islice(pieces, batch_size)):
            for pair in zip(batch, compute(batch), strict=True):
                of_one.append(pair)
                if pair[0].is_last:
                    yield finish(*zip(*of_one, strict=True))
                    of_one = []

    if isinstance(inputs, list | tuple):
        return list(results(inputs))
    if isinstance(inputs, _ONE_RECORDING):
        return next(results([inputs]))
    return results(inputs)  # a generator, a dataset: whatever can be iterated


@torch.inference_mode()
def _forward(model: Any, extractor: Any, pieces: Sequence[_Piece]) -> Iterator[torch.Tensor | None]:
    """The logits of each piece, without the frames of padding; None for one too short for a frame."""
    name, encoder = model.main_input_name, getattr(model, model.base_model_prefix)
    weight = next(weight for weight in model.parameters() if weight.is_floating_point())
    where = {"device": weight.device} if name == "input_features" else {}
    rows: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    logits: dict[int, torch.Tensor] = {}
    for index, piece in enumerate(pieces):
        with suppress(TooShortError):
            features = extractor(
                piece.samples,
                sampling_rate=extractor.sampling_rate,
                return_attention_mask=True,
                return_tensors="pt",
                **where,
            )
            if encoder.num_frames(len(features[name][0])):
                rows[index] = features[name][0], features["attention_mask"][0]
    if rows:
        values, masks = zip(*rows.values(), strict=True)
        batch = pad_sequence(list(values), batch_first=True, padding_value=extractor.padding_value)
        mask = pad_sequence(list(masks), batch_first=True)
        # Said here, as a config.json can ask for more, or for a tuple.
        asked = {"output_attentions": False, "output_hidden_states": False, "return_dict": True}
        output = model(batch.to(weight), mask.to(weight.device), **asked)
        logits = dict(zip(rows, output.logits, strict=True))
    for index in range(len(pieces)):
        if index not in rows:
            yield None
        elif logits[index].ndim == 1:  # of the recording, not of its frames
            yield logits[index]
        else:
            yield logits[index][: int(encoder.num_frames(len(rows[index][0])))]


def _device(device: int | str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(device, int):
        return torch.device("cpu" if device < 0 else f"cuda:{device}")
    return torch.device(device)


def _refuse_short(num_samples: int) -> NoReturn:
    if not num_samples:
        raise EmptyAudioError("the recording has no samples, expected at least one frame; leave it out")
    raise TooShortError(
        f"the recording has {num_samples} samples, too few for one frame of the model; leave it out"
    )
