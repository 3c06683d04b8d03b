"""The verbs on tensors and a Pattern: schema, dispatch by device, autograd. May import pattern and kernels."""

from gossamer.ops._register import Backend
from gossamer.ops.detect import detect
from gossamer.ops.gather import gather
from gossamer.ops.scatter import scatter

__all__ = ["Backend", "detect", "gather", "scatter"]
