"""Products that read zeros of activations (ReLU, masks, top-k, dropout): each decides at run time whether to skip them.

    h = relu(linear(x, up))          stays, unless a gradient flows, which has the zeros, or rows are few (closing.py)
    y = linear(dropout(h), down)     gossamer.ops.linear at a site of its own, which finds the zeros of what it reads

The site (`gossamer.planner.Site`) lets dense and skipping take turns on the user's own calls, and settles on the faster
one. A graph holds no site, only its handle, a buffer. Layouts of parameters stay. Where zeros are not found, or no
kernel takes the operands, the product stays as it is, and the finding says why.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from gossamer import ops
from gossamer.compile.carried import carry
from gossamer.compile.expressions.axes import analyse
from gossamer.compile.finding import Finding
from gossamer.compile.zeros.closing import can_close, close_gate, close_relu, gate_of, relu_after
from gossamer.compile.zeros.skippable import Skippable, example, is_stored, product_of, size_of, trains
from gossamer.compile.zeros.zero_flow import ZeroFlow, Zeros
from gossamer.ops.dense import ENGINES
from gossamer.ops.skipping.passes import FEW_ROWS, by_input
from gossamer.ops.skipping.refusals import why_dense
from gossamer.planner import Site

LEAST = 1 << 24
"""Multiplications below which no gain could pay for asking: some 0.2 ms of one core."""
LEAST_WEIGHT = 1 << 21
"""Elements of a weight from which few rows wait for it so long that 0.1 ms of Python between other layers may pay."""

_CALL = 2e-5
"""Seconds of Python around an answer: inside an opaque operator there is less of it than around a layer."""
_DX = "dX[t,k] += dY[t,o] * W[o,k]"
_DX_CONVOLUTION = "dX[n,m,x,y] += dY[n,f,x+i,y+j] * W[f,m,i,j]"


def rewrite(gm: GraphModule, *, sources: Collection[str] = (), keep_packed: bool = False) -> list[Finding]:
    """Let the products of a torch-level graph that read run-time zeros decide at run time whether to skip them.

    Args:
        gm: Dynamo's graph, with `example_value` of each node; changed in place.
        sources: names of nodes whose values hold zeros, whatever makes them.
        keep_packed: weights may be copied into the order that the kernels read, and the copy kept until torch counts a
            change of the weight. It costs the memory of the weight again, and is what few rows (decoding) need to gain
            anything. A write through `weight.data` or numpy is then not seen.

    Returns:
        one `Finding` for each product, in the order of the graph.

    Source: SparseTrain (PACT 2020) for the three passes of a layer; PIT (SOSP 2023) for the axes that may be skipped.
    """
    flow = ZeroFlow(gm.graph, sources)
    seen = [
        _Seen(node, flow.read(node, product.x), flow.why_none(product.x), gate_of(node, flow))
        for node in gm.graph.nodes if (product := product_of(node)) is not None
    ]  # fmt: skip
    found = [_visit(gm, each, keep_packed) for each in seen]
    gm.graph.lint()
    gm.recompile()
    return found


@dataclass(frozen=True)
class _Seen:
    """A product as the graph had it: the zeros that it reads, or why there are none, and those its result meets."""

    node: Node
    zeros: Zeros | None
    why_none: str
    gate: Zeros | None


def _visit(gm: GraphModule, seen: _Seen, keep_packed: bool) -> Finding:
    node, zeros = seen.node, seen.zeros
    product = product_of(node)  # now: its operands may have been replaced meanwhile
    assert product is not None
    refused = product.refused or _why_not(product)
    if not refused and zeros is not None and not keep_packed and _reads_all(product):
        refused = (
            f"up to {FEW_ROWS} rows read all of a weight that is stored by output channel; "
            "options={'keep_packed': True} lets them read parts of a copy"
        )
    relu = relu_after(node)
    if zeros is not None:
        axes = analyse(product.expression, "X").skippable
        if refused:
            return Finding(node.name, product.operator, product.expression, zeros.kind, axes, "dense", refused)
        site = _replace(gm, node, product, keep_packed)
        return Finding(
            node.name, product.operator, product.expression, zeros.kind, axes, "skip or dense, at run time",
            f"it reads {zeros}", site.explain,
        )  # fmt: skip
    if not refused and seen.gate is not None and can_close(product, LEAST_WEIGHT):
        return close_gate(gm, node, product, seen.gate)
    if not refused and relu is not None and keep_packed and can_close(product, LEAST_WEIGHT):
        return close_relu(gm, node, product, relu)
    if not refused and relu is not None and trains(product):
        expression = _DX if product.geometry is None else _DX_CONVOLUTION
        axes = analyse(expression, "dY").skippable
        site = _replace(gm, node, product, keep_packed=False, relu=relu)
        return Finding(
            node.name, product.operator, expression, "relu", axes, "skip or dense in backward, at run time",
            f"its gradient has the zeros of {relu.name}, which is now part of it", site.explain,
        )  # fmt: skip
    return Finding(node.name, product.operator, product.expression, "", (), "dense", seen.why_none)


def _why_not(product: Skippable) -> str:
    """Why a product whose zeros could be skipped stays as it is; empty if it need not."""
    x, weight, bias = example(product.x), example(product.weight), example(product.bias)
    if x is None or weight is None or (product.bias is not None and bias is None):
        return "the shapes of its operands are not known"
    missing = ENGINES["gossamer"].missing()
    if missing is not None:
        return f"no kernel skips here: {missing}"
    groups = 1 if product.geometry is None else product.geometry[3]
    if product.turned:
        weight = weight.t()
    why = why_dense(x, weight, bias, groups, "auto")
    if why is not None:
        return f"no kernel skips there: {why}"
    if x.dtype != weight.dtype or not all(isinstance(size, int) for size in weight.shape):
        return "its weight has another dtype than its input, or sizes that change"
    size = math.prod(weight.shape)
    if product.geometry is None:
        rows = [size_of(each) for each in x.shape[:-1]]
        pixels = None if None in rows else math.prod(each for each in rows if each is not None)
    else:
        pixels = _pixels(x)
    if size < LEAST_WEIGHT and pixels is not None and pixels * size < LEAST:
        return f"too little work for any gain: {pixels * size:.2g} multiplications"
    return ""


def _reads_all(product: Skippable) -> bool:
    """Whether its rows are few in every call, and its weight lies by output channel. Where rows change, calls ask."""
    x, weight = example(product.x), example(product.weight)
    assert x is not None and weight is not None
    rows = 1
    for size in x.shape[:-1]:
        rows = rows * size if isinstance(size, int) else FEW_ROWS + 1
    return product.geometry is None and rows <= FEW_ROWS and not by_input(weight.t() if product.turned else weight)


def _pixels(x: Tensor) -> int | None:
    """Of a convolution's input: what its output has is of the same order."""
    sizes = [size_of(each) for each in (*x.shape[:-3], *x.shape[-2:])]
    return None if None in sizes else math.prod(each for each in sizes if each is not None)


def _replace(gm: GraphModule, node: Node, product: Skippable, keep_packed: bool, relu: Node | None = None) -> Site:
    """Put the operator that asks a new site in the place of a product, and of the ReLU after it."""
    site = Site(node.name, _CALL)
    last = node if relu is None else relu
    graph = gm.graph
    with graph.inserting_before(node):
        weight = product.weight
        if product.turned:
            weight = graph.call_method("t", (weight,))
            weight.meta["example_value"] = product.weight.meta["example_value"].t()
        options: dict[str, Any] = {"site": carry(gm, site), "relu": relu is not None}
        options["keep_packed"] = keep_packed and is_stored(weight)
        if product.geometry is None:
            new = graph.call_function(ops.linear, (product.x, weight, product.bias), options)
        else:
            new = graph.call_function(ops.conv2d, (product.x, weight, product.bias, *product.geometry), options)
    new.meta = dict(last.meta)
    last.replace_all_uses_with(new)
    graph.erase_node(last)
    if relu is not None:
        graph.erase_node(node)
    return site
