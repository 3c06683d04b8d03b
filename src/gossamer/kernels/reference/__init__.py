"""The oracle: every verb in a few lines of plain torch, on any device."""

from gossamer.kernels.reference.detect import detect
from gossamer.kernels.reference.gather import gather
from gossamer.kernels.reference.scatter import scatter

__all__ = ["detect", "gather", "scatter"]
