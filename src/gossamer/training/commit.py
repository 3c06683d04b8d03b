"""Write the decision of an event: masks, the values of grown weights, zeros where weights and states went."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gossamer.training.random import normal
from gossamer.training.weights import Layer, Masked

if TYPE_CHECKING:
    from gossamer.training.engine import Change, Method


@torch.no_grad()
def commit(method: Method, changes: Change) -> int:
    """Give layers their new units; returns how many weights were grown."""
    grown: dict[Masked, int] = {}
    before = {layer.tensor: layer.tensor.mask.clone() for layer in changes} if method.grow_warmup else {}
    for layer, units in changes.items():
        value = None if method.grow_init == "zeros" else _grown(method, layer)
        gains = layer.take(units, method.optimizer, value)
        grown[layer.tensor] = grown.get(layer.tensor, 0) + gains
    for tensor, mask in before.items():
        method.warmup.grown(tensor, tensor.mask & ~mask)
    for tensor, gains in grown.items():
        method.churn[tensor.name] = gains / max(tensor.weights(tensor.mask), 1)
        method.apply_mask(tensor)
        method.ever_active.record(tensor)
    return sum(grown.values())


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
