"""Convolutions: output channels are weight rows, input channels weight columns; a group shrinks as one unit.

weight [O, I/g, *k] (transposed: [I, O/g, *k]). With g > 1 groups, input channels j*I/g.. and output channels
j*O/g.. of group j are one channel of the graph, because the same weight columns serve every group: removing part of a
group would shift the columns of the others. Depthwise convolution is the case of one channel per group.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from ..labels import QUIET, Axis
from .table import Axes, Flow, rule, shape_of


@rule("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def convolution(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Axes:
    source, weight, bias = args["input"], args["weight"], args.get("bias")
    transposed = bool(args.get("transposed")) or "transpose" in str(node.target)
    groups = int(args.get("groups", 1))
    x, w = flow.of(source), flow.of(weight)
    channel = len(x) - (len(w) - 1)  # 0 for an unbatched input
    where = flow.where(node)
    flow.role(w[0], "reader" if transposed and groups == 1 else "writer")
    flow.role(w[1], "writer" if transposed and groups == 1 else "reader")
    for axis in w[2:]:
        flow.labels.fix(axis, "")
    out: Axis
    if groups == 1:
        rows, columns = (w[1], w[0]) if transposed else (w[0], w[1])
        flow.labels.join(x[channel], columns, f"input of {where} cannot shrink")
        out = rows
    else:
        out = _grouped(flow, x[channel], w, shape_of(weight), groups, transposed, where)
    if bias is not None:
        flow.role(flow.of(bias)[0], "writer")
        out = flow.labels.join(out, flow.of(bias)[0], f"bias of {where}")
    return [*x[:channel], out, *[QUIET] * (len(w) - 2)]


def _grouped(flow: Flow, x: Axis, w: Axes, shape: tuple[int, ...], groups: int, transposed: bool, where: str) -> Axis:
    labels = flow.labels
    labels.fix(w[1], "")  # the width of a group; whole groups go, never part of one
    rows = labels.labelled(w[0])
    if rows is None:
        labels.fix(x, f"input of {where} cannot shrink")
        return QUIET
    units = rows.reshape(groups, -1)
    labels.union(units, units[:, :1])
    if transposed:
        labels.join(x, rows, f"input of {where} cannot shrink")
        return np.repeat(units[:, 0], shape[1])
    inputs = np.repeat(units[:, 0], shape[1])
    labels.join(x, inputs, f"input of {where} cannot shrink")
    return rows
