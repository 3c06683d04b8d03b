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
    from gossamer.routing.budget import Budget
    from gossamer.routing.diagnosis import Health, health
    from gossamer.routing.expert_choice import ExpertChoice
    from gossamer.routing.export import drop
    from gossamer.routing.fit import History
    from gossamer.routing.fixed import EarlyExit, RandomSkip, Static
    from gossamer.routing.flops import Costs, Counter
    from gossamer.routing.hops import Hops
    from gossamer.routing.jumps import Jumps
    from gossamer.routing.layer_skip import LayerSkip
    from gossamer.routing.lm import RadialConfig, RadialLM
    from gossamer.routing.objective import Objective
    from gossamer.routing.overlay import overlay
    from gossamer.routing.per_text import PerText
    from gossamer.routing.per_unit import PerUnit
    from gossamer.routing.policy import Choice, Policy, Tokens, Walk
    from gossamer.routing.profiled import Profile
    from gossamer.routing.profiling import profile
    from gossamer.routing.radial import Radial
    from gossamer.routing.recursion import Recursions
    from gossamer.routing.router import Router
    from gossamer.routing.saved import StateError, load_state, save_state
    from gossamer.routing.settling import settle
    from gossamer.routing.speculation import Speculation, speculate
    from gossamer.routing.stack import Stack
    from gossamer.routing.training import distill, train

_NAMES: dict[str, str] = {  # a name of the package: the module that has it
    "Budget": "gossamer.routing.budget",
    "Choice": "gossamer.routing.policy",
    "Costs": "gossamer.routing.flops",
    "Counter": "gossamer.routing.flops",
    "EarlyExit": "gossamer.routing.fixed",
    "ExpertChoice": "gossamer.routing.expert_choice",
    "Health": "gossamer.routing.diagnosis",
    "History": "gossamer.routing.fit",
    "Hops": "gossamer.routing.hops",
    "Jumps": "gossamer.routing.jumps",
    "LayerSkip": "gossamer.routing.layer_skip",
    "Objective": "gossamer.routing.objective",
    "PerText": "gossamer.routing.per_text",
    "PerUnit": "gossamer.routing.per_unit",
    "Policy": "gossamer.routing.policy",
    "Profile": "gossamer.routing.profiled",
    "Radial": "gossamer.routing.radial",
    "RadialConfig": "gossamer.routing.lm",
    "RadialLM": "gossamer.routing.lm",
    "RandomSkip": "gossamer.routing.fixed",
    "Recursions": "gossamer.routing.recursion",
    "Router": "gossamer.routing.router",
    "Speculation": "gossamer.routing.speculation",
    "Stack": "gossamer.routing.stack",
    "StateError": "gossamer.routing.saved",
    "Static": "gossamer.routing.fixed",
    "Tokens": "gossamer.routing.policy",
    "Walk": "gossamer.routing.policy",
    "distill": "gossamer.routing.training",
    "drop": "gossamer.routing.export",
    "health": "gossamer.routing.diagnosis",
    "load_state": "gossamer.routing.saved",
    "overlay": "gossamer.routing.overlay",
    "profile": "gossamer.routing.profiling",
    "save_state": "gossamer.routing.saved",
    "settle": "gossamer.routing.settling",
    "speculate": "gossamer.routing.speculation",
    "train": "gossamer.routing.training",
}

__all__ = [
    "Budget",
    "Choice",
    "Costs",
    "Counter",
    "EarlyExit",
    "ExpertChoice",
    "Health",
    "History",
    "Hops",
    "Jumps",
    "LayerSkip",
    "Objective",
    "PerText",
    "PerUnit",
    "Policy",
    "Profile",
    "Radial",
    "RadialConfig",
    "RadialLM",
    "RandomSkip",
    "Recursions",
    "Router",
    "Speculation",
    "Stack",
    "StateError",
    "Static",
    "Tokens",
    "Walk",
    "distill",
    "drop",
    "health",
    "load_state",
    "overlay",
    "profile",
    "save_state",
    "settle",
    "speculate",
    "train",
]

__getattr__, __dir__ = surface(__name__, _NAMES, extra="serving")
