"""Optimizer state of shrunk parameters: every tensor shaped like the parameter is sliced like the parameter."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def check_state(optimizer: torch.optim.Optimizer, parameters: dict[str, Tensor]) -> None:
    """Refuse, before anything changes, state whose layout is unknown (factored moments, flattened histories).

    Raises:
        ValueError: a state tensor of a parameter to shrink is neither a scalar nor shaped like the parameter.
    """
    names = {id(tensor): name for name, tensor in parameters.items()}
    for parameter, state in optimizer.state.items():
        name = names.get(id(parameter))
        if name is None:
            continue
        for key, value in state.items():
            if not _known(value, parameter):
                shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"{type(optimizer).__name__} keeps {key!r} of {name} as {shape}, expected a scalar or the "
                    f"parameter's shape {tuple(parameter.shape)}: this optimizer state cannot be sliced"
                )


def _known(value: Any, parameter: Tensor) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 or value.shape == parameter.shape
    return value is None or isinstance(value, (int, float, bool, str))


def slice_state(
    optimizer: torch.optim.Optimizer, parameter: Tensor, shape: torch.Size, kept: Mapping[int, Tensor]
) -> None:
    """Slice the state of one parameter that had `shape`; scalars (Adam's step) stay."""
    state = optimizer.state.get(parameter, {})
    for key, value in state.items():
        if isinstance(value, Tensor) and value.shape == shape and value.dim() > 0:
            state[key] = sliced(value, kept)


def sliced(tensor: Tensor, kept: Mapping[int, Tensor]) -> Tensor:
    """The positions `kept[axis]` of every listed axis, in the tensor's own memory format."""
    out = tensor.detach()
    for axis, index in kept.items():
        out = out.index_select(axis, index.to(tensor.device))
    for rank, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if tensor.dim() == rank and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=layout):
            return out.contiguous(memory_format=layout)
    return out.contiguous()


def copied(optimizer: torch.optim.Optimizer, model: nn.Module, twin: nn.Module) -> torch.optim.Optimizer:
    """The same optimizer (class, hyperparameters, state) over the parameters of `twin`, a copy of `model`, in the same
    order; hooks are not copied.

    Raises:
        ValueError: the optimizer holds a tensor that is not a parameter of `model`.
    """
    memo: dict[int, Any] = {id(p): q for p, q in zip(model.parameters(), twin.parameters(), strict=True)}
    for number, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            if id(parameter) not in memo:
                raise ValueError(
                    f"param_groups[{number}] of the optimizer holds a tensor of shape {tuple(parameter.shape)} that "
                    "is not a parameter of the model"
                )
    return copy.deepcopy(optimizer, memo)
