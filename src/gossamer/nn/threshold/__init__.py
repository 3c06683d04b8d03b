"""Layers that leave out small activations when they decode, and what calibrates them. May import ops and nn.skip."""

from gossamer.nn.threshold.applying import apply_thresholds, remove_thresholds, restore_thresholds
from gossamer.nn.threshold.calibration import threshold
from gossamer.nn.threshold.gated_feed_forward import GatedFeedForward, gated
from gossamer.nn.threshold.linear import ThresholdLinear
from gossamer.nn.threshold.report import ThresholdReport

__all__ = [
    "GatedFeedForward",
    "ThresholdLinear",
    "ThresholdReport",
    "apply_thresholds",
    "gated",
    "remove_thresholds",
    "restore_thresholds",
    "threshold",
]
