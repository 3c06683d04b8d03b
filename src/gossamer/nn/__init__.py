"""Modules on the verbs: parameters are numbers, buffers are structure. May import ops, planner, pattern and kernels."""

from gossamer.nn.block_sparse_linear import BlockSparseLinear
from gossamer.nn.moves import moved

__all__ = ["BlockSparseLinear", "moved"]
