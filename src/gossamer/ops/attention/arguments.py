"""What the attention ops refuse: one message per broken rule, naming the argument, its value and what was expected."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.ops.arguments import FLOATS
from gossamer.pattern.check import check_tensor


def check_operands(q: Tensor, k: Tensor, v: Tensor, before: str) -> None:
    """q[T, H, d], k[T, Hk, d], v[T, Hk, dv]; or with `before` "B" q[B, H, S, d], k[B, Hk, Sk, d], v[B, Hk, Sk, dv]."""
    packed = before == "T"
    shapes = ("[T, H, d]", "[T, Hk, d]", "[T, Hk, dv]") if packed else ("[B, H, S, d]",) + ("[B, Hk, Sk, d]",) * 2
    for name, x, shape in zip(("q", "k", "v"), (q, k, v), shapes, strict=True):
        check_tensor(name, x)
        if x.layout != torch.strided:
            raise TypeError(f"{name} must be a strided (dense) tensor, got layout {x.layout}")
        if x.dim() != (3 if packed else 4):
            raise ValueError(f"{name} must have shape {shape}, got {tuple(x.shape)}")
        if x.dtype != q.dtype or x.device != q.device:
            raise TypeError(f"{name} must be {q.dtype} on {q.device} like q, got {x.dtype} on {x.device}")
    if q.dtype not in FLOATS:
        raise TypeError(f"q must be float64, float32, bfloat16 or float16, got {q.dtype}")
    if q.shape[0] != k.shape[0] or q.shape[-1] != k.shape[-1] or q.shape[-1] < 1:
        raise ValueError(f"k must have q's {before} and d (at least 1), got {tuple(k.shape)} beside q {tuple(q.shape)}")
    if k.shape[:-1] != v.shape[:-1] or v.shape[-1] < 1:
        raise ValueError(f"v must have k's shape but for dv (at least 1), got {tuple(v.shape)} beside {tuple(k.shape)}")
    if k.shape[1] < 1 or q.shape[1] % k.shape[1] or q.shape[1] < 1:
        raise ValueError(f"k must have heads that divide the {q.shape[1]} of q, got {k.shape[1]}")


def check_mask(mask: Tensor, q: Tensor) -> None:
    """[B or 1, H or 1, S or 1, S], bool or float."""
    check_tensor("mask", mask)
    if mask.dtype != torch.bool and mask.dtype not in FLOATS:
        raise TypeError(f"mask must be bool (True: is seen) or float (is added to scores), got {mask.dtype}")
    if mask.dim() != 4 or mask.shape[1] not in (1, q.shape[1]):
        raise ValueError(
            f"mask must have shape [texts or 1, {q.shape[1]} heads or 1, rows or 1, columns], got {tuple(mask.shape)}"
        )
    if mask.device != q.device:
        raise ValueError(f"mask must be on q's device {q.device}, got {mask.device}")


def once(x: Tensor) -> Tensor:
    """A view without what repeats: a dimension of stride 0 has one entry."""
    return x[tuple(slice(None) if step else slice(1) for step in x.stride())]


def check_share(name: str, share: float) -> None:
    if not isinstance(share, (int, float)) or isinstance(share, bool) or not 0 <= share <= 1:
        raise ValueError(f"{name} must be a number from 0 to 1, got {share!r}")
