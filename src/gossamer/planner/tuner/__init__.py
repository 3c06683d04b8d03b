"""The online tuner: which alternative is fastest at this call site, on the user's own data and on this machine."""

from gossamer.planner.tuner.tuner import Tuner

__all__ = ["Tuner"]
