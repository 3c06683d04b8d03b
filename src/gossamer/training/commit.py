"""Write the decision of an event: masks, the values of grown weights, zeros where weights and states went."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gossamer.training.random import normal
from gossamer.training.weights import Layer

if TYPE_CHECKING:
    from gossamer.training.engine import Change, Method


@torch.no_grad()
def commit(method: Method, changes: Change) -> int:
    """Give layers their new units; returns how many weights were grown."""
    grown = 0
    for layer, units in changes.items():
        tensor = layer.tensor
        old, new = layer.view(tensor.mask), layer.elements(units)
        fresh = new & ~old
        gains = int(fresh.sum())
        if method.grow_init != "zeros" and gains:
            value = torch.where(fresh, _grown(method, layer), layer.view(tensor.parameter))
            layer.assign(tensor.parameter.data, value)
        layer.assign(tensor.mask, new)
        method.churn[tensor.name] = gains / max(int(new.sum()), 1)
        grown += gains
    for tensor in {id(layer.tensor): layer.tensor for layer in changes}.values():
        method.apply_mask(tensor)
        method.ever_active.record(tensor)
    return grown


def _grown(method: Method, layer: Layer) -> Tensor:
    """[rows, cols]: what weights of this layer are worth when they grow."""
    parameter = layer.tensor.parameter
    if method.grow_init == "gradient":
        group = next(g for g in method.optimizer.param_groups if any(p is parameter for p in g["params"]))
        return -group["lr"] * layer.view(method.gradients.now[layer.tensor.name])
    live = layer.view(parameter)[layer.view(layer.tensor.mask)]
    deviation = live.float().std(unbiased=False) if live.numel() else live.new_zeros(())
    rows, cols = layer.shape
    noise = normal(
        rows * cols, seed=method.seed, name=layer.name, step=method.step, purpose="value", device=parameter.device
    )
    return (noise * deviation).view(rows, cols).to(parameter.dtype)
