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
    from gossamer.xmc.heads.growth import Growth
    from gossamer.xmc.heads.head import FusedHead
    from gossamer.xmc.heads.joined import JoinedHead
    from gossamer.xmc.heads.opening import open_head
    from gossamer.xmc.heads.sharded import ShardedHead
    from gossamer.xmc.heads.store import StoreError
    from gossamer.xmc.heads.wide import WideHead
    from gossamer.xmc.recipe import Recipe

_MODULES = ("data", "encoders", "metrics")
_NAMES: dict[str, str] = {  # a name of a module of the package: the module that has it
    "Classifier": "gossamer.xmc.classifier",
    "FusedHead": "gossamer.xmc.heads.head",
    "Growth": "gossamer.xmc.heads.growth",
    "JoinedHead": "gossamer.xmc.heads.joined",
    "Recipe": "gossamer.xmc.recipe",
    "ShardedHead": "gossamer.xmc.heads.sharded",
    "StoreError": "gossamer.xmc.heads.store",
    "WideHead": "gossamer.xmc.heads.wide",
    "load": "gossamer.xmc.classifier",
    "open_head": "gossamer.xmc.heads.opening",
}

__all__ = [
    "Classifier", "FusedHead", "Growth", "JoinedHead", "Recipe", "ShardedHead", "StoreError", "WideHead", "data",
    "encoders", "load", "metrics", "open_head",
]  # fmt: skip


__getattr__, __dir__ = surface(__name__, _NAMES, _MODULES, extra="xmc")
