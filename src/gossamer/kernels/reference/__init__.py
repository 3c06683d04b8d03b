"""The oracle: every verb in a few lines of plain torch, on any device."""

from gossamer.kernels.reference.detect import detect
from gossamer.kernels.reference.dsd import dsd
from gossamer.kernels.reference.gather import gather
from gossamer.kernels.reference.gather_mm import gather_mm
from gossamer.kernels.reference.grouped import grouped_mm, grouped_outer
from gossamer.kernels.reference.relu_bits import keep_bits, relu_bits
from gossamer.kernels.reference.scatter import scatter
from gossamer.kernels.reference.sdd import sdd
from gossamer.kernels.reference.skip_conv import skip_conv, skip_pack
from gossamer.kernels.reference.skip_conv_weight import skip_conv_weight
from gossamer.kernels.reference.skip_mv import gated_mv, skip_mv
from gossamer.kernels.reference.transpose import transpose

__all__ = [
    "detect",
    "dsd",
    "gated_mv",
    "gather",
    "gather_mm",
    "grouped_mm",
    "grouped_outer",
    "keep_bits",
    "relu_bits",
    "scatter",
    "sdd",
    "skip_conv",
    "skip_conv_weight",
    "skip_mv",
    "skip_pack",
    "transpose",
]
