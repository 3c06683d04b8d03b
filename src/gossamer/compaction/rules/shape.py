"""Shape operators move labels without joining them; views split and merge axes by their common factors.

(C, H, W) -> C*H*W repeats channel c over its block of H*W positions. C -> (heads, size) leaves the choice of the
factor that shrinks to whoever uses it (see labels.Split).
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from torch import fx

from ..labels import FREE, QUIET, Axis, Factor, Fixed, Free
from .table import Axes, Flow, Result, rule, shape_of


@rule("view", "reshape", "_unsafe_view", "_reshape_alias", "flatten", "unflatten", "view_as", "reshape_as")
def view(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Axes:
    source = node.all_input_nodes[0]
    return refactor(flow, flow.of(source), shape_of(source), shape_of(node), flow.where(node))


def refactor(flow: Flow, axes: Axes, before: tuple[int, ...], after: tuple[int, ...], where: str) -> Axes:
    """The axes of a row-major view from shape `before` to shape `after`."""
    if 0 in before:
        return [QUIET] * len(after)
    cuts = sorted({*_cuts(before), *_cuts(after)})
    if any(right % left for left, right in itertools.pairwise(cuts)):
        reason = f"{where} regroups axes that share no common factors"
        for axis in axes:
            flow.labels.fix(axis, reason)
        return [Fixed(reason)] * len(after)
    pieces: list[tuple[Axis, int]] = []
    edge = 1
    for axis, size in zip(axes, before, strict=True):
        inner = [cut for cut in cuts if edge < cut <= edge * size]
        sizes = [right // left for left, right in zip([edge, *inner], inner, strict=False)]
        edge *= size
        pieces.extend(zip(_split(flow, axis, sizes), sizes, strict=True))
    out: Axes = []
    edge, place = 1, 0
    for size in after:
        edge_after, parts = edge * size, []
        while edge < edge_after:
            parts.append(pieces[place])
            edge *= pieces[place][1]
            place += 1
        out.append(_merge(flow, parts, where))
    return out


def _cuts(shape: tuple[int, ...]) -> list[int]:
    return [int(cut) for cut in np.cumprod((1, *shape))]


def _split(flow: Flow, axis: Axis, sizes: list[int]) -> Axes:
    if len(sizes) <= 1:
        return [axis] * len(sizes)
    axis = flow.labels.settled(axis)
    labels = flow.labels.labelled(axis) if isinstance(axis, (np.ndarray, Factor)) else None
    if labels is not None:
        box = flow.labels.find(labels).reshape(sizes)
        for i in range(len(sizes)):
            rows = np.moveaxis(box, i, 0).reshape(sizes[i], -1)
            if (rows == rows[:, :1]).all():  # the others repeat it: an earlier merge undone, or one channel by now
                return [rows[:, 0].copy() if j == i else QUIET for j in range(len(sizes))]
        return flow.labels.split(labels, sizes)
    return [axis if isinstance(axis, (Fixed, Free)) else QUIET] * len(sizes)


def _merge(flow: Flow, parts: list[tuple[Axis, int]], where: str) -> Axis:
    if not parts:
        return QUIET
    if len(parts) == 1:
        return parts[0][0]
    parts = _merge_factors(flow, [(flow.labels.settled(axis), size) for axis, size in parts])
    found = [(i, axis) for i, (axis, _) in enumerate(parts) if isinstance(axis, np.ndarray)]
    if len(found) == 1:
        place, labels = found[0]
        before = int(np.prod([size for _, size in parts[:place]], dtype=np.int64))
        after = int(np.prod([size for _, size in parts[place + 1 :]], dtype=np.int64))
        return np.tile(np.repeat(labels, after), before)
    reason = f"{where} merges two channel axes"
    for _, labels in found:
        flow.labels.fix(labels, reason)
    if found:
        return Fixed(reason)
    if all(isinstance(axis, Free) for axis, _ in parts):
        return FREE
    return next((axis for axis, _ in parts if isinstance(axis, Fixed) and axis.reason), QUIET)


def _merge_factors(flow: Flow, parts: list[tuple[Axis, int]]) -> list[tuple[Axis, int]]:
    """Undo splits whose factors meet again in order; decide the others (a shuffle keeps its largest factor)."""
    out: list[tuple[Axis, int]] = []
    place = 0
    while place < len(parts):
        axis, size = parts[place]
        axis = flow.labels.settled(axis)
        if not isinstance(axis, Factor):
            out.append((axis, size))
            place += 1
            continue
        split = axis.split
        needed = [i for i, n in enumerate(split.labels.shape) if n > 1]
        run = [flow.labels.settled(other) for other, _ in parts[place : place + len(needed)]]
        order = [other.index for other in run if isinstance(other, Factor) and other.split is split]
        if order == needed:
            out.append((split.labels.reshape(-1), split.labels.size))
            place += len(needed)
            continue
        together = [other for other, _ in parts if isinstance(other, Factor) and other.split.root() is split]
        keep = max(together, key=lambda factor: split.labels.shape[factor.index])
        flow.labels.labelled(keep)
    return out


@rule("permute")
def permute(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Axes:
    x = flow.of(args["self"])
    return [x[dim] for dim in args["dims"]]


@rule("transpose", "swapaxes")
def transpose(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Axes:
    x = flow.of(args["self"])
    i, j = args["dim0"], args["dim1"]
    x[i], x[j] = x[j], x[i]
    return x


@rule("t", "numpy_T", "mT", "adjoint")
def t(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Axes:
    x = flow.of(args["self"])
    return [*x[:-2], *x[:-3:-1]] if len(x) > 2 else x[::-1]


@rule("unsqueeze")
def unsqueeze(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Axes:
    x = flow.of(args["self"])
    x.insert(args["dim"] % (len(x) + 1), QUIET)
    return x


@rule("squeeze")
def squeeze(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Axes:
    x, shape = flow.of(args["self"]), shape_of(args["self"])
    dims = args.get("dim")
    dims = range(len(x)) if dims is None else [dims] if isinstance(dims, int) else dims
    gone = {dim % len(x) for dim in dims if shape[dim] == 1}
    return [axis for i, axis in enumerate(x) if i not in gone]


@rule("expand", "expand_as", "broadcast_to")
def expand(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Axes:
    source = args["self"]
    x, shape, after = flow.of(source), shape_of(source), shape_of(node)
    lead = len(after) - len(shape)
    return [*[QUIET] * lead, *[axis if n == m else QUIET for axis, n, m in zip(x, shape, after[lead:], strict=True)]]


@rule("repeat")
def repeat(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Axes:
    x, counts = flow.of(args["self"]), [int(count) for count in args["repeats"]]
    x = [QUIET] * (len(counts) - len(x)) + x
    return [_tiled(flow, axis, count) for axis, count in zip(x, counts, strict=True)]


def _tiled(flow: Flow, axis: Axis, count: int) -> Axis:
    if count == 1:
        return axis
    labels = flow.labels.labelled(axis)
    return QUIET if labels is None else np.tile(labels, count)


@rule("repeat_interleave")
def repeat_interleave(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Result:
    if not isinstance(args.get("repeats"), int) or args.get("dim") is None:
        return flow.barrier(node)
    x = flow.of(args["self"])
    labels = flow.labels.labelled(x[args["dim"]])
    x[args["dim"]] = QUIET if labels is None else np.repeat(labels, args["repeats"])
    return x


@rule("cat", "concat", "concatenate")
def cat(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Axes:
    tensors = [item for item in args["tensors"] if shape_of(item) != (0,)]
    dim = args["dim"] % len(shape_of(node))
    where = flow.where(node)
    axes = list(flow.of(tensors[0]))
    for tensor in tensors[1:]:
        for i, axis in enumerate(flow.of(tensor)):
            if i != dim:
                axes[i] = flow.labels.join(axes[i], axis, f"other operand of {where} cannot shrink")
    parts = [flow.of(tensor)[dim] for tensor in tensors]
    if any(isinstance(part, (np.ndarray, Factor)) for part in parts):
        sizes = [shape_of(tensor)[dim] for tensor in tensors]
        vectors = [flow.labels.vector(part, n, f"fixed part of {where}") for part, n in zip(parts, sizes, strict=True)]
        axes[dim] = np.concatenate(vectors)
    else:
        axes[dim] = next((part for part in parts if isinstance(part, Fixed)), parts[0])
    return axes


@rule("stack")
def stack(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Axes:
    tensors = args["tensors"]
    axes = flow.of(tensors[0])
    for tensor in tensors[1:]:
        reason = f"other operand of {flow.where(node)} cannot shrink"
        axes = [flow.labels.join(a, b, reason) for a, b in zip(axes, flow.of(tensor), strict=True)]
    axes.insert(args["dim"] % (len(axes) + 1), QUIET)
    return axes


@rule("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk", "tensor_split", "unsafe_split_with_sizes")
def split(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Result:
    """Sections of equal size are recomputed from the shrunk size, so each must lose the same positions."""
    source = args["self"]
    x = flow.of(source)
    dim = args["dim"] % len(x)
    sizes = [int(item.shape[dim]) for item in node.meta["val"]]
    axis = x[dim]
    if isinstance(axis, Factor):
        flow.labels.fix(axis, "")
        axis = QUIET
    if not isinstance(axis, np.ndarray):
        return tuple([*x[:dim], axis, *x[dim + 1 :]] for _ in sizes)
    sections = np.split(axis, np.cumsum(sizes)[:-1])
    if len(set(sizes)) == 1:
        for section in sections[1:]:
            flow.labels.union(sections[0], section)
    return tuple([*x[:dim], section, *x[dim + 1 :]] for section in sections)


@rule("slice")
def slice_(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Axes:
    source = args["self"]
    x = flow.of(source)
    dim, size = args["dim"] % len(x), shape_of(source)[args["dim"]]
    start, stop, step = slice(args["start"], args["end"], args["step"]).indices(size)
    if (start, stop, step) == (0, size, 1):
        return x
    axis = x[dim]
    if isinstance(axis, Factor):
        flow.labels.fix(axis, "")
        x[dim] = QUIET
    elif isinstance(axis, np.ndarray):
        x[dim] = part = axis[start:stop:step]
        if step == 1:
            flow.slices.setdefault((source, dim), {})[start, stop] = part
    return x


@rule("narrow")
def narrow(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Result:
    stop = args["start"] + args["length"]
    return slice_(flow, node, {**args, "end": stop, "step": 1})


@rule("select", "unbind")
def select(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Result:
    """A literal position: the axis it is taken from keeps its size."""
    source = args["self"]
    dim = args["dim"] % len(shape_of(source))
    flow.labels.fix(flow.of(source)[dim], f"{flow.where(node)} takes one position by number")
    x = flow.of(source)
    axes = [*x[:dim], *x[dim + 1 :]]
    value = node.meta.get("val")
    return tuple(list(axes) for _ in value) if isinstance(value, (tuple, list)) else axes


@rule("index_select")
def index_select(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Axes:
    source = args["self"]
    dim = args["dim"] % len(shape_of(source))
    flow.labels.fix(flow.of(source)[dim], f"{flow.where(node)} takes positions by number")
    x = flow.of(source)
    return [*x[:dim], QUIET, *x[dim + 1 :]]


@rule("constant_pad_nd", "pad")
def pad(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Result:
    x, amounts = flow.of(args["self"]), args["pad"]
    for i in range(len(amounts) // 2):
        left, right = amounts[2 * i : 2 * i + 2]
        dim = len(x) - 1 - i
        if left == right == 0:
            continue
        labels = flow.labels.labelled(x[dim])
        if labels is None:
            continue
        if min(left, right) < 0 or args.get("mode", "constant") != "constant":
            return flow.barrier(node)
        edges = [flow.labels.fresh(left), flow.labels.fresh(right)]
        for edge in edges:
            flow.labels.freeze(edge, f"{flow.where(node)} adds a fixed number of channels here")
        x[dim] = np.concatenate([edges[0], labels, edges[1]])
    return x
