"""Measure this machine for the planner, and how good the planner's choices are. May import ops and the planner."""

from gossamer.tuning.regret import Regret, regret
from gossamer.tuning.tune import tune

__all__ = ["Regret", "regret", "tune"]
