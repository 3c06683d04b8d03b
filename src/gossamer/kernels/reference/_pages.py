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


def check_requests(offsets: Tensor, lengths: Tensor, table: Tensor, tokens: int, count: int, page: int) -> None:
    demand(
        (offsets[0] == 0) & (offsets[-1] == tokens) & (offsets.diff() >= 0).all(), f"offsets must go from 0 to {tokens}"
    )
    room = table.shape[1] * page
    demand(
        ((lengths >= offsets.diff()) & (lengths <= room)).all(),
        f"lengths must be those of all tokens and at most {room}",
    )


def tokens_of(offsets: Tensor, lengths: Tensor) -> Iterator[tuple[int, int, int, int]]:
    """(request, first row, end row, place in the request of the first) of the new tokens."""
    rows, ends = offsets.tolist(), lengths.tolist()
    for r, length in enumerate(ends):
        yield r, rows[r], rows[r + 1], length - (rows[r + 1] - rows[r])


def page_row(table: Tensor, r: int, used: int, count: int) -> Tensor:
    """Pages of request r, int64[used]; those that are none stay what they are, for nobody may look at them."""
    return table[r, :used].long().clamp(-1, count)
