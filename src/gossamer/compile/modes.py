"""Parts of a graph that run under another mode than its beginning: without gradients, or with autocast."""

from __future__ import annotations

import torch
from torch.fx import Graph, Node

from gossamer.compile.operators import call_of

SWITCHES = frozenset(
    {"_set_grad_enabled", "_enter_autocast", "_exit_autocast", "_enter_inference_mode", "_exit_inference_mode"}
)


def under_other_modes(graph: Graph) -> set[Node]:
    """Nodes that run under another mode than the graph begins with.

    What is computed there may only be computed there: under `no_grad` it has no gradient, under autocast another dtype.
    """
    begins = gradients = torch.is_grad_enabled()
    entered = 0
    found: set[Node] = set()
    for node in graph.nodes:
        call = call_of(node)
        if call is not None and call.name in SWITCHES:
            if call.name == "_set_grad_enabled":
                gradients = bool(node.args[0])
            else:
                entered += 1 if call.name.startswith("_enter") else -1
        elif gradients != begins or entered:
            found.add(node)
    return found
