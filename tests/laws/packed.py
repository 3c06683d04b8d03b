"""Packed texts in the table of ops: every token sees itself alone, whose weight is exactly 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

HEADS, GROUP, WIDTH = 2, 2, 8


def varlen_arguments(d: Any, masked: bool) -> tuple[Any, ...]:
    """Texts of one token; or one text, whose mask hides everything else: minus infinity is added there."""
    rows = d.rows
    operands = d(rows, HEADS * GROUP, WIDTH), d(rows, HEADS, WIDTH), d(rows, HEADS, WIDTH) + 1
    if not masked:
        return *operands, torch.arange(rows + 1), torch.tensor(rows % 2), None, None, None, 0.0, 1.0
    place = torch.randperm(rows + 2)[:rows]
    mask = torch.eye(rows + 2).log()[None, None]
    return *operands, torch.tensor([0, 0, rows, rows]), torch.tensor(2), mask, place + rows + 2, None, 0.0, 1.0


def alone(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return v.repeat_interleave(GROUP, 1), (q * k.repeat_interleave(GROUP, 1)).sum(-1)


def varlen_backward_arguments(d: Any, masked: bool) -> tuple[Any, ...]:
    q, k, v, *sight = varlen_arguments(d, masked)
    return d(*q.shape), q, k, v, *alone(q, k, v), *sight, masked


def alone_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, offsets: Tensor, kind: Tensor,
    mask: Tensor | None, *_: Any
) -> tuple[Tensor, ...]:  # fmt: skip
    """The weight is 1 whatever the score, so only v has a gradient."""
    dmask = torch.zeros(0) if mask is None else torch.zeros_like(mask)
    return torch.zeros_like(q), torch.zeros_like(k), dout.unflatten(1, (HEADS, GROUP)).sum(2), dmask


def masked_arguments(d: Any, added: bool) -> tuple[Any, ...]:
    """Row i sees key place[i] alone: bytes that all heads share, or floats of each head."""
    rows = d.rows
    q, k, v = (d(2, heads, rows, WIDTH) + 1 for heads in (HEADS * GROUP, HEADS, HEADS))
    seen = torch.eye(rows, dtype=torch.bool)[torch.randperm(rows)]
    return q, k, v, seen.float().log().expand(2, HEADS * GROUP, -1, -1) if added else seen[None, None], 0.5


def picked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    place = (mask.float()[0, 0] + 1).argmax(1) if mask.numel() else torch.zeros(0, dtype=torch.int64)
    keys, values = (x[:, :, place].repeat_interleave(GROUP, 1) for x in (k, v))
    return values, scale * (q * keys).sum(-1)


def masked_backward_arguments(d: Any, added: bool) -> tuple[Any, ...]:
    q, k, v, mask, scale = masked_arguments(d, added)
    return d(*q.shape), q, k, v, mask, *picked(q, k, v, mask, scale), scale


def picked_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, ...]:
    place = (mask.float()[0, 0] + 1).argmax(1) if mask.numel() else torch.zeros(0, dtype=torch.int64)
    dv = torch.zeros_like(v)
    dv[:, :, place] = dout.unflatten(1, (HEADS, GROUP)).sum(2)
    return torch.zeros_like(q), torch.zeros_like(k), dv
