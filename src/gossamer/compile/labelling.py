"""Label a Dynamo graph: every dimension with its axes, from the inputs on."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph

from gossamer.compile.labels import Axes, Size, same
from gossamer.compile.operators import CannotPack, call_of, operator_of


def labelled(graph: Graph) -> Axes:
    """The axes of all tensors of a graph whose nodes have example values.

    What an operator does that nobody here knows is not guessed: its result has axes of its own.
    """
    axes = Axes()
    for node in graph.nodes:
        value = node.meta.get("example_value")
        label: Any = None
        call = call_of(node)
        known = operator_of(call) if call is not None else None
        if call is not None and known is not None and isinstance(value, (torch.Tensor, tuple, list)):
            try:
                label = known.label(call, axes)
            except (CannotPack, AssertionError, AttributeError, KeyError, IndexError, ValueError, TypeError):
                label = None  # called in a way that is not known
        axes.labels[node] = label if _fits(label, value, axes) else _own(value, axes)
    return axes


def _own(value: Any, axes: Axes) -> Any:
    if isinstance(value, torch.Tensor):
        return axes.fresh_label(tuple(value.shape))
    if isinstance(value, (tuple, list)):
        return tuple(_own(each, axes) for each in value)
    return None


def _fits(label: Any, value: Any, axes: Axes) -> bool:
    """Whether a label has one entry for each dimension, of its size."""
    if not isinstance(label, tuple):
        return False
    if isinstance(value, torch.Tensor):
        sizes = tuple(value.shape)
        return len(label) == len(sizes) and all(
            _is_dim(dim, size, axes) for dim, size in zip(label, sizes, strict=True)
        )
    if isinstance(value, (tuple, list)):
        return len(label) == len(value) and all(_fits(*each, axes) for each in zip(label, value, strict=True))
    return False


def _is_dim(dim: Any, size: Size, axes: Axes) -> bool:
    if not isinstance(dim, tuple) or not all(isinstance(axis, int) for axis in dim):
        return False
    product: Size = 1
    for axis in dim:
        product = product * axes.size(axis)
    return same(product, size)
