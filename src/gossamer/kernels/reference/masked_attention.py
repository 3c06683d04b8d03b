"""Attention over a mask: the oracle, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.texts import attend, attend_backward


def _bias(mask: Tensor, q: Tensor, k: Tensor, dtype: torch.dtype) -> Tensor:
    wide = mask.expand(len(q), q.shape[1], q.shape[2], k.shape[2])
    if wide.dtype != torch.bool:
        return wide.to(dtype)
    return torch.zeros(wide.shape, dtype=dtype, device=q.device).masked_fill_(~wide, -torch.inf)


def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, *, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """out[B, H, S, dv] and lse[B, H, S], the logarithm of the sum of exp(score), of q[B, H, S, d], k[B, Hk, Sk, d],
    v[B, Hk, Sk, dv] and a mask that broadcasts to [B, H, S, Sk], bool (True: is seen) or float (is added to scores).

    out lies in memory as [B, S, H, dv]. `dtype` is what sums are made in.
    """
    texts, heads, rows, _ = q.shape
    out = q.new_empty(texts, rows, heads, v.shape[3])
    lse = q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
    bias = _bias(mask, q, k, dtype)
    for b in range(texts):
        found, sums = attend(q[b].to(dtype), k[b].to(dtype), v[b].to(dtype), bias[b], None, scale)
        out[b], lse[b] = found.transpose(0, 1).to(out.dtype), sums.to(lse.dtype)
    return out.transpose(1, 2), lse


def masked_attention_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, out: Tensor, lse: Tensor, scale: float,
    *, dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients by q, k and v, in memory as [B, S, heads, width]."""
    gradients = [x.new_empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3]) for x in (q, k, v)]
    bias = _bias(mask, q, k, dtype)
    for b in range(len(q)):
        given, queries, keys, values, result = (x[b].to(dtype) for x in (dout, q, k, v, out))
        found = attend_backward(given, queries, keys, values, result, lse[b].to(dtype), bias[b], None, scale)
        for into, each in zip(gradients, found[:3], strict=True):
            into[b] = each.transpose(0, 1).to(into.dtype)
    dq, dk, dv = (x.transpose(1, 2) for x in gradients)
    return dq, dk, dv
