"""Linears of few rows whose result mostly meets a zero: a ReLU's own, or one of a gate. Their weights are read in part.

relu(linear(x, w))         gossamer.ops.closed.relu_linear: neurons that are certainly off are not read
gate * linear(x, w)        gossamer.ops.closed.gated_linear: what is behind a closed gate is not read (ReGLU)
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from gossamer.compile.carried import carry
from gossamer.compile.expressions.axes import analyse
from gossamer.compile.finding import Finding
from gossamer.compile.zeros.skippable import Skippable, example, is_stored, trains
from gossamer.compile.zeros.zero_flow import ZeroFlow, Zeros
from gossamer.compile.zeros.zero_rules import named
from gossamer.ops.closed import closing_tuner, gated_linear, relu_linear
from gossamer.ops.skipping.passes import FEW_ROWS

RELU = "Y[t,o] += X[t,k] * W[o,k] * G[t,o]"  # G: whether a neuron is on
CHOICE = "closed neurons left out or dense, at run time"


def relu_after(node: Node) -> Node | None:
    """The ReLU that is the only one to read a product."""
    user = _only_user(node)
    return user if user is not None and named(user).name == "relu" and user.args and user.args[0] is node else None


def gate_of(node: Node, flow: ZeroFlow) -> Zeros | None:
    """The zeros of what a product is multiplied by, element by element, where nobody else reads it."""
    user = _only_user(node)
    if user is None or named(user).name != "mul" or named(user).in_place:
        return None
    gate = _other(user, node)
    one, two = example(node), example(gate)
    if gate is None or one is None or two is None or one.shape != two.shape or one.dtype != two.dtype:
        return None
    return flow.read(user, gate)


def can_close(product: Skippable, least: int) -> bool:
    """Is it a linear layer that waits for its weight when rows are few, and may they be few?"""
    x, weight = example(product.x), example(product.weight)
    if product.operator != "linear" or x is None or weight is None or weight.numel() < least or trains(product):
        return False
    if not weight.is_contiguous():  # its neurons are no pieces of memory
        return False
    rows = 1
    for size in x.shape[:-1]:
        if isinstance(size, torch.SymInt):
            return True
        rows *= size
    return is_stored(product.weight) and rows <= FEW_ROWS


def close_relu(gm: GraphModule, node: Node, product: Skippable, relu: Node) -> Finding:
    """Put `relu_linear` in the place of a product and its ReLU."""
    tuner = closing_tuner(node.name)
    with gm.graph.inserting_before(node):
        new = gm.graph.call_function(relu_linear, (product.x, product.weight, product.bias, carry(gm, tuner)))
    _put(gm, new, relu, node)
    axes = analyse(RELU, "G").skippable
    why = f"{relu.name} gives zeros, of which a small copy of the weight knows most beforehand"
    return Finding(node.name, "linear", RELU, "relu", axes, CHOICE, why, tuner.explain)


def close_gate(gm: GraphModule, node: Node, product: Skippable, zeros: Zeros) -> Finding:
    """Put `gated_linear` in the place of a product and of the multiplication by its gate."""
    (mul,) = node.users
    tuner = closing_tuner(node.name)
    with gm.graph.inserting_before(mul):
        args = (product.x, product.weight, product.bias, _other(mul, node), carry(gm, tuner))
        new = gm.graph.call_function(gated_linear, args)
    _put(gm, new, mul, node)
    axes = analyse(RELU, "G").skippable
    return Finding(node.name, "linear", RELU, zeros.kind, axes, CHOICE, f"its result meets {zeros}", tuner.explain)


def _put(gm: GraphModule, new: Node, last: Node, first: Node) -> None:
    new.meta = dict(last.meta)
    last.replace_all_uses_with(new)
    gm.graph.erase_node(last)
    gm.graph.erase_node(first)


def _only_user(node: Node) -> Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _other(mul: Node, node: Node) -> Node | None:
    others = [each for each in mul.args if each is not node]
    return others[0] if len(others) == 1 and isinstance(others[0], Node) else None
