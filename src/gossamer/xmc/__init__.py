"""Extreme classification: ten thousand to a hundred million labels, a fixed number of inputs for each.

    from gossamer import xmc
    sets = xmc.data.load("folder")

Everything is loaded on first use. May import nn, ops, pattern, kernels and what lies below; training lies beside it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gossamer.xmc import data, metrics
    from gossamer.xmc.head import FusedHead
    from gossamer.xmc.sharded import ShardedHead
    from gossamer.xmc.store import StoreError

_MODULES = ("data", "metrics")
_NAMES: dict[str, str] = {  # a name of a module of the package: the module that has it
    "FusedHead": "gossamer.xmc.head",
    "ShardedHead": "gossamer.xmc.sharded",
    "StoreError": "gossamer.xmc.store",
}

__all__ = ["FusedHead", "ShardedHead", "StoreError", "data", "metrics"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"gossamer.xmc.{name}")
    if name in _NAMES:
        value = getattr(importlib.import_module(_NAMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'gossamer.xmc' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
