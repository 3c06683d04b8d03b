"""The verbs as Triton kernels, for CUDA tensors (and CPU tensors under TRITON_INTERPRET=1). Imports triton."""

from gossamer.kernels.triton.detect import detect
from gossamer.kernels.triton.dsd import dsd
from gossamer.kernels.triton.gather import gather
from gossamer.kernels.triton.gather_mm import gather_mm
from gossamer.kernels.triton.grouped import grouped_mm, grouped_outer
from gossamer.kernels.triton.scatter import scatter
from gossamer.kernels.triton.sdd import sdd
from gossamer.kernels.triton.skip_mv import gated_mv, skip_mv
from gossamer.kernels.triton.transpose import transpose

__all__ = [
    "detect",
    "dsd",
    "gated_mv",
    "gather",
    "gather_mm",
    "grouped_mm",
    "grouped_outer",
    "scatter",
    "sdd",
    "skip_mv",
    "transpose",
]
