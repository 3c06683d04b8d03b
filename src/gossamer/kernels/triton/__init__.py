"""The verbs as Triton kernels, for CUDA tensors (and CPU tensors under TRITON_INTERPRET=1). Imports triton."""

from gossamer.kernels.triton.detect import detect
from gossamer.kernels.triton.gather import gather
from gossamer.kernels.triton.scatter import scatter

__all__ = ["detect", "gather", "scatter"]
