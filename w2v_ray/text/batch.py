"""Token ids as a batch: cut, padded, and as lists, arrays or tensors.

It knows ids, not texts; torch is loaded only where a caller asks for its tensors.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from w2v_ray.text.rows import Row, cut

__all__ = ["BatchEncoding", "BatchOptions", "BatchRules", "make_batch", "make_options", "pad_batch", "plain"]

_log = logging.getLogger(__name__)

_NO_LIMIT = 10**20  # a larger model_max_length is transformers' way to write "none"
_PADDINGS = ("longest", "max_length", "do_not_pad")
_TRUNCATIONS = ("longest_first", "only_first", "only_second", "do_not_truncate")


class BatchEncoding(dict[str, Any]):
    """Token ids and what goes with them, by name; each name is an attribute too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def to(self, device: object, *, non_blocking: bool = False) -> BatchEncoding:
        """Moves the tensors to a device, in place; other values stay."""
        for name, value in self.items():
            if _kind(value) == "pt":
                self[name] = value.to(device=device, non_blocking=non_blocking)
        return self


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchOptions:
    """How ids become a batch: what a caller of the tokenizer may choose."""

    padding: bool | str = False
    """True or ``longest``, ``max_length``, false or ``do_not_pad``."""
    truncation: bool | str | None = None
    """True or ``longest_first``, ``only_first`` and ``only_second`` of a pair, false or ``do_not_truncate``;
    null cuts where ``max_length`` is given and padding is not."""
    max_length: int | None = None
    """Tokens a row is cut or filled up to; null: the tokenizer's ``model_max_length``."""
    stride: int = 0
    """Tokens before a cut that ``overflowing_tokens`` begin with."""
    pad_to_multiple_of: int | None = None
    """Rounds padded lengths up."""
    padding_side: str | None = None
    """``left`` or ``right``; null: the tokenizer's."""
    return_tensors: str | None = None
    """``np`` or ``pt``; null gives lists."""
    return_attention_mask: bool | None = None
    """Whether to add 1 for tokens and 0 for padding; null: yes."""
    return_token_type_ids: bool = False
    """Whether to add a 0 for each token, and a 1 for each of a second text."""
    add_special_tokens: bool = True
    """CTC adds none; but without them, a second text's tokens are 0 too, as in transformers."""
    return_special_tokens_mask: bool = False
    """Whether to add 0 for tokens and 1 for padding."""
    return_length: bool = False
    """Whether to add the tokens of each row."""
    return_overflowing_tokens: bool = False
    """Whether to add the tokens that were cut off, and their number; lists alone have them."""
    verbose: bool = True
    """Whether to log what is not used."""

    def __post_init__(self) -> None:
        if not isinstance(self.padding, bool) and self.padding not in _PADDINGS:
            raise ValueError(
                f"padding is {self.padding!r}, expected true, false or one of {', '.join(_PADDINGS)}"
            )
        if isinstance(self.truncation, str) and self.truncation not in _TRUNCATIONS:
            raise ValueError(
                f"truncation is {self.truncation!r}, expected true, false or one of {', '.join(_TRUNCATIONS)}"
            )
        if self.padding_side not in ("left", "right", None):
            raise ValueError(f"padding_side is {self.padding_side!r}, expected 'left' or 'right'")
        if self.return_tensors not in ("np", "pt", None):
            raise ValueError(
                f"return_tensors is {self.return_tensors!r}, expected 'np', 'pt' or null for lists"
            )


_FOR_PADDING = frozenset(
    {
        "padding",
        "max_length",
        "pad_to_multiple_of",
        "padding_side",
        "return_attention_mask",
        "return_tensors",
        "verbose",
    }
)


def make_options(given: Mapping[str, Any], *, to_pad: bool = False) -> BatchOptions:
    """The options of a call, or with ``to_pad`` of padding what is encoded already.

    Raises:
        TypeError: There is no such option.
        ValueError: It has no such value.
    """
    known = _FOR_PADDING if to_pad else {field.name for field in fields(BatchOptions)}
    for name in given:
        if name not in known:
            what = "padding" if to_pad else "the tokenizer"
            raise TypeError(f"{what} has no option {name!r}; it knows {', '.join(sorted(known))}")
    return BatchOptions(**given)


@dataclass(frozen=True, slots=True)
class BatchRules:
    """What the tokenizer says about batches."""

    pad_id: int | None
    padding_side: str
    truncation_side: str
    model_max_length: float


@dataclass(frozen=True, slots=True)
class _Lengths:
    padding: str  # one of _PADDINGS
    cut: int | None  # tokens that a row keeps; null: all
    cuts: str  # one of _TRUNCATIONS but the last
    fill: int | None  # tokens that a row is padded to, with padding "max_length"


def make_batch(rows: list[Row], options: BatchOptions, rules: BatchRules, *, one_row: bool) -> BatchEncoding:
    """The ids of texts as a batch, or those of one text without a batch axis unless as arrays or tensors.

    Raises:
        ValueError: Options contradict each other, or rows of different lengths were asked for as tensors.
    """
    lengths = _settle(options, rules)
    overflows = options.return_overflowing_tokens
    made: list[dict[str, Any]] = []
    for whole in rows:
        if overflows and whole.second is not None and lengths.cut and lengths.cuts == "longest_first":
            raise ValueError(
                "tokens cut from both texts of a pair cannot be returned; pass truncation='only_first' or "
                "'only_second', or return_overflowing_tokens=False"
            )
        kept = cut(whole, lengths.cut, lengths.cuts, rules.truncation_side, options.stride)
        row: dict[str, Any] = {"input_ids": kept.ids}
        if options.return_token_type_ids:
            second = int(options.add_special_tokens)
            row["token_type_ids"] = [0] * len(kept.first) + [second] * len(kept.second or [])
        if options.return_special_tokens_mask:
            row["special_tokens_mask"] = [0] * len(row["input_ids"])
        if options.return_length and not one_row:
            row["length"] = len(row["input_ids"])
        if overflows and not options.return_tensors and (kept.taken or not one_row):
            row["overflowing_tokens"], row["num_truncated_tokens"] = list(kept.taken), kept.num_taken
        made.append(row)
    if not any(row.get("overflowing_tokens") for row in made):
        for row in made:
            row.pop("overflowing_tokens", None)
            row.pop("num_truncated_tokens", None)
    made = _padded(made, lengths, options, rules, one_row=one_row)
    if options.return_length and one_row:
        made[0]["length"] = len(made[0]["input_ids"])
    if not made:
        mask = [] if options.return_attention_mask is False else ["attention_mask"]
        return _to_arrays({name: [] for name in ("input_ids", *mask)}, options.return_tensors, one_row=False)
    columns = made[0] if one_row else {name: [row[name] for row in made] for name in made[0]}
    return _to_arrays(columns, options.return_tensors, one_row=one_row)


def pad_batch(
    encoded: Mapping[str, Any] | Sequence[Mapping[str, Any]], options: BatchOptions, rules: BatchRules
) -> BatchEncoding:
    """Pads one encoding, a batch or a list of encodings; arrays and tensors come back as such.

    Raises:
        ValueError: There are no ``input_ids``, a column is of other rows, a row lacks what the first has,
            or as of ``make_batch``.
    """
    columns = encoded if isinstance(encoded, Mapping) else _columns(encoded)
    if "input_ids" not in columns:
        raise ValueError(f"the encoding has {', '.join(columns) or 'nothing'}, expected input_ids to pad")
    ids = columns["input_ids"]
    kind = options.return_tensors or _kind(ids) or (_kind(ids[0]) if len(ids) else None)
    columns = {name: plain(value) for name, value in columns.items()}
    lengths = _settle(replace(options, truncation=False, pad_to_multiple_of=None), rules)
    one_row = not columns["input_ids"] or not isinstance(columns["input_ids"][0], list)
    if one_row:
        return _to_arrays(_padded([dict(columns)], lengths, options, rules, one_row=True)[0], kind)
    for name, column in columns.items():
        if len(column) != len(columns["input_ids"]):
            raise ValueError(
                f"{name} has {len(column)} rows, expected {len(columns['input_ids'])}, as many as input_ids"
            )
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    rows = _padded(rows, lengths, options, rules, one_row=False)
    return _to_arrays({name: [row[name] for row in rows] for name in rows[0]}, kind)


def _columns(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    names = list(rows[0]) if rows else []
    for index, row in enumerate(rows):
        for name in names:
            if name not in row:
                raise ValueError(
                    f"encoding {index} has no {name}, expected {', '.join(names)} as in the first; "
                    "encode all with the same options"
                )
    return {name: [row[name] for row in rows] for name in names}


def plain(value: Any) -> Any:
    """An array, a tensor, or lists of them, as lists of numbers."""
    if _kind(value):
        return value.tolist()
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def _settle(options: BatchOptions, rules: BatchRules) -> _Lengths:
    padding, truncation, max_length = options.padding, options.truncation, options.max_length
    if truncation is None and max_length is not None and padding is False:
        truncation = True  # a length alone can only mean a cut
    cuts = truncation not in (False, None, "do_not_truncate")
    if options.verbose and padding is True and max_length is not None and not cuts:
        _log.warning("max_length %d is not used with padding=True; pass padding='max_length'", max_length)
    strategy = ("longest" if padding else "do_not_pad") if isinstance(padding, bool) else padding
    if max_length is None and rules.model_max_length <= _NO_LIMIT:
        max_length = int(rules.model_max_length)
    if strategy != "do_not_pad" and rules.pad_id is None:
        raise ValueError("padding was asked for and the tokenizer has no pad_token; set one or do not pad")
    multiple = options.pad_to_multiple_of
    if cuts and strategy != "do_not_pad" and max_length and multiple and max_length % multiple:
        raise ValueError(
            f"max_length {max_length} is not a multiple of pad_to_multiple_of {multiple}; "
            "rows that are both cut and padded need one that is"
        )
    return _Lengths(
        strategy,
        cut=max_length if cuts else None,
        cuts=truncation if isinstance(truncation, str) else "longest_first",
        fill=max_length if strategy == "max_length" else None,
    )


def _padded(
    rows: list[dict[str, Any]], lengths: _Lengths, options: BatchOptions, rules: BatchRules, *, one_row: bool
) -> list[dict[str, Any]]:
    length = lengths.fill
    if lengths.padding == "longest":
        length = max((len(row["input_ids"]) for row in rows), default=0)
    if length is not None and options.pad_to_multiple_of:
        length = -(-length // options.pad_to_multiple_of) * options.pad_to_multiple_of
    for row in rows:
        ids = row["input_ids"]
        if options.return_attention_mask is not False:
            row.setdefault("attention_mask", [1] * len(ids))
        missing = max(0, (length or 0) - len(ids))
        if one_row and not ids:
            missing = 0  # as in transformers: a single empty text is not padded
        for name, filler in (
            ("input_ids", rules.pad_id),
            ("attention_mask", 0),
            ("token_type_ids", 0),
            ("special_tokens_mask", 1),
        ):
            if name in row and missing:
                fill = [filler] * missing
                left = (options.padding_side or rules.padding_side) == "left"
                row[name] = fill + row[name] if left else row[name] + fill
    return rows


def _to_arrays(
    columns: Mapping[str, Any], return_tensors: str | None, *, one_row: bool = False
) -> BatchEncoding:
    if return_tensors is None:
        return BatchEncoding(columns)
    arrays = BatchEncoding()
    for name, column in columns.items():
        array = _array([column] if one_row else column)
        if return_tensors == "np":
            arrays[name] = array
        elif array.dtype == object:
            raise ValueError(
                f"{name} has rows of different lengths; pass padding=True to make a tensor of them"
            )
        else:
            import torch

            arrays[name] = torch.from_numpy(array)
    return arrays


def _array(rows: list[Any]) -> np.ndarray[Any, Any]:
    if rows and isinstance(rows[0], list) and len({len(row) for row in rows}) > 1:
        ragged = np.empty(len(rows), dtype=object)
        ragged[:] = [np.asarray(row, dtype=np.int64) for row in rows]
        return ragged
    return np.asarray(rows, dtype=np.int64)


def _kind(value: object) -> str | None:
    if isinstance(value, np.ndarray):
        return "np"
    torch = sys.modules.get("torch")  # where it was never loaded, nothing is a tensor
    return "pt" if torch is not None and isinstance(value, torch.Tensor) else None
