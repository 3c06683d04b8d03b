"""Experts as a graph sees them: which entries each expert has, and the product of every token with its own.

Both are one call in Dynamo's graph, so that what is leaving out padding knows them as work on tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.ops.grouped import GroupedMm
from gossamer.pattern.build import route


@torch.compiler.allow_in_graph
def expert_index(ids: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """ids[T, k] -> where each expert's entries begin, [experts + 1], and all entries by expert, [T k]."""
    return route(ids.reshape(-1, 1), experts, "top_k_index")


@torch.compiler.allow_in_graph
def expert_rows(x: Tensor, ids: Tensor, offsets: Tensor, order: Tensor, weights: Tensor, transposed: bool) -> Tensor:
    """x[T, n], or [T, k, n] where an entry has its own row -> [T, k, m], with the weights of the experts ids[T, k]."""
    repeat = ids.shape[1] if x.dim() == 2 else 1
    y: Tensor = GroupedMm.call(x.reshape(-1, x.shape[-1]), weights, order, offsets, repeat, transposed, None)
    return y.view(*ids.shape, y.shape[1])
