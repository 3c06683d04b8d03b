"""Turn a captured graph with in-place operators into one of pure functions, where that takes no more than renaming.

Functionalising by tracing again costs more than the capture itself, and most networks only ever write
`relu(inplace=True)` or `x += y`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from .rules.table import has_rule


def made_functional(graph: fx.Graph) -> bool:
    """Replace simple in-place operators by their functional twins; False where that needs functionalisation.

    relu_(x) of a tensor that nobody else looks at later is relu(x). A write into a view, into an input or into a
    buffer changes other nodes too, and an operator without a labelling rule may decompose into some that have one.
    """
    written: dict[fx.Node, Any] = {}
    position = {node: place for place, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if not node.target._schema.is_mutable:
            if not has_rule(node):
                return False
            continue
        source, name = node.args[0], node.target._schema.name.removeprefix("aten::")
        packet = getattr(torch.ops.aten, name.removesuffix("_"), None)
        overload = getattr(packet, node.target._overloadname, None)
        if overload is None or not name.endswith("_") or not isinstance(source, fx.Node):
            return False
        shared = source.op != "call_function" or _may_alias(source)
        viewed = any(_may_alias(user) for user in source.users if user is not node)
        later = any(position[user] > position[node] for user in source.users)
        idle = name == "dropout_" and node.args[-1] is False  # returns its operand untouched
        if (shared or viewed or later) and not idle:
            return False
        written[node] = overload
    for node, overload in written.items():
        node.target = overload
    return all(has_rule(node) for node in written)


def _may_alias(node: fx.Node) -> bool:
    """Whether the result may share memory with an operand."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return True
    schema = node.target._schema
    if schema.is_mutable:
        return False  # an earlier link of x.add_(1).relu_(), rewritten before this one
    identity = schema.name.removeprefix("aten::") in ("dropout", "feature_dropout", "alpha_dropout", "einsum")
    return identity or any(item.alias_info is not None for item in schema.returns)
