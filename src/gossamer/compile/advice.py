"""What of a model the compiler sees only after one call more, for `explain`."""

from __future__ import annotations

from torch import nn

from gossamer.compile.masks import windows
from gossamer.nn.fused import up_name


def advice(model: object) -> str:
    """What to call before a model is compiled, and why; empty if nothing is known.

    >>> advice(nn.Linear(2, 2))
    ''
    """
    if not isinstance(model, nn.Module):
        return ""
    if windows.is_longformer(model):
        return (
            "Longformer's attention asks Python whether there are global tokens, and its writes end Dynamo: "
            "gossamer.compile.skip_unseen(model) makes it one graph, and leaves out what no query sees"
        )
    if any(_has_own_experts(module) for module in model.modules()):
        return (
            "its experts run by transformers' own implementation, in which no graph shows what belongs to which token: "
            'model.set_experts_implementation("gossamer") groups them, and lets padding be left out'
        )
    return ""


def _has_own_experts(module: nn.Module) -> bool:
    """Experts that could have our implementation, and have another."""
    chosen = getattr(getattr(module, "config", None), "_experts_implementation", "gossamer")
    return chosen != "gossamer" and up_name(module) is not None
