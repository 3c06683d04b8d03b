"""Reductions and scans: over a channel axis they couple channels, over any other they pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ..labels import QUIET
from .pointwise import pointwise
from .table import Axes, Flow, Result, dims_of, op_name, rule, shape_of

# Operators that act on the trailing k axes only and treat every leading position alike.
SPATIAL = {
    1: ("avg_pool1d", "max_pool1d", "adaptive_avg_pool1d", "adaptive_max_pool1d", "upsample_linear1d",
        "upsample_nearest1d", "reflection_pad1d", "replication_pad1d", "max_pool1d_with_indices"),
    2: ("avg_pool2d", "max_pool2d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d",
        "max_pool2d_with_indices", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d",
        "_upsample_nearest_exact2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "reflection_pad2d",
        "replication_pad2d"),
    3: ("avg_pool3d", "max_pool3d", "adaptive_avg_pool3d", "_adaptive_avg_pool3d", "adaptive_max_pool3d",
        "max_pool3d_with_indices", "upsample_nearest3d", "upsample_trilinear3d", "reflection_pad3d",
        "replication_pad3d"),
}  # fmt: skip
_TRAILING = {name: count for count, names in SPATIAL.items() for name in names}


@rule(*_TRAILING)
def spatial(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Result:
    count = _TRAILING[op_name(node)]
    x = flow.of(node.all_input_nodes[0])
    for axis in x[-count:]:
        flow.labels.fix(axis, f"{flow.where(node)} resamples this axis")
    axes = [*x[:-count], *[QUIET] * count]
    value = node.meta.get("val")
    return tuple(axes for _ in value) if isinstance(value, (tuple, list)) else axes


@rule(
    "sum", "mean", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "prod", "norm", "any", "all",
    "linalg_vector_norm", "logsumexp", "argmax", "argmin", "count_nonzero", "nansum", "nanmean", "median", "mode",
)  # fmt: skip
def reduce(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Result:
    source = node.all_input_nodes[0]
    if len(node.all_input_nodes) > 1:  # max.other, min.other
        return pointwise(flow, node, args)
    x = flow.of(source)
    reduced = set(dims_of(args, len(x)))
    for i in reduced:
        flow.labels.fix(x[i], f"{flow.where(node)} reduces over this axis")
    x = flow.of(source)
    value = node.meta.get("val")
    first = value[0] if isinstance(value, (tuple, list)) else value
    keep = isinstance(first, Tensor) and first.dim() == len(x)
    axes: Axes = [QUIET if i in reduced else axis for i, axis in enumerate(x) if keep or i not in reduced]
    return tuple(axes for _ in value) if isinstance(value, (tuple, list)) else axes


@rule(
    "softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum", "cumprod", "flip", "logcumsumexp",
    "_safe_softmax", "softmin",
)  # fmt: skip
def along(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Result:
    """Operators that mix positions along one dimension and keep it."""
    source = node.all_input_nodes[0]
    x = flow.of(source)
    dims = args.get("dim", args.get("dims", -1))
    dims = [dims] if isinstance(dims, int) else list(dims)
    reason = f"{flow.where(node)} mixes this axis"
    for dim in dims:
        flow.labels.fix(x[int(dim) % len(x)], reason)
    x = flow.of(source)
    value = node.meta.get("val")
    return tuple(list(x) for _ in value) if isinstance(value, (tuple, list)) else x


@rule("sort", "topk")
def ranked(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Result:
    x = flow.of(args["self"])
    dim = args["dim"] % len(x)
    flow.labels.fix(x[dim], f"{flow.where(node)} orders this axis by value")
    x = flow.of(args["self"])
    x[dim] = QUIET
    return (x, list(x))


@rule("roll")
def roll(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Axes:
    source = args["self"]
    dims = args["dims"] or range(len(shape_of(source)))
    for dim in dims:
        axis = flow.of(source)[int(dim) % len(shape_of(source))]
        flow.labels.fix(axis, f"{flow.where(node)} shifts this axis by a fixed count")
    return flow.of(source)


@rule("embedding")
def embedding(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Axes:
    """Rows are looked up by index, so they stay; columns are channels."""
    weight = flow.of(args["weight"])
    flow.role(weight[1], "writer")
    flow.labels.fix(weight[0], "")
    return [*flow.of(args["indices"]), weight[1]]


@rule("index")
def index(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Axes:
    """x[i, :, j]: indexed axes keep their size, the others pass (tensor indices broadcast among themselves)."""
    source, indices = args["self"], args["indices"]
    x = flow.of(source)
    used = [i for i, item in enumerate(indices) if item is not None]
    if any(item is not None and item.meta["val"].dtype == torch.bool for item in indices):
        return flow.barrier(node)  # type: ignore[return-value]
    for i in used:
        flow.labels.fix(x[i], f"{flow.where(node)} looks positions up by index")
    x = flow.of(source)
    rank = len(shape_of(node)) - (len(x) - len(used))
    rest = [axis for i, axis in enumerate(x) if i not in used]
    adjacent = used == list(range(used[0], used[-1] + 1))
    place = used[0] if adjacent else 0
    return [*rest[:place], *[QUIET] * rank, *rest[place:]]
