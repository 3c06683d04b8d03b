"""Attention of packed texts, each within itself: the oracle, in float64, a text at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.texts import Dropout, Sight, attend, attend_backward, texts


def _of(x: Tensor, begin: int, end: int, dtype: torch.dtype) -> Tensor:
    """[heads, tokens, width] of a text."""
    return x[begin:end].transpose(0, 1).to(dtype)


def varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, kind: Tensor, mask: Tensor | None, tokens: Tensor | None,
    seed: Tensor | None, dropout: float, scale: float, *, dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """out[T, H, dv] and lse[T, H], the logarithm of the sum of exp(score), of q[T, H, d], k[T, Hk, d], v[T, Hk, dv].

    Text b has the rows offsets[b]:offsets[b + 1]. kind: see `Sight`. `dtype` is what sums are made in.
    """
    out = q.new_empty(*q.shape[:2], v.shape[2])
    lse = q.new_empty(q.shape[:2], dtype=torch.promote_types(q.dtype, torch.float32))
    sight, drop = Sight(kind, mask, tokens), Dropout(seed, dropout, q)
    for text in texts(offsets, len(q)):
        rows = text[1:]
        queries, keys, values = (_of(x, *rows, dtype) for x in (q, k, v))
        kept = drop.kept(len(queries), queries.shape[1], queries)
        found, sums = attend(queries, keys, values, sight.bias(text, len(offsets) - 1, queries), kept, scale)
        out[slice(*rows)], lse[slice(*rows)] = found.transpose(0, 1).to(out.dtype), sums.t().to(lse.dtype)
    return out, lse


def varlen_attention_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, offsets: Tensor, kind: Tensor,
    mask: Tensor | None, tokens: Tensor | None, seed: Tensor | None, dropout: float, scale: float, by_mask: bool,
    *, dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients by q, k, v, and by the mask where `by_mask` (else an empty tensor)."""
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    dmask = q.new_zeros(0) if mask is None or not by_mask else mask.new_zeros(mask.shape)
    sight, drop = Sight(kind, mask, tokens), Dropout(seed, dropout, q)
    for text in texts(offsets, len(q)):
        rows = text[1:]
        given, queries, keys, values, result = (_of(x, *rows, dtype) for x in (dout, q, k, v, out))
        kept = drop.kept(len(queries), queries.shape[1], queries)
        sums, bias = lse[slice(*rows)].t().to(dtype), sight.bias(text, len(offsets) - 1, queries)
        found = attend_backward(given, queries, keys, values, result, sums, bias, kept, scale)
        for into, each in zip((dq, dk, dv), found[:3], strict=True):
            into[slice(*rows)] = each.transpose(0, 1).to(into.dtype)
        if by_mask and sight.kind == 2:
            sight.add_gradient(dmask, text, len(offsets) - 1, found[3])
    return dq, dk, dv, dmask
