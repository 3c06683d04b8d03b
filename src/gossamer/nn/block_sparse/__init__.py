"""Layers that have memory for the present tiles of a pattern only. May import ops, planner, pattern and nn.snapshot."""

from gossamer.nn.block_sparse.attention import AttentionIndex, BlockSparseAttention, block_sparse_attention
from gossamer.nn.block_sparse.linear import BlockSparseLinear
from gossamer.nn.block_sparse.slot_remapping import remapped

__all__ = ["AttentionIndex", "BlockSparseAttention", "BlockSparseLinear", "block_sparse_attention", "remapped"]
