"""softmax(q k^T * scale + mask) v, written out, as scaled_dot_product_attention."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Graph, Node

from gossamer.compile.operators import Call, call_of
from gossamer.compile.respelling.writer import Writer

_PASSES = frozenset({"to", "float", "type_as", "contiguous"})


def by_hand(graph: Graph) -> None:
    for node in list(graph.nodes):
        call = call_of(node)
        if call is not None and call.name == "matmul" and not call.in_place and len(call.operands) == 2:
            found = _attention(node)
            if found is not None:
                node.replace_all_uses_with(found)


def _attention(node: Node) -> Node | None:
    """The attention whose product with the values is `node`."""
    weights, v = node.args[0], node.args[1] if len(node.args) > 1 else None
    dropout = 0.0
    step: Any = weights
    while isinstance(step, Node) and len(step.users) == 1 and (call := call_of(step)) is not None and not call.in_place:
        if call.name == "dropout":
            if dropout:
                return None
            dropout = float(call.get(1, "p", 0.5)) if call.get(2, "training", True) else 0.0
        elif call.name not in _PASSES:
            break
        step = step.args[0]
    softmax = call_of(step) if isinstance(step, Node) else None
    if softmax is None or softmax.name != "softmax" or len(step.users) != 1 or not isinstance(v, Node):
        return None
    if softmax.get(1, "dim") not in (-1, 3) or not _is_four(v):
        return None
    addends: list[Node] = []
    scale = 1.0
    step = step.args[0]
    while (call := _link(step)) is not None:
        # A factor that was met on the way back applies to what was added before it as well.
        if call.name == "add" and scale == 1.0 and _is_addend(call, addends):
            step = call.node.args[0]
        elif call.name in ("mul", "div") and isinstance(call.get(1, "other"), (int, float)):
            factor = call.get(1, "other")
            scale = scale * factor if call.name == "mul" else scale / factor
            step = call.node.args[0]
        elif call.name in _PASSES:
            step = call.node.args[0]
        else:
            break
    product = call_of(step) if isinstance(step, Node) else None
    if product is None or product.name != "matmul" or len(step.users) != 1 or not addends:
        return None
    q, turned = product.node.args[0], call_of(product.get(1, "other"))
    if turned is None or turned.name != "transpose" or {turned.get(1, "dim0") % 4, turned.get(2, "dim1") % 4} != {2, 3}:
        return None
    k = turned.node.args[0]
    if not all(isinstance(each, Node) and _is_four(each) for each in (q, k)):
        return None
    assert isinstance(q, Node) and isinstance(k, Node)
    dtype = q.meta["example_value"].dtype
    if any(each.meta["example_value"].dtype not in (dtype, torch.float32) for each in addends):
        return None
    write = Writer(node)
    mask = addends[0]
    for other in addends[1:]:
        mask = write.call(operator.add, mask, other)
    if mask.meta["example_value"].dtype != dtype:
        mask = write.method("to", mask, dtype)
    return write.call(F.scaled_dot_product_attention, q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)


def _link(step: Any) -> Call | None:
    if not isinstance(step, Node) or len(step.users) != 1:
        return None
    call = call_of(step)
    if call is None or call.in_place or not step.meta["example_value"].dtype.is_floating_point:
        return None
    # A factor of what is added, or a division that rounds, is none of ours.
    plain = call.name not in ("add", "mul", "div") or (len(step.args) + len(step.kwargs) == 2 and not step.kwargs)
    return call if plain else None


def _is_four(node: Node) -> bool:
    value = node.meta.get("example_value")
    return isinstance(value, Tensor) and value.dim() == 4


def _is_addend(call: Call, addends: list[Node]) -> bool:
    """Whether what is added is a mask [B or 1, heads or 1, queries or 1, keys]; keeps it."""
    other = call.get(1, "other")
    scores = call.node.args[0]
    if not isinstance(other, Node) or not _is_four(other) or not isinstance(scores, Node) or not _is_four(scores):
        return False
    if scores.meta["example_value"].shape != call.node.meta["example_value"].shape:
        return False
    addends.append(other)
    return True
