"""What a product whose zeros are skipped at run time takes: the operands of `gs.ops.matmul`, planned or multiplied."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_operands(a: Tensor, b: Tensor, sparse: str) -> None:
    """Refuse operands that do not multiply: a [m, k] or [batch, m, k] and b [k, n] or [batch, k, n], of one dtype."""
    for name, x in (("a", a), ("b", b)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
        if x.layout != torch.strided or x.dtype not in FLOATS:
            raise TypeError(
                f"{name} must be a strided float64, float32, bfloat16 or float16 tensor, got {x.dtype}, {x.layout}"
            )
        if x.dim() not in (2, 3):
            raise ValueError(f"{name} must have 2 or 3 dimensions, got shape {tuple(x.shape)}")
    if b.dtype != a.dtype:
        raise TypeError(f"b must have a's dtype {a.dtype}, got {b.dtype}")
    if b.device != a.device:
        raise ValueError(f"b must be on a's device {a.device}, got {b.device}")
    if sparse not in ("a", "b"):
        raise ValueError(f"sparse must be 'a' or 'b', got {sparse!r}")
    if b.shape[-2] != a.shape[-1]:
        raise ValueError(f"b must have {a.shape[-1]} rows, a's columns, got shape {tuple(b.shape)}")
    if b.dim() == 3 and (a.dim() == 2 or a.shape[0] != b.shape[0]):
        raise ValueError(f"b must be one matrix or match the batch of a {tuple(a.shape)}, got shape {tuple(b.shape)}")
