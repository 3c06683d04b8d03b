"""What the ops on classifiers of fixed fan-in refuse: one message per broken rule, naming the argument."""

from __future__ import annotations

import torch
from torch import Tensor

VALUES = (torch.float32, torch.bfloat16)
INDICES = (torch.uint16, torch.int32)


def check_labels(values: Tensor, indices: Tensor, bias: Tensor | None, group: int) -> None:
    """values[labels, k], indices[ceil(labels / group), k] and bias[labels] or None, on one device."""
    check_tensor("values", values, VALUES, 2)
    check_tensor("indices", indices, INDICES, 2, values.device)
    if not isinstance(group, int) or group < 1:
        raise ValueError(f"group must be an integer of at least 1, got {group!r}")
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
    if x.dtype not in dtypes:
        raise TypeError(f"{name} must have dtype {' or '.join(map(str, dtypes))}, got {x.dtype}")
    if x.dim() != dim:
        raise ValueError(f"{name} must have {dim} dimensions, got shape {tuple(x.shape)}")
    if device is not None and x.device != device:
        raise ValueError(f"{name} must be on the device of values, {device}, got {x.device}")
