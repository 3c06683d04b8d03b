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
    from gossamer.routing.export import drop
    from gossamer.routing.flops import Costs, Counter
    from gossamer.routing.learning.budget import Budget
    from gossamer.routing.learning.diagnosis import Health, health
    from gossamer.routing.learning.fit import History
    from gossamer.routing.learning.layer_skip import LayerSkip
    from gossamer.routing.learning.objective import Objective
    from gossamer.routing.learning.settling import settle
    from gossamer.routing.learning.training import distill, train
    from gossamer.routing.lm import RadialConfig, RadialLM
    from gossamer.routing.policies.expert_choice import ExpertChoice
    from gossamer.routing.policies.fixed import EarlyExit, RandomSkip, Static
    from gossamer.routing.policies.hops import Hops
    from gossamer.routing.policies.jumps import Jumps
    from gossamer.routing.policies.per_text import PerText
    from gossamer.routing.policies.per_unit import PerUnit
    from gossamer.routing.policies.policy import Choice, Policy, Tokens, Walk
    from gossamer.routing.policies.recursion import Recursions
    from gossamer.routing.policies.router import Router
    from gossamer.routing.profiling.overlay import overlay
    from gossamer.routing.profiling.profiled import Profile
    from gossamer.routing.profiling.profiling import profile
    from gossamer.routing.radial import Radial
    from gossamer.routing.saved import StateError, load_state, save_state
    from gossamer.routing.speculation import Speculation, speculate
    from gossamer.routing.stack import Stack

_NAMES: dict[str, str] = {  # a name of the package: the module that has it
    "Budget": "gossamer.routing.learning.budget",
    "Choice": "gossamer.routing.policies.policy",
    "Costs": "gossamer.routing.flops",
    "Counter": "gossamer.routing.flops",
    "EarlyExit": "gossamer.routing.policies.fixed",
    "ExpertChoice": "gossamer.routing.policies.expert_choice",
    "Health": "gossamer.routing.learning.diagnosis",
    "History": "gossamer.routing.learning.fit",
    "Hops": "gossamer.routing.policies.hops",
    "Jumps": "gossamer.routing.policies.jumps",
    "LayerSkip": "gossamer.routing.learning.layer_skip",
    "Objective": "gossamer.routing.learning.objective",
    "PerText": "gossamer.routing.policies.per_text",
    "PerUnit": "gossamer.routing.policies.per_unit",
    "Policy": "gossamer.routing.policies.policy",
    "Profile": "gossamer.routing.profiling.profiled",
    "Radial": "gossamer.routing.radial",
    "RadialConfig": "gossamer.routing.lm",
    "RadialLM": "gossamer.routing.lm",
    "RandomSkip": "gossamer.routing.policies.fixed",
    "Recursions": "gossamer.routing.policies.recursion",
    "Router": "gossamer.routing.policies.router",
    "Speculation": "gossamer.routing.speculation",
    "Stack": "gossamer.routing.stack",
    "StateError": "gossamer.routing.saved",
    "Static": "gossamer.routing.policies.fixed",
    "Tokens": "gossamer.routing.policies.policy",
    "Walk": "gossamer.routing.policies.policy",
    "distill": "gossamer.routing.learning.training",
    "drop": "gossamer.routing.export",
    "health": "gossamer.routing.learning.diagnosis",
    "load_state": "gossamer.routing.saved",
    "overlay": "gossamer.routing.profiling.overlay",
    "profile": "gossamer.routing.profiling.profiling",
    "save_state": "gossamer.routing.saved",
    "settle": "gossamer.routing.learning.settling",
    "speculate": "gossamer.routing.speculation",
    "train": "gossamer.routing.learning.training",
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
