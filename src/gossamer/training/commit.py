"""Write the decision of an event: masks, the values of grown weights, zeros where weights and states went."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.training.random import normal
from gossamer.training.rewiring import Change
from gossamer.training.state import State
from gossamer.training.weights import Layer, Masked


@torch.no_grad()
def commit(state: State, changes: Change) -> int:
    """Give layers their new units; returns how many weights were grown."""
    grown: dict[Masked, int] = {}
    before = {layer.tensor: layer.tensor.mask.clone() for layer in changes} if state.grow_warmup else {}
    for layer, units in changes.items():
        value = None if state.grow_init == "zeros" else _grown(state, layer)
        gains = layer.take(units, state.optimizer, value)
        grown[layer.tensor] = grown.get(layer.tensor, 0) + gains
    for tensor, mask in before.items():
        state.warmup.grown(tensor, tensor.mask & ~mask)
    for tensor, gains in grown.items():
        state.churn[tensor.name] = gains / max(tensor.weights(tensor.mask), 1)
        state.apply_mask(tensor)
        state.ever_active.record(tensor)
    return sum(grown.values())


def _grown(state: State, layer: Layer) -> Tensor:
    """[rows, cols]: what weights of this layer are worth when they grow."""
    parameter = layer.tensor.parameter
    if state.grow_init == "gradient":
        group = next(g for g in state.optimizer.param_groups if any(p is parameter for p in g["params"]))
        return -group["lr"] * layer.view(state.gradients.now[layer.tensor.name])
    live = layer.view(parameter)[layer.view(layer.tensor.mask)]
    deviation = live.float().std(unbiased=False) if live.numel() else live.new_zeros(())
    rows, cols = layer.shape
    noise = normal(
        rows * cols, seed=state.seed, name=layer.name, step=state.step, purpose="value", device=parameter.device
    )
    return (noise * deviation).view(rows, cols).to(parameter.dtype)
