"""How much work the operators of a graph are, dense."""

from __future__ import annotations

import math
from typing import Any

from torch.fx import Graph

from gossamer.compile.labels import Size, shape_of
from gossamer.compile.operators import Call, call_of

_ATTENTION = "scaled_dot_product_attention"
_CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})
PRODUCTS = frozenset({"linear", "addmm", "matmul", "mm", "bmm", "expert_rows", _ATTENTION, *_CONVOLUTIONS})


def works(graph: Graph) -> dict[str, int]:
    """Multiply-adds of each product of a graph, by the name of its node, in the order of the graph."""
    calls = [call for node in graph.nodes if (call := call_of(node)) is not None and call.name in PRODUCTS]
    return {call.node.name: work_of(call) for call in calls}


def work_of(call: Call) -> int:
    """Multiply-adds of a product or an attention, for the sizes that were seen first; 0 where they are not known."""
    shapes: list[Any] = [shape_of(each) for each in (call.node, *call.operands[:2])]
    if len(shapes) < 3 or any(shape is None for shape in shapes):
        return 0
    out, first, second = ([_number(size) for size in shape] for shape in shapes)
    if call.name == _ATTENTION:
        return 2 * math.prod(out) * second[-2]
    if call.name in _CONVOLUTIONS:
        return math.prod(out) * math.prod(second[1:])
    return math.prod(out) * (second[-1] if call.name == "addmm" else first[-1])


def _number(size: Size) -> int:
    """A size, or the one that a size that changes had first. Asking adds no guard."""
    if isinstance(size, int):
        return size
    hint = size.node.hint
    return 1 if hint is None else int(hint)
