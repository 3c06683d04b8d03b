"""Training methods: hooks on an optimizer that keep a network sparse, and move its weights, while it trains.

    method = gs.training.RigL(model, optimizer, density=0.1, total_steps=10_000)
    ... the usual training loop ...

A method = what it drops x what it grows x when x how much each layer keeps. May import compaction, pattern and kernels.
"""

from gossamer.training.engine import Method
from gossamer.training.gradual import GradualMagnitude
from gossamer.training.rigl import RigL
from gossamer.training.set import SET
from gossamer.training.snfs import SNFS
from gossamer.training.static import Static

METHODS: dict[str, type[Method]] = {cls.name: cls for cls in (Static, SET, RigL, SNFS, GradualMagnitude)}

__all__ = ["METHODS", "SET", "SNFS", "GradualMagnitude", "Method", "RigL", "Static"]
