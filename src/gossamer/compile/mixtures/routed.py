"""Experts in a graph, for `explain`: what a router did not choose is left out already."""

from __future__ import annotations

from torch.fx import GraphModule

from gossamer.compile.expressions.axes import analyse
from gossamer.compile.finding import Finding
from gossamer.compile.operators import call_of

EXPRESSION = "Y[t,j,o] += R[t,j,e] * X[t,k] * W[e,k,o]"  # R: whether expert e is the token's j-th


def find(gm: GraphModule) -> list[Finding]:
    """One `Finding` for each product of `experts_implementation="gossamer"`; changes nothing."""
    axes = analyse(EXPRESSION, "R").skippable
    return [
        Finding(
            node.name, "experts", EXPRESSION, "routing", axes, "grouped",
            "each token is multiplied with the experts that were chosen for it",
        )
        for node in gm.graph.nodes
        if (call := call_of(node)) is not None and call.name == "expert_rows"
    ]  # fmt: skip
