"""Attention over masks: each call finds at run time what its mask hides, and leaves that out where it is faster.

    y = scaled_dot_product_attention(q, k, v, attn_mask=mask)      gossamer.ops.masked_attention at a site of its own

What the mask hides is data: sliding windows, global tokens, documents, causal masks and blocks are one case. Where the
operator cannot take the place of torch's, it stays, and the finding says why.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from gossamer import ops
from gossamer.compile.carried import carry
from gossamer.compile.expressions.axes import analyse
from gossamer.compile.finding import Finding
from gossamer.compile.operators.call import Call, call_of
from gossamer.compile.zeros.skippable import size_of
from gossamer.ops.attention.masked import LEAST_SCORES

EXPRESSION = "Y[b,h,i,d] += P[b,h,i,j] * V[b,h,j,d]"
_OPERANDS = ("query", "key", "value", "attn_mask")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def rewrite(gm: GraphModule) -> list[Finding]:
    """Let attention of a torch-level graph leave out what its mask hides.

    Args:
        gm: Dynamo's graph, with `example_value` of each node; changed in place.

    Returns:
        one `Finding` for each scaled_dot_product_attention that has a mask, in the order of the graph.

    Source: sparsity that is known at run time only (PIT, SOSP 2023): weights that are zero along the keys.
    """
    found = []
    for node in list(gm.graph.nodes):
        call = call_of(node)
        if call is None or call.name != "scaled_dot_product_attention" or call.get(3, "attn_mask") is None:
            continue
        why, mask = _why_not(call), call.get(3, "attn_mask")
        axes = analyse(EXPRESSION, "P").skippable
        if why:
            found.append(Finding(node.name, "attention", EXPRESSION, "mask", axes, "dense", why))
            continue
        site = _replace(gm, call)
        found.append(
            Finding(
                node.name, "attention", EXPRESSION, "mask", axes, "skip or dense, at run time",
                f"its mask {mask.name} hides keys that no query of a block sees", site.explain,
            )
        )  # fmt: skip
    gm.graph.lint()
    gm.recompile()
    return found


def _why_not(call: Call) -> str:
    """Why attention stays as it is; empty if it need not."""
    if call.get(4, "dropout_p", 0.0) != 0:
        return "weights that are dropped are not looked for"
    if call.get(5, "is_causal", False) is not False:
        return "it is causal beside its mask"
    nodes = [call.get(at, name) for at, name in enumerate(_OPERANDS)]
    values = [node.meta.get("example_value") for node in nodes if isinstance(node, Node)]
    known = [value for value in values if isinstance(value, Tensor)]
    if len(known) < len(_OPERANDS):
        return "the shapes of its operands are not known"
    q, k, v, mask = known
    if any(x.dim() != 4 for x in (q, k, v)):
        return "its operands are not [batch, heads, tokens, width]"
    if q.device.type != "cpu" or any(x.device != q.device for x in (k, v, mask)):
        return f"no kernel skips on {q.device.type}"
    if q.dtype not in _DTYPES or any(x.dtype != q.dtype for x in (k, v)):
        return f"no kernel skips in {q.dtype}"
    if mask.requires_grad:
        return "its mask learns"
    sizes = [size_of(size) for size in (*q.shape[:3], k.shape[2])]
    if None not in sizes and (scores := math.prod(size for size in sizes if size is not None)) < LEAST_SCORES:
        return f"too little work for any gain: {scores:.2g} scores"
    return ""


def _replace(gm: GraphModule, call: Call) -> ops.MaskSite:
    """Put the operator that asks a new site in the place of torch's."""
    node, graph, site = call.node, gm.graph, ops.MaskSite(call.node.name)
    operands: Any = tuple(call.get(at, name) for at, name in enumerate(_OPERANDS))
    with graph.inserting_before(node):
        new = graph.call_function(
            ops.masked_attention, operands, {"scale": call.get(6, "scale"), "site": carry(gm, site)}
        )
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    graph.erase_node(node)
    return site
