"""The verbs on CPU tensors: check, allocate, call C++ (`csrc/`), which picks AVX-512, AVX2 or scalar code once."""

from gossamer.kernels.cpu.detect import detect
from gossamer.kernels.cpu.dsd import dsd
from gossamer.kernels.cpu.gather import gather
from gossamer.kernels.cpu.gather_mm import gather_mm
from gossamer.kernels.cpu.grouped import grouped_mm, grouped_outer
from gossamer.kernels.cpu.mask import mask_
from gossamer.kernels.cpu.read import read
from gossamer.kernels.cpu.relu_bits import keep_bits, relu_bits
from gossamer.kernels.cpu.scatter import scatter
from gossamer.kernels.cpu.sdd import sdd
from gossamer.kernels.cpu.select import topk_mask
from gossamer.kernels.cpu.skip_conv import skip_conv, skip_pack
from gossamer.kernels.cpu.skip_conv_weight import skip_conv_weight
from gossamer.kernels.cpu.skip_mv import gated_mv, skip_mv
from gossamer.kernels.cpu.transpose import transpose

__all__ = [
    "detect",
    "dsd",
    "gated_mv",
    "gather",
    "gather_mm",
    "grouped_mm",
    "grouped_outer",
    "keep_bits",
    "mask_",
    "read",
    "relu_bits",
    "scatter",
    "sdd",
    "skip_conv",
    "skip_conv_weight",
    "skip_mv",
    "skip_pack",
    "topk_mask",
    "transpose",
]
