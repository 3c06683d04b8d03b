"""Tokens that choose their layers.

    radial = gs.routing.Radial(model, mode="skip", kv="sparse")
    gs.routing.distill(radial, teacher, batches, budget=0.7, steps=500)
    radial.generate(ids, max_new_tokens=64)          # a layer that a token skips costs it nothing

Everything is loaded on first use. Stands on serving, whose pages hold the keys of what each layer ran.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gossamer.lazy import surface

if TYPE_CHECKING:
    from gossamer.routing.hops import Hops
    from gossamer.routing.jumps import Jumps
    from gossamer.routing.lm import RadialConfig, RadialLM
    from gossamer.routing.policy import Choice, Policy, Tokens, Walk
    from gossamer.routing.radial import Radial
    from gossamer.routing.router import Router
    from gossamer.routing.stack import Stack

_NAMES: dict[str, str] = {  # a name of the package: the module that has it
    "Choice": "gossamer.routing.policy",
    "Hops": "gossamer.routing.hops",
    "Jumps": "gossamer.routing.jumps",
    "Policy": "gossamer.routing.policy",
    "Radial": "gossamer.routing.radial",
    "RadialConfig": "gossamer.routing.lm",
    "RadialLM": "gossamer.routing.lm",
    "Router": "gossamer.routing.router",
    "Stack": "gossamer.routing.stack",
    "Tokens": "gossamer.routing.policy",
    "Walk": "gossamer.routing.policy",
}

__all__ = [
    "Choice",
    "Hops",
    "Jumps",
    "Policy",
    "Radial",
    "RadialConfig",
    "RadialLM",
    "Router",
    "Stack",
    "Tokens",
    "Walk",
]

__getattr__, __dir__ = surface(__name__, _NAMES)
