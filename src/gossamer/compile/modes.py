"""What the order of a graph means: parts that run under another mode than its beginning, calls that have effects."""

from __future__ import annotations

import torch
from torch._dynamo.symbolic_convert import InstructionTranslator
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


def is_switch(node: Node) -> bool:
    call = call_of(node)
    return call is not None and call.name in SWITCHES


def has_effect(node: Node) -> bool:
    """Whether a node must run though nobody reads its result: it writes, asserts, or switches a mode."""
    call = call_of(node)
    return (
        (call is not None and (call.in_place or call.name in SWITCHES))
        or node.op in ("placeholder", "output")
        or node.is_impure()
    )


def goes_on_in_python() -> bool:
    """Whether Dynamo has broken off the graph that it compiles now: code that no graph shows reads what it returns."""
    try:
        reason = InstructionTranslator.current_tx().output.compile_subgraph_reason
    except AttributeError:  # a graph that Dynamo does not compile now
        return False
    return reason is not None and reason.graph_break
