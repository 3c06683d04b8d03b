"""What may be skipped in a tensor expression, and by which tiles: the compiler will live here.

May import the planner.
"""

from gossamer.compile.axes import Analysis, Axis, analyse
from gossamer.compile.micro_tiles import MicroTile, micro_tiles

__all__ = ["Analysis", "Axis", "MicroTile", "analyse", "micro_tiles"]
