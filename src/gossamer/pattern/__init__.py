"""Structure: which tiles are present. Imports torch and nothing of gossamer above it."""

from gossamer.pattern import pickling
from gossamer.pattern.check import Overflow
from gossamer.pattern.diagonal import block_diagonal
from gossamer.pattern.pattern import Pattern

pickling.register()

__all__ = ["Overflow", "Pattern", "block_diagonal"]
