"""What all pipelines do: recordings cut into pieces, pieces computed in batches, results joined."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from os import PathLike
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence

from w2v_ray.errors import EmptyAudioError, TooShortError

__all__ = ["Piece", "answer", "forward", "refuse_short"]

Output = TypeVar("Output")

_ONE_RECORDING = (str, bytes, bytearray, memoryview, PathLike, Mapping, np.ndarray, torch.Tensor)


@dataclass(frozen=True, slots=True)
class Piece:
    """What the model hears at once: a recording or a chunk of one."""

    samples: NDArray[np.float32]
    stride: tuple[int, int] | None = None  # samples at its ends that are not kept
    extra: dict[str, Any] = field(default_factory=dict)
    is_last: bool = True  # of its recording


def answer(
    inputs: Any,
    cut: Callable[[Any], Iterator[Piece]],
    compute: Callable[[Sequence[Piece]], Iterator[Output]],
    finish: Callable[[Sequence[Piece], Sequence[Output]], Any],
    batch_size: int,
) -> Any:
    """The result of one recording, a list for a list, an iterator for what yields recordings."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1")

    def results(items: Iterable[Any]) -> Iterator[Any]:
        pieces = (piece for item in items for piece in cut(item))
        of_one: list[tuple[Piece, Output]] = []
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
def forward(model: Any, extractor: Any, pieces: Sequence[Piece]) -> Iterator[torch.Tensor | None]:
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


def refuse_short(num_samples: int) -> NoReturn:
    if not num_samples:
        raise EmptyAudioError("the recording has no samples, expected at least one frame; leave it out")
    raise TooShortError(
        f"the recording has {num_samples} samples, too few for one frame of the model; leave it out"
    )
