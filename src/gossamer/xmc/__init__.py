"""Extreme classification: ten thousand to a hundred million labels, a fixed number of inputs for each.

    from gossamer import xmc
    sets = xmc.data.load("folder")
    clf = xmc.Classifier(fan_in=64).fit(sets.train.texts, sets.train.labels)
    scores, ids = clf.predict_topk(sets.test.texts, k=5)

Everything is loaded on first use. May import nn, ops, pattern, kernels and what lies below; training lies beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gossamer.lazy import surface

if TYPE_CHECKING:
    from gossamer.xmc import data, encoders, metrics
    from gossamer.xmc.classifier import Classifier, load
    from gossamer.xmc.growth import Growth
    from gossamer.xmc.head import FusedHead
    from gossamer.xmc.joined import JoinedHead
    from gossamer.xmc.opening import open_head
    from gossamer.xmc.recipe import Recipe
    from gossamer.xmc.sharded import ShardedHead
    from gossamer.xmc.store import StoreError
    from gossamer.xmc.wide import WideHead

_MODULES = ("data", "encoders", "metrics")
_NAMES: dict[str, str] = {  # a name of a module of the package: the module that has it
    "Classifier": "gossamer.xmc.classifier",
    "FusedHead": "gossamer.xmc.head",
    "Growth": "gossamer.xmc.growth",
    "JoinedHead": "gossamer.xmc.joined",
    "Recipe": "gossamer.xmc.recipe",
    "ShardedHead": "gossamer.xmc.sharded",
    "StoreError": "gossamer.xmc.store",
    "WideHead": "gossamer.xmc.wide",
    "load": "gossamer.xmc.classifier",
    "open_head": "gossamer.xmc.opening",
}

__all__ = [
    "Classifier", "FusedHead", "Growth", "JoinedHead", "Recipe", "ShardedHead", "StoreError", "WideHead", "data",
    "encoders", "load", "metrics", "open_head",
]  # fmt: skip


__getattr__, __dir__ = surface(__name__, _NAMES, _MODULES, extra="xmc")
