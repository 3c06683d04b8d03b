"""Structure: which tiles are present. Imports torch and nothing of gossamer above it."""

from gossamer.pattern.check import Overflow
from gossamer.pattern.pattern import Pattern
from gossamer.pattern.pytree import register

register()

__all__ = ["Overflow", "Pattern"]
