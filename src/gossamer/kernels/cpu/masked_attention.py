"""Attention over a mask: queries that look alike meet only the keys that one of them sees."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.cpu import attention as native
from gossamer.kernels.reference import masked_attention as plain
from gossamer.kernels.texts import rows


def find_seen(q: Tensor, k: Tensor, mask: Tensor, scale: float) -> tuple[native.Setting, float]:
    """What blocks of queries see, and the share that is of all: looks at the mask once."""
    texts = native.Texts(None, len(q), q.shape[2], k.shape[2])
    seen = native.Seen(native.readable(mask))
    plan = native.plan(texts, seen)
    planes = seen.numbers(texts)[2:4]
    return native.Setting(texts, scale, seen=seen, plan=plan), plan.cost / max(
        planes[0] * planes[1] * q.shape[2] * k.shape[2], 1
    )


def _empty(x: Tensor, width: int) -> Tensor:
    """float32 [B, heads, rows, width], in memory as [B, rows, heads, width]."""
    texts, heads, count, _ = x.shape
    strides = (count * heads * width, width, heads * width, 1)
    return torch.empty_strided((texts, heads, count, width), strides, dtype=torch.float32, device="cpu")


def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, *, setting: native.Setting | None = None
) -> tuple[Tensor, Tensor]:
    """See `gossamer.kernels.reference.masked_attention`. setting: from `find_seen`, if it was asked before."""
    if q.dtype == torch.float64:
        return plain.masked_attention(q, k, v, mask, scale)
    if setting is None:
        setting = find_seen(q, k, mask, scale)[0]
    out, lse = _empty(q, v.shape[3]), torch.empty(q.shape[:3], dtype=torch.float32, device="cpu")
    native.attention(rows(q.float()), rows(k.float()), rows(v.float()), out, lse, setting)
    return out.to(q.dtype), lse


def masked_attention_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, out: Tensor, lse: Tensor, scale: float,
    *, setting: native.Setting | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """See `gossamer.kernels.reference.masked_attention`."""
    if q.dtype == torch.float64:
        return plain.masked_attention_backward(dout, q, k, v, mask, out, lse, scale)
    if setting is None:
        setting = find_seen(q, k, mask, scale)[0]
    dq, dk, dv = (_empty(x, x.shape[3]) for x in (q, k, v))
    given, wide_q, wide_k, wide_v, result = (rows(x.float()) for x in (dout, q, k, v, out))
    native.attention_backward(given, wide_q, wide_k, wide_v, result, lse, dq, dk, dv, setting)
    return dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype)
