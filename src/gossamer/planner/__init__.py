"""Which alternative is fastest on this shape, these zeros and this machine; dense is always one, and a reason is given.

costs/ cost curves, their cache, prices of a product | work/ partitions of a pattern | tuner/ the one online tuner |
plans of products with zeros in one operand. May import pattern, kernels and measure.
"""

import importlib
import warnings
from typing import Any

from gossamer.planner.call_sites import Planner
from gossamer.planner.costs.cache import Database, Key
from gossamer.planner.costs.curve import Curve
from gossamer.planner.costs.occupancy import Window, expected_occupancy, occupied_fraction, sample
from gossamer.planner.plan import Candidate, Plan, plan
from gossamer.planner.tuner import Tuner
from gossamer.planner.tuner.site import Site, site
from gossamer.planner.work.buckets import Buckets, Encoded
from gossamer.planner.work.partition import Partition, partition, static_work
from gossamer.renamed import keep_old_names

__all__ = [
    "Buckets", "Candidate", "Curve", "Database", "Encoded", "Key", "Partition", "Plan", "Planner", "Site", "Tuner",
    "Window", "expected_occupancy", "occupied_fraction", "partition", "plan", "sample", "site", "static_work",
]  # fmt: skip

_MOVED = {
    **{name: ("gossamer.compile", name) for name in ("Analysis", "Axis", "MicroTile", "analyse", "micro_tiles")},
    **{name: ("gossamer.tuning", name) for name in ("Regret", "regret", "tune")},
    "covered": ("gossamer.planner", "occupied_fraction"),
    "expected_cover": ("gossamer.planner", "expected_occupancy"),
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
        "planner.graph_input": "handles",
        "planner.hysteresis": "planner.call_sites",
        "planner.learning": "planner.tuner.question",
        "planner.partition": "planner.work.partition",
        "planner.regret": "tuning.regret",
        "planner.skipping": "planner.tuner.site",
        "planner.trial": "planner.tuner.trial",
        "planner.tune": "tuning.tune",
    },
)


def __getattr__(name: str) -> Any:
    if name not in _MOVED:
        raise AttributeError(f"module 'gossamer.planner' has no attribute {name!r}")
    place, now = _MOVED[name]
    warnings.warn(f"gossamer.planner.{name} is now {place}.{now}", DeprecationWarning, stacklevel=2)
    return getattr(importlib.import_module(place), now)
