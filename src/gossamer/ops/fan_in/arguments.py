"""What the ops on classifiers of fixed fan-in refuse: one message per broken rule, naming the argument."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gossamer.ops.checks import check_integer

VALUES = (torch.float32, torch.bfloat16)
INDICES = (torch.uint16, torch.int32)


def check_labels(values: Tensor, indices: Tensor, bias: Tensor | None, group: int) -> None:
    """values[labels, k], indices[ceil(labels / group), k] and bias[labels] or None, on one device."""
    check_tensor("values", values, VALUES, 2)
    check_tensor("indices", indices, INDICES, 2, values.device)
    check_integer("group", group, 1)
    labels, k = values.shape
    if tuple(indices.shape) != (-(-labels // group), k):
        raise ValueError(
            f"indices must have the shape {(-(-labels // group), k)} for {labels} labels in groups of {group}, got "
            f"{tuple(indices.shape)}"
        )
    if bias is not None:
        check_tensor("bias", bias, (torch.float32,), 1, values.device)
        if bias.numel() != labels:
            raise ValueError(f"bias must have {labels} entries, one for each label, got {bias.numel()}")


def check_tensor(
    name: str, x: Tensor, dtypes: tuple[torch.dtype, ...], dim: int, device: torch.device | None = None
) -> None:
    """A tensor of one of the dtypes, with so many dimensions, on the device of values."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.layout is not torch.strided:
        raise TypeError(f"{name} must be a strided (dense) tensor, got layout {x.layout}")
    if x.dtype not in dtypes:
        raise TypeError(f"{name} must have dtype {' or '.join(map(str, dtypes))}, got {x.dtype}")
    if x.dim() != dim:
        raise ValueError(f"{name} must have {dim} dimensions, got shape {tuple(x.shape)}")
    if device is not None and x.device != device:
        raise ValueError(f"{name} must be on the device of values, {device}, got {x.device}")


def pair_of(name: str, pair: Any, parts: str) -> tuple[Any, Any]:
    """Both parts of what must be a pair of `parts`."""
    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
        raise TypeError(f"{name} must be a pair ({parts}), got {type(pair).__name__}")
    return pair[0], pair[1]
