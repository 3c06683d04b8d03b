"""Element-wise operators: every operand's position i meets position i of the others, so their channels join.

The whitelist is table.is_pointwise plus the copies and casts named below.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from ..labels import FREE, QUIET
from .contraction import broadcast
from .table import Axes, Flow, module_path, op_name, rule, shape_of

SCALING = {"mul", "div", "true_divide", "addcmul", "addcdiv", "_prelu_kernel", "pow"}
ADDING = {"add", "sub", "rsub", "lerp", "logaddexp"}


@rule(
    "pointwise", "dropout", "feature_dropout", "alpha_dropout", "native_dropout", "detach", "alias", "contiguous",
    "clone", "_to_copy", "to", "type_as", "log_sigmoid_forward", "lift_fresh", "copy", "_assert_tensor_metadata",
)  # fmt: skip
def pointwise(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Any:
    name = op_name(node)
    operands = node.all_input_nodes
    if not operands:
        return [FREE] * len(shape_of(node))
    for operand in operands:
        if operand in flow.only_state:
            for axis in flow.of(operand):
                flow.role(axis, "affine" if name in SCALING else "writer")
    if name in ADDING:
        _mark_residual(flow, operands, module_path(node))
    axes, shape = flow.of(operands[0]), shape_of(operands[0])
    for operand in operands[1:]:
        axes = broadcast(flow, axes, flow.of(operand), shape, shape_of(operand), flow.where(node))
        shape = tuple(np.broadcast_shapes(shape, shape_of(operand)))
    value = node.meta.get("val")
    if value is None:
        return []
    if isinstance(value, (tuple, list)):
        return tuple(axes if len(item.shape) == len(axes) else [QUIET] * item.dim() for item in value)
    return axes


def _mark_residual(flow: Flow, operands: list[fx.Node], path: str) -> None:
    """An addition of two activations with different channels is what makes a residual group."""
    moving = [operand for operand in operands if operand not in flow.only_state]
    if len(moving) != 2:
        return
    rank = min(len(shape_of(moving[0])), len(shape_of(moving[1])))
    for k in range(1, rank + 1):
        left, right = flow.of(moving[0])[-k], flow.of(moving[1])[-k]
        if not (isinstance(left, np.ndarray) and isinstance(right, np.ndarray) and len(left) == len(right)):
            continue
        if (left != right).any():
            flow.labels.mark("residual", left[left != right])
            flow.sums.append((path, left[left != right]))


@rule("prelu")
def prelu(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Axes:
    """PReLU's slopes [C] belong to axis 1 (axis 0 of a vector), not to the last axis."""
    x, slope = flow.of(args["self"]), flow.of(args["weight"])
    if shape_of(args["weight"])[0] > 1:
        channel = 1 if len(x) > 1 else 0
        flow.role(slope[0], "affine")
        x[channel] = flow.labels.join(x[channel], slope[0], f"slopes of {flow.where(node)} cannot shrink")
    return x


@rule("full", "zeros", "ones", "new_zeros", "new_ones", "new_full", "scalar_tensor", "empty", "new_empty")
def filled(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Axes:
    """A constant of one value has no positions of its own."""
    return [FREE] * len(shape_of(node))


@rule("zeros_like", "ones_like", "full_like", "empty_like")
def filled_like(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Axes:
    return flow.of(args["self"])


@rule("glu")
def glu(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Axes:
    """a * sigmoid(b) with a, b the halves of one axis: position i and i + n/2 are one channel."""
    x = flow.of(args["self"])
    dim = args["dim"] % len(x)
    size = shape_of(args["self"])[dim]
    labels = flow.labels.labelled(x[dim])
    if labels is not None:
        flow.labels.union(labels[: size // 2], labels[size // 2 :])
        x[dim] = labels[: size // 2]
    return x
