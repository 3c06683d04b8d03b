"""Training methods: hooks on an optimizer that keep a network sparse, and move its weights, while it trains.

    method = gs.training.RigL(model, optimizer, density=0.1, total_steps=10_000)
    ... the usual training loop ...

A method = what it drops x what it grows x when x how much each layer keeps. May import compaction, pattern and kernels.
"""

from gossamer.schedule import Schedule
from gossamer.training.engine import Method
from gossamer.training.methods.chase import Chase
from gossamer.training.methods.gradual import GradualMagnitude
from gossamer.training.methods.granet import GraNet
from gossamer.training.methods.mest import MEST
from gossamer.training.methods.rigl import RigL
from gossamer.training.methods.set import SET
from gossamer.training.methods.snfs import SNFS
from gossamer.training.methods.srigl import SRigL
from gossamer.training.methods.static import Static
from gossamer.training.state import State

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (Static, SET, RigL, SNFS, MEST, GraNet, GradualMagnitude, SRigL, Chase)
}

__all__ = [
    "MEST",
    "METHODS",
    "SET",
    "SNFS",
    "Chase",
    "GraNet",
    "GradualMagnitude",
    "Method",
    "RigL",
    "SRigL",
    "Schedule",
    "State",
    "Static",
]  # fmt: skip
