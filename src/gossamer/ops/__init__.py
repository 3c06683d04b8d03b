"""The verbs on tensors and a Pattern: schema, dispatch by device, autograd. May import pattern and kernels."""

from gossamer.ops._register import Backend
from gossamer.ops.conv2d import conv2d
from gossamer.ops.dds import dds
from gossamer.ops.detect import detect
from gossamer.ops.dsd import dsd
from gossamer.ops.gated_mv import gated_mv
from gossamer.ops.gather import gather
from gossamer.ops.grouped_matmul import grouped_matmul
from gossamer.ops.linear import linear
from gossamer.ops.matmul import matmul
from gossamer.ops.scatter import scatter
from gossamer.ops.sdd import sdd
from gossamer.ops.skip_mv import skip_mv
from gossamer.ops.statistical_topk import statistical_topk
from gossamer.ops.transpose import Transposed, transpose

__all__ = [
    "Backend",
    "Transposed",
    "conv2d",
    "dds",
    "detect",
    "dsd",
    "gated_mv",
    "gather",
    "grouped_matmul",
    "linear",
    "matmul",
    "scatter",
    "sdd",
    "skip_mv",
    "statistical_topk",
    "transpose",
]
