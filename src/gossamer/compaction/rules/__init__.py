"""One labelling rule per ATen operator. An operator without a rule is a barrier: nothing it touches can shrink."""

from . import attention, contraction, conv, norm, pointwise, reduction, shape
from .table import Flow, propagate

__all__ = ["Flow", "attention", "contraction", "conv", "norm", "pointwise", "propagate", "reduction", "shape"]
