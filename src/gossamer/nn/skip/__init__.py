"""torch's convolutions and linear layers, skipping the zeros that they meet. May import ops, planner and nn.traced."""

from gossamer.nn.skip.conv2d import Conv2d
from gossamer.nn.skip.conversion import skip_zeros, unskip_zeros
from gossamer.nn.skip.linear import Linear
from gossamer.nn.skip.report import SkipReport

__all__ = ["Conv2d", "Linear", "SkipReport", "skip_zeros", "unskip_zeros"]
