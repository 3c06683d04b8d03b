"""Normalisations: statistics per channel pass; statistics across channels couple them and freeze the axis."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from ..labels import QUIET, Axis, Fixed
from .table import Axes, Flow, Result, rule, shape_of


def _per_channel(flow: Flow, args: dict[str, Any], axis: Axis, where: str) -> Axis:
    """Join the normalisation's own per-channel tensors with the channels they act on."""
    roles = {"weight": "affine", "bias": "affine", "running_mean": "stat", "running_var": "stat"}
    for name, role in roles.items():
        tensor = args.get(name)
        if isinstance(tensor, fx.Node) and flow.of(tensor):
            flow.role(flow.of(tensor)[0], role)
            axis = flow.labels.join(axis, flow.of(tensor)[0], f"channels of {where} cannot shrink")
    return axis


def with_statistics(node: fx.Node, axes: Axes) -> Result:
    """Operators that also return statistics, which nothing downstream reads in eval mode."""
    value = node.meta.get("val")
    if not isinstance(value, (tuple, list)):
        return axes
    rest: list[Axes] = [[QUIET] * len(getattr(item, "shape", ())) for item in value[1:]]
    return (axes, *rest)


@rule(
    "batch_norm", "instance_norm", "native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm",
    "_native_batch_norm_legit_no_training", "miopen_batch_norm", "_batch_norm_no_update",
)  # fmt: skip
def batch_norm(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Result:
    x = flow.of(args["input"])
    x[1] = _per_channel(flow, args, x[1], flow.where(node))
    return with_statistics(node, x)


@rule("group_norm", "native_group_norm")
def group_norm(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Result:
    """All channels of one norm group share statistics: the whole norm group is one unit."""
    x = flow.of(args["input"])
    groups = int(args["num_groups"] if "num_groups" in args else args["group"])
    where = flow.where(node)
    x[1] = _per_channel(flow, args, x[1], where)
    labels = flow.labels.labelled(x[1])
    if labels is not None:
        if groups == 1:
            flow.labels.freeze(labels, f"{where} has one norm group: its statistics couple all channels")
        else:
            units = labels.reshape(groups, -1)
            flow.labels.union(units, units[:, :1])
        x[1] = labels
    return with_statistics(node, x)


@rule("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm")
def layer_norm(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Result:
    """Mean and variance run over the trailing axes: dropping a position changes every other one."""
    x = flow.of(args["input"])
    count = len(args["normalized_shape"])
    reason = f"{flow.where(node)} normalises over this axis"
    for i in range(len(x) - count, len(x)):
        for name in ("weight", "bias"):
            tensor = args.get(name)
            if isinstance(tensor, fx.Node):
                own = flow.of(tensor)[i - len(x)]
                flow.role(own, "affine")
                x[i] = flow.labels.join(x[i], own, reason)
        flow.labels.fix(x[i], reason)
    return with_statistics(node, x)


@rule("_weight_norm", "_weight_norm_interface")
def weight_norm(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Result:
    """w = g v / ||v||: rows keep their own norm, but the norm runs over the columns."""
    v, g = flow.of(args["v"]), flow.of(args["g"])
    dim = args["dim"] % len(v)
    reason = f"{flow.where(node)} takes the norm over this axis"
    for i, axis in enumerate(v):
        if i != dim:
            flow.labels.fix(axis, reason)
            v[i] = Fixed(reason)
    flow.role(g[dim], "writer")
    flow.role(v[dim], "stat")  # a direction: it goes with its row, but a zero direction has no norm
    v[dim] = flow.labels.join(v[dim], g[dim], reason) if shape_of(args["g"])[dim] > 1 else v[dim]
    return with_statistics(node, v)


@rule("local_response_norm")
def local_response_norm(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Axes:
    x = flow.of(args["input"])
    reason = f"{flow.where(node)} mixes neighbouring channels"
    flow.labels.fix(x[1], reason)
    return [x[0], Fixed(reason), *x[2:]]


@rule("pixel_shuffle")
def pixel_shuffle(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Axes:
    """(C r^2, H, W) -> (C, rH, rW): the r^2 positions of one output channel go together."""
    x = flow.of(args["self"])
    labels = flow.labels.labelled(x[-3])
    if labels is not None:
        units = labels.reshape(-1, int(args["upscale_factor"]) ** 2)
        flow.labels.union(units, units[:, :1])
        x[-3] = units[:, 0]
    return [*x[:-2], QUIET, QUIET]


@rule("pixel_unshuffle")
def pixel_unshuffle(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Axes:
    x = flow.of(args["self"])
    labels = flow.labels.labelled(x[-3])
    if labels is not None:
        x[-3] = np.repeat(labels, int(args["downscale_factor"]) ** 2)
    return [*x[:-2], QUIET, QUIET]


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Axes:
    """(g, C/g) -> (C/g, g): the same columns must go from every group."""
    x = flow.of(args["self"])
    labels = flow.labels.labelled(x[1])
    if labels is not None:
        box = labels.reshape(int(args["groups"]), -1)
        flow.labels.union(box, box[:1])
        x[1] = box.T.reshape(-1).copy()
    return x
