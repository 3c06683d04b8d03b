"""Attention of packed texts: one kernel for all of them in float32, torch's flash attention of each in other dtypes.

torch multiplies half floats by tiles where the processor has these, several times as fast as floats.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.cpu import attention as native
from gossamer.kernels.reference import varlen_attention as plain
from gossamer.kernels.texts import CAUSAL, MASKED, Sight, Text, rows, texts

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def _is_plain(dropout: float, by_mask: bool = False) -> bool:
    """Whether somebody needs the weights themselves."""
    return dropout > 0 or by_mask


def _is_flash(q: Tensor, v: Tensor) -> bool:
    return q.dtype != torch.float32 and q.shape[2] == v.shape[2]


def _in(q: Tensor) -> torch.dtype:
    return torch.promote_types(q.dtype, torch.float32)


def _of(x: Tensor, text: Text) -> Tensor:
    """[1, heads, tokens, width] of a text."""
    return x[text[1] : text[2]].transpose(0, 1).unsqueeze(0)


def _bias(sight: Sight, text: Text, count: int, q: Tensor) -> Tensor | None:
    bias = sight.bias(text, count, q) if sight.kind == MASKED else None
    return bias if bias is None else bias[None]


def _setting(sight: Sight, offsets: Tensor, count: int, scale: float) -> native.Setting:
    """The texts, and what they see; a mask is looked at once, where it lies, if it is bool or float32."""
    of = native.Texts(offsets, len(offsets) - 1, count, 0)
    texts(offsets, count)
    if sight.kind != MASKED:
        return native.Setting(of, scale, sight.kind == CAUSAL)
    at = sight.all_places(offsets)
    assert sight.mask is not None
    seen = native.Seen(native.readable(sight.mask), at)
    return native.Setting(of, scale, seen=seen, plan=native.plan(of, seen))


def varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, kind: Tensor, mask: Tensor | None, tokens: Tensor | None,
    seed: Tensor | None, dropout: float, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `gossamer.kernels.reference.varlen_attention`."""
    if _is_plain(dropout):
        return plain.varlen_attention(q, k, v, offsets, kind, mask, tokens, seed, dropout, scale, dtype=_in(q))
    sight = Sight(kind, mask, tokens)
    lse = q.new_empty(q.shape[:2], dtype=_in(q))
    q, k, v = rows(q), rows(k), rows(v)
    if _is_flash(q, v):
        out, count = q.new_empty(q.shape), len(offsets) - 1
        for text in texts(offsets, len(q)):
            bias, place = _bias(sight, text, count, q), slice(*text[1:])
            found, sums = _flash(
                _of(q, text), _of(k, text), _of(v, text), 0.0, sight.kind == CAUSAL, attn_mask=bias, scale=scale
            )
            out[place], lse[place] = found[0].transpose(0, 1), sums[0].t()
        return out, lse
    if q.dtype == torch.float64:
        return plain.varlen_attention(q, k, v, offsets, kind, mask, tokens, seed, dropout, scale)
    setting = _setting(sight, offsets, len(q), scale)
    out = q.new_empty(*q.shape[:2], v.shape[2], dtype=torch.float32)
    native.attention(q.float(), k.float(), v.float(), out, lse, setting)
    return out.to(q.dtype), lse


def varlen_attention_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, offsets: Tensor, kind: Tensor,
    mask: Tensor | None, tokens: Tensor | None, seed: Tensor | None, dropout: float, scale: float, by_mask: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """See `gossamer.kernels.reference.varlen_attention`."""
    if _is_plain(dropout, by_mask) or (q.dtype == torch.float64 and not _is_flash(q, v)):
        return plain.varlen_attention_backward(
            dout, q, k, v, out, lse, offsets, kind, mask, tokens, seed, dropout, scale, by_mask, dtype=_in(q)
        )
    sight = Sight(kind, mask, tokens)
    dout, q, k, v, out = rows(dout), rows(q), rows(k), rows(v), rows(out)
    if _is_flash(q, v):
        dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
        count = len(offsets) - 1
        for text in texts(offsets, len(q)):
            given, queries, keys, values, result = (_of(x, text) for x in (dout, q, k, v, out))
            bias, sums = _bias(sight, text, count, q), lse[text[1] : text[2]].t().unsqueeze(0)
            found = _flash_backward(
                given, queries, keys, values, result, sums, 0.0, sight.kind == CAUSAL, attn_mask=bias, scale=scale
            )
            for into, gradient in zip((dq, dk, dv), found, strict=True):
                into[text[1] : text[2]] = gradient[0].transpose(0, 1)
        return dq, dk, dv, q.new_zeros(0)
    setting = _setting(sight, offsets, len(q), scale)
    by_q, by_k, by_v = (x.new_empty(x.shape, dtype=torch.float32) for x in (q, k, v))
    native.attention_backward(
        dout.float(), q.float(), k.float(), v.float(), out.float(), lse, by_q, by_k, by_v, setting
    )
    return by_q.to(q.dtype), by_k.to(q.dtype), by_v.to(q.dtype), q.new_zeros(0)
