"""Timing that can be believed: interleaved runs with an A/A control, counters, and the machine's description.

May import torch, numpy and `gossamer._native` only.
"""

from gossamer.measure.count import Counts, count, described
from gossamer.measure.environment import environment
from gossamer.measure.interleave import GAIN, Comparison, Row, interleave, is_faster

__all__ = ["GAIN", "Comparison", "Counts", "Row", "count", "described", "environment", "interleave", "is_faster"]
