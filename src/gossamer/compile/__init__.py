"""The compiler of dynamic sparsity: `torch.compile(model, backend="gossamer")` leaves out what is zero at run time.

    explain(model, example)       what may be left out of each operator, and what is
    mark_sparse(tensor, axis=-1)  a hint where zeros are that nobody could know of
    group_experts(model, example) loops over experts in Python run each expert for its own rows
    skip_unseen(model)            Longformer computes of its windows what is seen
    analyse("C[m,n] += ...")      which axes of an expression may be skipped (PIT)

May import nn and ops.
"""

from gossamer.compile.changed import Changes
from gossamer.compile.explanation import Explanation, explain
from gossamer.compile.expressions.axes import Analysis, Axis, analyse
from gossamer.compile.expressions.micro_tiles import MicroTile, micro_tiles
from gossamer.compile.finding import Finding
from gossamer.compile.marks import mark_sparse
from gossamer.compile.masks.windows import skip_unseen
from gossamer.compile.mixtures.group import group_experts
from gossamer.compile.options import Options

__all__ = [
    "Analysis",
    "Axis",
    "Changes",
    "Explanation",
    "Finding",
    "MicroTile",
    "Options",
    "analyse",
    "explain",
    "group_experts",
    "mark_sparse",
    "micro_tiles",
    "skip_unseen",
]
