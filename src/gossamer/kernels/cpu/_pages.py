"""Pages, requests and summaries as the kernels take them (the structs of csrc/kernels.h), checked."""

from __future__ import annotations

from itertools import pairwise
from typing import NoReturn

import torch
from torch import Tensor

from gossamer.kernels.cpu import _call

CODES = {"float32": 0, "bfloat16": 2, "int8": 3, "float16": 4, "int4": 5}
"""How numbers are stored, as the kernels call it."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MOST_WIDTH, MOST_PAGE = 256, 256
HUGE = 2**40


def pages(
    keys: Tensor, values: Tensor, key_scales: Tensor | None, value_scales: Tensor | None, stored: str
) -> tuple[int, ...]:
    """`Pages`: keys [pages, heads, width, page], as codes [pages, heads, planes, width / 8, page, 4]; values
    [pages, heads, page, width]; scales [pages, heads, 2, page].
    """
    if stored not in CODES:
        raise ValueError(f"pool.stored must be one of {', '.join(CODES)}, got {stored!r}")
    dtype = _DTYPES.get(stored, torch.uint8)
    half = 2 if stored == "int4" else 1
    count, heads, page, packed = _call.tensor(values, "pool.values", ndim=4, dtypes=(dtype,)).shape
    width = packed * half
    if width % 16 or not 16 <= width <= MOST_WIDTH or page % 32 or not 32 <= page <= MOST_PAGE:
        raise ValueError(
            f"pool.values must be of a width and page that are multiples of 16 and 32 up to 256, got {width}, {page}"
        )
    if half == 2 and width % 32:
        raise ValueError(
            f"pool.values must have a width that is a multiple of 32 for numbers of four bits, got {width}"
        )
    of_keys = (2 // half, width // 8, page, 4) if dtype is torch.uint8 else (width, page)
    _call.tensor(keys, "pool.keys", ndim=2 + len(of_keys), dtypes=(dtype,))
    if tuple(keys.shape) != (count, heads, *of_keys):
        raise ValueError(f"pool.keys must have shape {(count, heads, *of_keys)}, got {tuple(keys.shape)}")
    for name, scales in (("pool.key_scales", key_scales), ("pool.value_scales", value_scales)):
        if (scales is None) == (dtype is torch.uint8):
            raise ValueError(f"{name} must be given with int8 and int4, and only then, got {type(scales).__name__}")
        if scales is not None:
            _call.tensor(scales, name, ndim=4, dtypes=(torch.bfloat16,))
            if tuple(scales.shape) != (count, heads, 2, page):
                raise ValueError(f"{name} must have shape {(count, heads, 2, page)}, got {tuple(scales.shape)}")
    addresses = keys.data_ptr(), values.data_ptr(), _call.address(key_scales), _call.address(value_scales)
    return *addresses, count, heads, width, page, CODES[stored]


def requests(offsets: Tensor, lengths: Tensor, table: Tensor, tokens: int) -> tuple[int, ...]:
    """`Requests`: offsets int64[requests + 1], lengths int64[requests], table int32[requests, most pages]."""
    _call.tensor(offsets, "offsets", ndim=1, dtypes=(torch.int64,))
    _call.tensor(lengths, "lengths", ndim=1, dtypes=(torch.int64,))
    rows, cols = _call.tensor(table, "table", ndim=2, dtypes=(torch.int32,)).shape
    if lengths.numel() != rows or offsets.numel() != rows + 1:
        raise ValueError(
            f"offsets and lengths must have {rows + 1} and {rows} entries for a table of {rows} requests, got "
            f"{offsets.numel()} and {lengths.numel()}"
        )
    if cols > HUGE or rows > HUGE:
        raise ValueError(f"table must have at most 2**40 rows and columns, got {tuple(table.shape)}")
    return offsets.data_ptr(), lengths.data_ptr(), table.data_ptr(), rows, tokens, cols


def summaries(value: Tensor | None, name: str, count: int, heads: int, width: int, page: int) -> tuple[int, int]:
    """`Summaries`: bfloat16[pages, heads, page / stretch, 2, width], or None."""
    if value is None:
        return 0, page
    shape = _call.tensor(value, name, ndim=5, dtypes=(torch.bfloat16,)).shape
    if tuple(shape) != (count, heads, shape[2], 2, width) or shape[2] < 1 or page % shape[2]:
        raise ValueError(
            f"{name} must have shape ({count}, {heads}, n, 2, {width}) with n a divisor of the page of {page} tokens, "
            f"got {tuple(shape)}"
        )
    return value.data_ptr(), page // shape[2]


def key_codes(
    codes: Tensor | None, scales: Tensor | None, names: tuple[str, str], count: int, heads: int, width: int, page: int,
    planes: int = 1,
) -> tuple[int, int, int]:  # fmt: skip
    """`KeyCodes`: uint8[pages, heads, planes, width / 8, page, 4], scales bfloat16[pages, heads, 2, page], or None."""
    if (codes is None) != (scales is None):
        raise ValueError(
            f"{names[0]} and {names[1]} must both be given or None, got {type(codes).__name__} and "
            f"{type(scales).__name__}"
        )
    if codes is None or scales is None:
        return 0, 0, 0
    for name, value, dtype, shape in (
        (names[0], codes, torch.uint8, (count, heads, planes, width // 8, page, 4)),
        (names[1], scales, torch.bfloat16, (count, heads, 2, page)),
    ):
        if tuple(_call.tensor(value, name, ndim=len(shape), dtypes=(dtype,)).shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}")
    return codes.data_ptr(), scales.data_ptr(), planes


def heads(value: Tensor, name: str, count: int) -> int:
    """int64[heads]: for each head of the pages the first of its heads of a model; returns the address."""
    if _call.tensor(value, name, ndim=1, dtypes=(torch.int64,)).numel() != count:
        raise ValueError(f"{name} must have {count} entries, one for each head of the pages, got {value.numel()}")
    return value.data_ptr()


def refuse_heads(value: Tensor, name: str, below: int, group: int = 0) -> None:
    """Say which head is none below `below`, or shares some of its `group` heads with another; return if none does."""
    _call.check_bounds(name, "head", value, 0, below)
    ascending = sorted(value.tolist())
    if any(other - one < group for one, other in pairwise(ascending)):
        raise ValueError(f"{name} must be at least the group of {group} apart, got {value.tolist()}")


def refuse_requests(offsets: Tensor, lengths: Tensor, table: Tensor, tokens: int, count: int, page: int) -> None:
    """Say what is wrong with the numbers of requests; return if nothing is."""
    _call.check_list(None, "offsets", offsets, tokens)
    if offsets[0] != 0 or offsets[-1] != tokens:
        raise ValueError(f"offsets must go from 0 to {tokens}, the new tokens, got {offsets.tolist()[:16]}")
    room = table.shape[1] * page
    wrong = ((lengths < offsets.diff()) | (lengths > room)).nonzero()
    if wrong.numel():
        at = int(wrong[0])
        raise ValueError(
            f"lengths[{at}] is {int(lengths[at])}, expected at least the {int(offsets.diff()[at])} new tokens and at "
            f"most the {room} of a row of the table"
        )
    used = torch.arange(table.shape[1], device="cpu") < -(-lengths[:, None] // page)
    wrong = (used & ((table < 0) | (table >= count))).nonzero()
    if wrong.numel():
        r, p = wrong[0].tolist()
        raise ValueError(f"table[{r}, {p}] is {int(table[r, p])}, expected 0 <= page < {count}")


def refuse_choice(lengths: Tensor, count: int, cols: int, page: int) -> None:
    """Say which length has too few pages to choose from, or more than there are scores for; return if none."""
    wrong = ((lengths < 0) | (lengths > cols * page) | (-(-lengths // page) < count)).nonzero()
    if wrong.numel():
        at = int(wrong[0])
        raise ValueError(f"lengths[{at}] is {int(lengths[at])}, expected {count} to {cols} pages of {page} tokens")


def refuse_lists(offsets: Tensor, listed: Tensor, rows: int) -> NoReturn:
    """Say what is wrong with lists of pages, whose requests are right."""
    if offsets.numel() != rows + 1:
        raise ValueError(
            f"lists must have {rows} rows, one for each block of tokens and head, got {offsets.numel() - 1}"
        )
    if offsets[0] != 0 or bool((offsets.diff() < 0).any()) or offsets[-1] > listed.numel():
        raise ValueError(
            f"lists must have offsets from 0 to at most {listed.numel()} that never decrease, got "
            f"{offsets.tolist()[:16]}"
        )
    raise ValueError("lists must name pages of their own request, in ascending order in each row, each once")
