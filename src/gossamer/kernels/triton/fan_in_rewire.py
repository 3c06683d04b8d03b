"""Rewiring on a GPU is the reference's tensor operations.

It happens once in hundreds of steps and is bound by sorting what a row has, which torch's kernels do well: a Triton
kernel would save milliseconds of minutes.
"""

from gossamer.kernels.reference.fan_in_rewire import fan_in_draw, fan_in_rewire

__all__ = ["fan_in_draw", "fan_in_rewire"]
