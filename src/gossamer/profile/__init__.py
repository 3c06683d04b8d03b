"""Where the dynamic sparsity of a model is, on its own data: measured, with the expected gain and what to try.

    print(gs.profile.find_sparsity(model, batches))

Stands on the systems whose gain it foretells. Everything is loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gossamer.lazy import surface

if TYPE_CHECKING:
    from gossamer.profile.findings import KINDS, Finding, Findings, Gain, Place
    from gossamer.profile.search import find_sparsity

_NAMES = {
    "KINDS": "gossamer.profile.findings",
    "Finding": "gossamer.profile.findings",
    "Findings": "gossamer.profile.findings",
    "Gain": "gossamer.profile.findings",
    "Place": "gossamer.profile.findings",
    "find_sparsity": "gossamer.profile.search",
}

__all__ = ["KINDS", "Finding", "Findings", "Gain", "Place", "find_sparsity"]

__getattr__, __dir__ = surface(__name__, _NAMES)
