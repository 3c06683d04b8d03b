"""Hints: here are zeros that the compiler could not know of."""

from __future__ import annotations

from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils.hooks import RemovableHandle


@torch.compiler.allow_in_graph
def marked(x: Tensor, axis: int) -> Tensor:
    """x. A graph that is compiled by gossamer knows of its zeros; everybody else sees x."""
    return x.view_as(x)


class _Mark:
    """The hook of a module whose result has zeros."""

    def __init__(self, axis: int) -> None:
        self.axis = axis

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            raise TypeError(
                f"mark_sparse needs a module that returns a tensor; {type(module).__name__} returned "
                f"{type(output).__name__}: mark the tensor inside of it"
            )
        return mark_sparse(output, axis=self.axis)


@overload
def mark_sparse(it: Tensor, *, axis: int = -1) -> Tensor: ...
@overload
def mark_sparse(it: nn.Module, *, axis: int = -1) -> RemovableHandle: ...
def mark_sparse(it: Tensor | nn.Module, *, axis: int = -1) -> Tensor | RemovableHandle:
    """Say that a tensor, or what a module returns, holds zeros along an axis at run time.

    Under `torch.compile(backend="gossamer")` products along the axis then look for zeros in each call, as they do
    behind a ReLU. Nothing else changes: numbers are the same, zeros or not, and without the compiler it does nothing.

    Args:
        it: a tensor in a `forward`, or a module that returns one.
        axis: the dimension with zeros; -1 is the last, along which a linear layer multiplies.

    Returns:
        For a tensor: the tensor to go on with. For a module: a handle whose `remove()` takes the hint back.

    Raises:
        TypeError: neither tensor nor module, an axis that is no integer. IndexError: an axis that x lacks.

    >>> mark_sparse(torch.ones(2, 3)).shape
    torch.Size([2, 3])
    """
    if isinstance(axis, bool) or not isinstance(axis, int):
        raise TypeError(f"axis must be an integer, got {axis!r}")
    if isinstance(it, nn.Module):
        return it.register_forward_hook(_Mark(axis))
    if not isinstance(it, Tensor):
        raise TypeError(f"mark_sparse takes a tensor or a module, got {type(it).__name__}")
    if not -it.dim() <= axis < it.dim():
        raise IndexError(f"axis must be from {-it.dim()} to {it.dim() - 1} for shape {tuple(it.shape)}, got {axis}")
    return marked(it, axis % it.dim())


def take_marks(gm: GraphModule) -> dict[Node, int]:
    """Remove the marks of a graph; what was marked, and along which dimension."""
    found: dict[Node, int] = {}
    for node in list(gm.graph.nodes):
        if node.op == "call_function" and node.target is marked:
            source, axis = node.args
            found[source] = axis
            node.replace_all_uses_with(source)
            gm.graph.erase_node(node)
    if found:
        gm.recompile()
    return found
