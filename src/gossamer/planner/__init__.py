"""Which alternative is fastest on this shape, these zeros and this machine; dense is always one, and a reason is given.

costs/ cost curves, their cache, prices of a product | work/ partitions of a pattern | tuner/ the one online tuner |
plans of products with zeros in one operand. May import pattern, kernels and measure.
"""

import importlib
import warnings
from typing import Any

from gossamer.planner.costs.cache import Database, Key
from gossamer.planner.costs.curve import Curve
from gossamer.planner.costs.occupancy import Window, covered, expected_cover, sample
from gossamer.planner.plan import Candidate, Plan, plan
from gossamer.planner.tuner.hysteresis import Planner
from gossamer.planner.tuner.skipping import Site, site
from gossamer.planner.work.buckets import Buckets, Encoded
from gossamer.planner.work.partition import Partition, partition, static_work
from gossamer.renamed import keep_old_names

__all__ = [
    "Buckets",
    "Candidate",
    "Curve",
    "Database",
    "Encoded",
    "Key",
    "Partition",
    "Plan",
    "Planner",
    "Site",
    "Window",
    "covered",
    "expected_cover",
    "partition",
    "plan",
    "sample",
    "site",
    "static_work",
]

_MOVED = {
    **dict.fromkeys(("Analysis", "Axis", "MicroTile", "analyse", "micro_tiles"), "gossamer.compile"),
    **dict.fromkeys(("Regret", "regret", "tune"), "gossamer.tuning"),
}
keep_old_names(
    "gossamer",
    {
        "planner.axes": "compile.axes",
        "planner.buckets": "planner.work.buckets",
        "planner.coverage": "planner.costs.occupancy",
        "planner.curve": "planner.costs.curve",
        "planner.database": "planner.costs.cache",
        "planner.expression": "compile.expression",
        "planner.hysteresis": "planner.tuner.hysteresis",
        "planner.learning": "planner.tuner.learning",
        "planner.partition": "planner.work.partition",
        "planner.regret": "tuning.regret",
        "planner.skipping": "planner.tuner.skipping",
        "planner.trial": "planner.tuner.trial",
        "planner.tune": "tuning.tune",
    },
)


def __getattr__(name: str) -> Any:
    if name not in _MOVED:
        raise AttributeError(f"module 'gossamer.planner' has no attribute {name!r}")
    place = _MOVED[name]
    warnings.warn(f"gossamer.planner.{name} is now {place}.{name}", DeprecationWarning, stacklevel=2)
    return getattr(importlib.import_module(place), name)
