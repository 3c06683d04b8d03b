"""Which kernel at this density and shape, on this machine: measured curves, dense among the candidates, a reason.

May import pattern, kernels and measure.
"""

from gossamer.planner.axes import Analysis, Axis, analyse
from gossamer.planner.buckets import Buckets, Encoded
from gossamer.planner.partition import Partition, partition

__all__ = ["Analysis", "Axis", "Buckets", "Encoded", "Partition", "analyse", "partition"]
