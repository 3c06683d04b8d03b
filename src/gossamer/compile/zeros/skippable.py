"""Products of a torch-level graph, whoever spells them, as the one product that can skip zeros: linear or conv2d."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from gossamer.compile.zeros.zero_rules import argument, named

LINEAR = "Y[t,o] += X[t,k] * W[o,k]"
CONVOLUTION = "Y[n,f,x,y] += X[n,m,x+i,y+j] * W[f,m,i,j]"
BATCH = "Y[b,t,o] += X[b,t,k] * W[b,k,o]"

NAMES = ("linear", "matmul", "mm", "addmm", "mv", "bmm", "baddbmm", "conv1d", "conv2d", "conv3d")


@dataclass(frozen=True)
class Skippable:
    """x, weight and bias of one product.

    Attributes:
        turned: the weight is stored [in, out], as in x @ weight.
        stride ... groups: of a convolution, as torch takes them; None for a linear layer.
        refused: why it stays as it is, "" if it may be replaced.
    """

    operator: str
    expression: str
    x: Node
    weight: Node
    bias: Node | None = None
    turned: bool = False
    geometry: tuple[Any, ...] | None = None
    refused: str = ""


def product_of(node: Node) -> Skippable | None:
    """The product that a node is, or None if it is none. x is the operand whose zeros can be skipped."""
    name = named(node).name
    if name not in NAMES:
        return None
    product = _spelled(node, name)
    known = product is not None and isinstance(product.x, Node) and isinstance(product.weight, Node)
    return product if known else None


def _spelled(node: Node, name: str) -> Skippable | None:
    if name in ("linear", "conv1d", "conv2d", "conv3d"):
        x, weight = argument(node, 0, "input"), argument(node, 1, "weight")
        bias = argument(node, 2, "bias")
        if name == "linear":
            return Skippable(name, LINEAR, x, weight, bias)
        geometry = tuple(argument(node, at, key, default) for at, key, default in (
            (3, "stride", 1), (4, "padding", 0), (5, "dilation", 1), (6, "groups", 1)))  # fmt: skip
        refused = "" if name == "conv2d" else f"no kernel skips in {name}"
        return Skippable(name, CONVOLUTION, x, weight, bias, geometry=geometry, refused=refused)
    if name in ("addmm", "baddbmm"):
        bias, x, weight = (argument(node, at, key) for at, key in enumerate(("input", "batch1", "batch2")))
        if name == "addmm":
            x, weight = argument(node, 1, "mat1"), argument(node, 2, "mat2")
            plain = argument(node, -1, "beta", 1) == 1 and argument(node, -1, "alpha", 1) == 1 and _dims(bias) == 1
            refused = "" if plain else "its addend is no bias of the output's features, or is scaled"
            return Skippable(name, LINEAR, x, weight, bias, turned=True, refused=refused)
        return Skippable(name, BATCH, x, weight, refused="every matrix has a weight of its own")
    left = argument(node, 0, "input")
    right = next(
        (found for key in ("other", "mat2", "vec", "tensor2") if (found := argument(node, 1, key)) is not None), None
    )
    if right is None:
        return None
    if name == "mv" or (_dims(left) == 2 and _dims(right) == 1):
        return Skippable(name, LINEAR, right, left)
    if _dims(right) == 2 and _dims(left) >= 1:
        return Skippable(name, LINEAR, left, right, turned=True)
    return Skippable(name, BATCH, left, right, refused="every matrix has a weight of its own")


def example(node: Node | None) -> Tensor | None:
    """The tensor that stands for a node's value while the graph is made."""
    value = None if node is None else node.meta.get("example_value")
    return value if isinstance(value, Tensor) else None


def trains(product: Skippable) -> bool:
    """Does a gradient flow through it?"""
    operands = (example(product.x), example(product.weight))
    return torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in operands)


def is_stored(node: Node) -> bool:
    """Does a value come into the graph as it is, so that a copy of it can be kept from call to call?"""
    return node.op in ("placeholder", "get_attr")


def size_of(size: int | torch.SymInt) -> int | None:
    """A size as the example has it, without a guard on it; None where it depends on data."""
    if isinstance(size, int):
        return size
    hint = getattr(size.node, "hint", None)
    return int(hint) if isinstance(hint, int) else None


def _dims(node: Node | None) -> int:
    value = example(node)
    return -1 if value is None else value.dim()
