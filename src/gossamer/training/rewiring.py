"""Drop and grow over several layers as if they were one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gossamer.training.select import rewire
from gossamer.training.weights import Layer

Change = dict[Layer, Tensor]
"""The units (bool[layer.units]) that layers have from now on."""


def rewire_together(
    layers: Sequence[Layer],
    *,
    drop: int = 0,
    grow: int = 0,
    drop_scores: Callable[[Layer], Tensor] | None = None,
    grow_scores: Callable[[Layer], Tensor] | None = None,
    regrow: bool = True,
) -> Change:
    """`rewire` over several layers as if they were one: scores are compared globally, ties to the first layer.

    Raises:
        ValueError: more to drop than there is, or more to grow than the living channels have room for; units of
        different sizes.
    """
    if len({layer.tile for layer in layers}) > 1:
        sizes = {layer.name: layer.tile for layer in layers}
        raise ValueError(f"layers are ranked together only if their units have one size, got tiles {sizes}")
    device = layers[0].tensor.parameter.device

    def joined(parts: list[Tensor]) -> Tensor:
        return torch.cat([part.to(device) for part in parts])

    new = rewire(
        joined([layer.active() for layer in layers]),
        drop=drop,
        grow=grow,
        drop_scores=joined([drop_scores(layer) for layer in layers]) if drop_scores and drop else None,
        grow_scores=joined([grow_scores(layer) for layer in layers]) if grow_scores and grow else None,
        allowed=joined([room(layer) for layer in layers]),
        regrow=regrow,
    )
    parts = new.split([layer.units for layer in layers])
    return {layer: part.to(layer.tensor.parameter.device) for layer, part in zip(layers, parts, strict=True)}


def room(layer: Layer) -> Tensor:
    """bool[units]: units in living channels."""
    allowed = layer.allowed()
    return torch.ones_like(layer.active()) if allowed is None else allowed
