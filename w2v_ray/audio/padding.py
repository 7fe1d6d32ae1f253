"""Features as a batch: cut, filled up, and as lists, arrays or tensors; torch only where it is asked for."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BatchFeature",
    "as_float32",
    "convert",
    "fill",
    "is_tensor",
    "kept_length",
    "pad_features",
    "padded_length",
    "padding_strategy",
]


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


def padding_strategy(padding: bool | str, max_length: int | None) -> str:
    """``longest``, ``max_length`` or ``do_not_pad``.

    Raises:
        ValueError: It is none of these, or lacks its length.
    """
    strategy = ("longest" if padding else "do_not_pad") if isinstance(padding, bool) else padding
    if strategy not in ("longest", "max_length", "do_not_pad"):
        raise ValueError(
            f"padding is {padding!r}, expected true, false, 'longest', 'max_length' or 'do_not_pad'"
        )
    if strategy == "max_length" and max_length is None:
        raise ValueError("padding is 'max_length' and max_length is not given; pass it")
    return strategy


def kept_length(max_length: int | None, truncation: bool, pad_to_multiple_of: int | None) -> int | None:
    """Where rows are cut; null: nowhere.

    Raises:
        ValueError: They are to be cut and nothing says where.
    """
    if not truncation:
        return None
    if max_length is None:
        raise ValueError("truncation is on and max_length is not given; pass it")
    return _round_up(max_length, pad_to_multiple_of)


def padded_length(strategy: str, lengths: Sequence[int], max_length: int | None, multiple: int | None) -> int:
    """The length that shorter rows are filled up to; 0: none is."""
    if strategy == "do_not_pad":
        return 0
    return _round_up(max(lengths) if max_length is None or strategy == "longest" else max_length, multiple)


def fill(row: NDArray[Any], length: int, value: float) -> NDArray[Any]:
    """Fills a row up along its first axis."""
    missing = max(0, length - len(row))
    return np.pad(row, [(0, missing)] + [(0, 0)] * (row.ndim - 1), constant_values=value)


def pad_features(
    features: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    main: str,
    *,
    padding_value: float,
    padding: bool | str,
    max_length: int | None,
    truncation: bool,
    pad_to_multiple_of: int | None,
    return_attention_mask: bool,
    return_tensors: str | None,
) -> BatchFeature:
    """Pads columns of rows, or a list of rows: the main input and its mask; other columns are passed on.

    Raises:
        ValueError: There is no main input, a row lacks what the first has, or as of calling the extractor.
    """
    columns = features if isinstance(features, Mapping) else _columns(features)
    if main not in columns:
        raise ValueError(f"the features have {', '.join(columns) or 'nothing'}, expected {main} to pad")
    values = columns[main]
    if any(len(column) != len(values) for column in columns.values()):
        raise ValueError(
            f"the features have columns of different lengths, expected {len(values)} rows in each"
        )
    if not len(values):
        return BatchFeature(dict(columns) | ({"attention_mask": []} if return_attention_mask else {}))
    return_tensors = return_tensors or ("pt" if is_tensor(values) or is_tensor(values[0]) else "np")
    strategy = padding_strategy(padding, max_length)
    kept = kept_length(max_length, truncation, pad_to_multiple_of)
    rows = [as_float32(row)[:kept] for row in values]
    lengths = [len(row) for row in rows]
    length = padded_length(strategy, lengths, max_length, pad_to_multiple_of)
    padded = BatchFeature({name: [_as_array(row) for row in column] for name, column in columns.items()})
    padded[main] = [fill(row, length, padding_value) for row in rows]
    if "attention_mask" in columns:
        padded["attention_mask"] = [fill(mask[:kept], length, 0) for mask in padded["attention_mask"]]
    elif return_attention_mask:
        padded["attention_mask"] = [fill(np.ones(n, np.int32), length, 0) for n in lengths]
    return convert(padded, return_tensors)


def _columns(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    names = list(rows[0]) if rows else []
    for index, row in enumerate(rows):
        for name in names:
            if name not in row:
                raise ValueError(
                    f"row {index} of the features has no {name}, expected {', '.join(names)} as in the "
                    "first; make all with the same options"
                )
    return {name: [row[name] for row in rows] for name in names}


def convert(features: BatchFeature, return_tensors: str | None) -> BatchFeature:
    """Makes an array or a tensor of each list of rows, in place; null leaves the lists.

    Raises:
        ValueError: Rows of different lengths were asked for as a tensor, or the kind is unknown.
    """
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


def as_float32(values: Any) -> NDArray[np.float32]:
    """An array, a tensor on any device, or a list of numbers as an array of float32."""
    return np.asarray(values.detach().cpu() if is_tensor(values) else values, dtype=np.float32)


def is_tensor(value: object) -> bool:
    """Whether it is a tensor of torch, without loading torch to find out."""
    torch = sys.modules.get("torch")  # where it was never loaded, nothing is a tensor
    return torch is not None and isinstance(value, torch.Tensor)


def _as_array(values: Any) -> NDArray[Any]:
    return np.asarray(values.detach().cpu() if is_tensor(values) else values)


def _round_up(length: int, multiple: int | None) -> int:
    return -(-length // multiple) * multiple if multiple else length
