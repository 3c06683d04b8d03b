"""The names of a model's parameters and buffers, where modules share them."""

from __future__ import annotations

from torch import Tensor, nn


def state_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by their first name; a tensor shared by several modules appears once."""
    named: dict[str, Tensor] = dict(model.named_parameters())
    named.update(model.named_buffers())
    return named


def first_names(model: nn.Module) -> dict[str, str]:
    """Every state name, shared ones included -> the first name of the same tensor."""
    names: dict[int, str] = {id(tensor): name for name, tensor in reversed(state_tensors(model).items())}
    every = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: names[id(tensor)] for name, tensor in every}
