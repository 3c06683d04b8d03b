"""Which kernel at this density and shape, on this machine: measured curves, dense among the candidates, a reason.

May import pattern, kernels and measure.
"""

from gossamer.planner.axes import Analysis, Axis, analyse
from gossamer.planner.buckets import Buckets, Encoded
from gossamer.planner.coverage import Window, covered, sample
from gossamer.planner.curve import Curve
from gossamer.planner.database import Database, Key
from gossamer.planner.hysteresis import Planner
from gossamer.planner.partition import Partition, partition, static_work
from gossamer.planner.plan import Candidate, Plan, plan
from gossamer.planner.regret import Regret, regret
from gossamer.planner.skipping import Site, site
from gossamer.planner.tiles import MicroTile, expected_cover, micro_tiles
from gossamer.planner.tune import tune

__all__ = [
    "Analysis",
    "Axis",
    "Buckets",
    "Candidate",
    "Curve",
    "Database",
    "Encoded",
    "Key",
    "MicroTile",
    "Partition",
    "Plan",
    "Planner",
    "Regret",
    "Site",
    "Window",
    "analyse",
    "covered",
    "expected_cover",
    "micro_tiles",
    "partition",
    "plan",
    "regret",
    "sample",
    "site",
    "static_work",
    "tune",
]
