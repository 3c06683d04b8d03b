"""What the oracles of attention over pages share: the numbers of a page as floats, and the tokens of requests."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gossamer.kernels.reference._slots import demand


def nibbles(codes: Tensor) -> Tensor:
    """uint8[..., n / 2] -> [..., n]: byte i has element i in its lower half and element n / 2 + i in its upper."""
    return torch.cat([codes & 15, codes >> 4], -1)


def numbers(stored_numbers: Tensor, scales: Tensor | None, stored: str, *, keys: bool) -> Tensor:
    """Keys or values of tiles as float32 [..., page, width]."""
    x = nibbles(stored_numbers) if stored == "int4" else stored_numbers
    x = x.float().transpose(-1, -2) if keys else x.float()
    if scales is None:
        return x
    by, zero = scales.float().unbind(-2)
    # Fused as in the kernels: one rounding.
    return torch.addcmul(zero.double()[..., None], x.double(), by.double()[..., None]).float()


def sketched(codes: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes uint8[..., page, width] of the sketches of pages, the scales and the zeros [..., page] of their keys."""
    halves = torch.stack([codes & 15, codes >> 4], -2)  # [..., width / 8, page, 2, 4]
    scale, zero = scales.unbind(-2)
    return halves.transpose(-4, -3).flatten(-3), scale, zero


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
