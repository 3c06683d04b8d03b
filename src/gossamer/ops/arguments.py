"""What the products refuse: one message per broken rule, naming the argument, its value and what was expected."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.ops import index
from gossamer.ops.index import check_pattern
from gossamer.ops.registration import Backend, check_backend
from gossamer.ops.tiles import Transposed
from gossamer.pattern import Pattern
from gossamer.pattern.check import check_matrix
from gossamer.planner.operands import FLOATS

STORED = (torch.bfloat16, torch.int8)


def check_device(name: str, x: Tensor, device: torch.device) -> None:
    if x.device != device:
        raise ValueError(f"{name} must be on the pattern's device {device}, got {x.device}")


def check_factor(name: str, x: Tensor, device: torch.device) -> None:
    """A dense operand of a product: a float matrix on the pattern's device."""
    check_matrix(name, x)
    if x.dtype not in FLOATS:
        raise TypeError(f"{name} must be float64, float32, bfloat16 or float16, got {x.dtype}")
    check_device(name, x, device)


def check_values(values: Tensor, pattern: Pattern, dense: Tensor, name: str, scale: Tensor | None) -> None:
    """Values [capacity, bm, bn] of a dtype that multiplies `dense`, the argument called `name`; and their scale."""
    index.check_values(values, pattern)
    check_device("values", values, pattern.device)
    if values.dtype != dense.dtype and (values.dtype not in STORED or dense.dtype == torch.float64):
        raise TypeError(
            f"values must have {name}'s dtype {dense.dtype}, or be stored as bfloat16 or int8 beside a float32 "
            f"{name}, got {values.dtype}"
        )
    if scale is None:
        if values.dtype == torch.int8:
            raise TypeError("scale must be given with int8 values: float32[capacity], one factor for each tile")
        return
    if not isinstance(scale, Tensor) or scale.dtype != torch.float32:
        raise TypeError(f"scale must be a float32 tensor, got {getattr(scale, 'dtype', type(scale).__name__)}")
    if tuple(scale.shape) != (pattern.capacity,):
        raise ValueError(f"scale must have shape [capacity] = {(pattern.capacity,)}, got {tuple(scale.shape)}")
    check_device("scale", scale, pattern.device)
    if scale.requires_grad and torch.is_grad_enabled():
        raise ValueError("scale has no gradient: multiply the values by it, or detach it")


def check_transposed(transposed: Transposed | None, pattern: Pattern) -> None:
    if transposed is None:
        return
    if not isinstance(transposed, Transposed):
        raise TypeError(f"transposed must come from gossamer.ops.transpose, got {type(transposed).__name__}")
    other = transposed.pattern
    check_pattern(other, "transposed.pattern")
    expected = pattern.shape[::-1], pattern.tile[::-1], pattern.capacity, pattern.device
    found = other.shape, other.tile, other.capacity, other.device
    if found != expected:
        raise ValueError(
            f"transposed must belong to the pattern: expected (shape, tile, capacity, device) {expected}, got {found}"
        )
    if not isinstance(transposed.order, Tensor) or transposed.order.device != pattern.device:
        raise ValueError(
            f"transposed.order must be a tensor on the pattern's device {pattern.device}, got "
            f"{getattr(transposed.order, 'device', type(transposed.order).__name__)}"
        )
    check_work("transposed.work", transposed.work, pattern)


def check_product(
    name: str,
    dense: Tensor,
    values: Tensor,
    pattern: Pattern,
    transposed: Transposed | None,
    work: Tensor | None,
    scale: Tensor | None,
    backend: Backend | None,
) -> None:
    """What dsd and dds ask of their arguments; `name` is what the op calls its dense operand."""
    check_pattern(pattern)
    check_factor(name, dense, pattern.device)
    if name == "b" and dense.shape[0] != pattern.shape[1]:
        raise ValueError(f"b must have {pattern.shape[1]} rows, the pattern's columns, got shape {tuple(dense.shape)}")
    if name == "a" and dense.shape[1] != pattern.shape[0]:
        raise ValueError(f"a must have {pattern.shape[0]} columns, the pattern's rows, got shape {tuple(dense.shape)}")
    check_values(values, pattern, dense, name, scale)
    check_transposed(transposed, pattern)
    check_work("work", work, pattern)
    check_backend(backend, name, dense)


def check_work(name: str, work: Tensor | None, pattern: Pattern) -> None:
    if work is None:
        return
    if not isinstance(work, Tensor) or work.dtype != torch.int64:
        raise TypeError(f"{name} must be an int64 tensor, got {getattr(work, 'dtype', type(work).__name__)}")
    if work.dim() != 3 or work.shape[2] != 3:
        raise ValueError(f"{name} must have shape [parts, segments, 3], got {tuple(work.shape)}")
    check_device(name, work, pattern.device)
