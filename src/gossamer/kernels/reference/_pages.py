"""What the oracles of attention over pages share: the numbers of a page as floats, and the tokens of requests."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gossamer.kernels.reference._slots import demand


def nibbles(codes: Tensor) -> Tensor:
    """uint8[..., n / 2] -> [..., n]: byte i has element i in its lower half and element n / 2 + i in its upper."""
    return torch.cat([codes & 15, codes >> 4], -1)


def in_planes(codes: Tensor, planes: int) -> Tensor:
    """uint8 codes [..., width] of keys, each in 4 * planes bits -> [..., planes, width / 8, 4]: byte i has the bits of
    coordinate 8 j + i in its lower half and those of 8 j + 4 + i in its upper; plane 0 has the upper bits of all.
    """
    bits = torch.stack([codes >> 4 * (planes - 1 - i) & 15 for i in range(planes)], -2)
    low, high = bits.unflatten(-1, (-1, 2, 4)).unbind(-2)
    return low | high << 4


def from_planes(planes: Tensor) -> Tensor:
    """uint8[..., planes, width / 8, page, 4] -> codes [..., page, width]."""
    bits = torch.stack([planes & 15, planes >> 4], -2).transpose(-4, -3).flatten(-3)  # [..., planes, page, width]
    upper, *lower = bits.unbind(-3)
    return upper << 4 | lower[0] if lower else upper


def numbers(stored_numbers: Tensor, scales: Tensor | None, stored: str, *, keys: bool) -> Tensor:
    """Keys or values of tiles as float32 [..., page, width]."""
    if not keys:
        x = nibbles(stored_numbers) if stored == "int4" else stored_numbers
    else:
        x = from_planes(stored_numbers) if scales is not None else stored_numbers.transpose(-1, -2)
    x = x.float()
    if scales is None:
        return x
    by, zero = scales.float().unbind(-2)
    # Fused as in the kernels: one rounding.
    return torch.addcmul(zero.double()[..., None], x.double(), by.double()[..., None]).float()


def check_requests(offsets: Tensor, lengths: Tensor, table: Tensor, tokens: int, page: int) -> None:
    check_lengths(lengths, table, page)
    if offsets.numel() != len(table) + 1:
        raise ValueError(f"offsets must have {len(table) + 1} entries, got {offsets.numel()}")
    demand(
        (offsets[0] == 0) & (offsets[-1] == tokens) & (offsets.diff() >= 0).all(), f"offsets must go from 0 to {tokens}"
    )
    demand((lengths >= offsets.diff()).all(), "lengths must be those of all tokens, the new ones too")


def check_lengths(lengths: Tensor, table: Tensor, page: int) -> None:
    if lengths.numel() != len(table):
        raise ValueError(f"lengths must have {len(table)} entries, one for each row of table, got {lengths.numel()}")
    room = table.shape[1] * page
    demand(((lengths >= 0) & (lengths <= room)).all(), f"lengths must be at least 0 and at most {room}")


def check_heads(heads: Tensor, count: int, query_heads: int, group: int = 0) -> None:
    """`count` heads of so many, each the first of `group` that are its own; 0: one each, which may be shared."""
    if heads.numel() != count:
        raise ValueError(f"heads must have {count} entries, one for each head of the pages, got {heads.numel()}")
    below = query_heads - max(group, 1) + 1
    demand(((heads >= 0) & (heads < below)).all(), f"heads must be at least 0 and below {below}")
    demand((heads.sort().values.diff() >= group).all(), f"heads must be at least the group of {group} apart")


def check_group(group: int, query_heads: int) -> None:
    if not 1 <= group <= query_heads:
        raise ValueError(f"group must be from 1 to the {query_heads} query heads, got {group}")


def check_lists(list_offsets: Tensor, list_pages: Tensor, offsets: Tensor, list_tokens: int, heads: int) -> None:
    """A row for each block of tokens of a request and head of the pages; what they name is asked where it is read."""
    rows = heads * int((-(-offsets.diff() // list_tokens)).sum())
    if list_offsets.numel() != rows + 1:
        raise ValueError(
            f"lists must have {rows} rows, one for each block of tokens and head, got {list_offsets.numel() - 1}"
        )
    right = (list_offsets[0] == 0) & (list_offsets.diff() >= 0).all() & (list_offsets[-1] <= list_pages.numel())
    demand(right, f"lists must have offsets from 0 to at most {list_pages.numel()} that never decrease")


def tokens_of(offsets: Tensor, lengths: Tensor) -> Iterator[tuple[int, int, int, int]]:
    """(request, first row, end row, place in the request of the first) of the new tokens."""
    rows, ends = offsets.tolist(), lengths.tolist()
    for r, length in enumerate(ends):
        yield r, rows[r], rows[r + 1], length - (rows[r + 1] - rows[r])


def page_row(table: Tensor, r: int, used: int, count: int) -> Tensor:
    """Pages of request r, int64[used]; those that are none stay what they are, for nobody may look at them."""
    return table[r, :used].long().clamp(-1, count)
