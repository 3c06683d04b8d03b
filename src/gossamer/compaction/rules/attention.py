"""Scaled dot-product attention: heads pass through, the head size and the sequence axes stay.

softmax(q k^T / sqrt(E)) v with q [*, H, L, E], k [*, H, S, E], v [*, H, S, D]. Grouped queries: key head j serves
query heads j*r .. (j+1)*r - 1, which makes them one channel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from ..labels import QUIET
from .contraction import broadcast, contract
from .norm import with_statistics
from .table import Flow, Result, rule, shape_of


@rule(
    "scaled_dot_product_attention", "_scaled_dot_product_attention_math",
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
)  # fmt: skip
def attention(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Result:
    query, key, value = args["query"], args["key"], args["value"]
    where = flow.where(node)
    for operand in (query, key):
        flow.labels.fix(flow.of(operand)[-1], f"head size contracted by {where}")
    contract(flow, flow.of(key)[-2], flow.of(value)[-2], where)
    q, k, v = flow.of(query), flow.of(key), flow.of(value)
    shapes = [shape_of(item) for item in (query, key, value)]
    batch = q[:-2]
    for other, shape in ((k, shapes[1]), (v, shapes[2])):
        axes, sizes = other[:-2], shape[:-2]
        if len(sizes) and shapes[0][-3] != sizes[-1] and sizes[-1] > 1:
            axes, sizes = _repeat_heads(flow, axes, sizes, shapes[0][-3]), (*sizes[:-1], shapes[0][-3])
        batch = broadcast(flow, batch, axes, shapes[0][:-2], sizes, where)
    mask = args.get("attn_mask")
    sequence = q[-2]
    if isinstance(mask, fx.Node):
        scores = [*batch, q[-2], flow.of(key)[-2]]
        size = (*shapes[0][:-2], shapes[0][-2], shapes[1][-2])
        scores = broadcast(flow, scores, flow.of(mask), size, shape_of(mask), where)
        batch, sequence = scores[:-2], scores[-2]
    for axis in batch:
        flow.labels.mark("heads", axis)
    out = [*batch, sequence, flow.of(value)[-1]]
    return with_statistics(node, out)


def _repeat_heads(flow: Flow, axes: list[Any], sizes: tuple[int, ...], heads: int) -> list[Any]:
    """enable_gqa: every key/value head is repeated for consecutive query heads."""
    labels = flow.labels.labelled(axes[-1])
    return [*axes[:-1], np.repeat(labels, heads // sizes[-1]) if labels is not None else QUIET]
