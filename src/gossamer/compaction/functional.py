"""Turn a captured graph with in-place operators into one of pure functions, where that takes no more than renaming.

Functionalising by tracing again costs more than the capture itself, and most networks only ever write
`relu(inplace=True)` or `x += y`.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from .rules.table import has_rule, op_name


def without_grad_modes(module: fx.GraphModule, parameters: set[fx.Node]) -> None:
    """Take the nodes of a `torch.no_grad()` or `torch.enable_grad()` out of it: they compute the same without.

    What depends on none of the parameters has no channels, but tables of fixed sizes (rotary embeddings): it stays.
    """
    carries = set(parameters)
    for node in list(module.graph.nodes):
        if not carries.isdisjoint(node.all_input_nodes):
            carries.add(node)
        if (
            node not in carries
            or node.op != "call_function"
            or getattr(node.target, "__name__", "") != "wrap_with_set_grad_enabled"
        ):
            continue
        _, held, *inputs = node.args
        inner = module.get_submodule(held.target)
        assert isinstance(inner, fx.GraphModule)
        places = [own for own in inner.graph.nodes if own.op == "placeholder"]
        without_grad_modes(inner, {own for own, given in zip(places, inputs, strict=True) if given in carries})
        if any(own.op == "get_attr" for own in inner.graph.nodes):
            continue  # a branch or a loop in it has graphs of its own: a barrier, as it is elsewhere
        known = dict(zip(places, inputs, strict=True))
        with module.graph.inserting_before(node):
            for own in inner.graph.nodes:
                if own.op not in ("placeholder", "output"):
                    known[own] = module.graph.node_copy(own, known.__getitem__)
                    carries.add(known[own])
        results = next(own for own in inner.graph.nodes if own.op == "output").args[0]
        for user in list(node.users):  # each takes one of its results
            user.replace_all_uses_with(known[results[user.args[1]]])
            module.graph.erase_node(user)
        module.graph.erase_node(node)
        module.graph.erase_node(held)


def without_logs(graph: fx.Graph) -> None:
    """Erase what is computed from detached values only and read by nothing: statistics for a log.

    Other unread values stay, and bar what they bar: a module may keep one as a part of the loss (`self.aux = ...`),
    whose gradients would differ. Outputs and the new values of buffers are read by the output node.
    """
    detached: set[fx.Node] = set()
    for node in graph.nodes:
        inputs = node.all_input_nodes
        cut = node.op == "call_function" and op_name(node) == "detach"
        if cut or (inputs and detached.issuperset(inputs)):
            detached.add(node)
    for node in reversed(list(graph.nodes)):
        if node in detached and not node.users and not node.is_impure():
            graph.erase_node(node)


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
        overload = _twin(node.target)
        if overload is None or not isinstance(source, fx.Node):
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


def _twin(target: torch._ops.OpOverload) -> torch._ops.OpOverload | None:
    """relu for relu_, the overload with the same arguments; None where there is no such operator."""
    name = target._schema.name.removeprefix("aten::")
    packet = getattr(torch.ops.aten, name.removesuffix("_"), None) if name.endswith("_") else None
    overloads = [] if packet is None else [getattr(packet, overload) for overload in packet.overloads()]
    return next((item for item in overloads if _arguments(item) == _arguments(target)), None)


def _arguments(target: torch._ops.OpOverload) -> list[tuple[str, str]]:
    return [(item.name, str(item.type)) for item in target._schema.arguments]


def functional_leftovers(graph: fx.Graph) -> None:
    """Replace what functionalisation leaves inside composite operators (add_, transpose_ in a recurrent layer).

    Later nodes use the result, so x.add_(y) is x + y, unless another view of the same memory is read afterwards.
    """
    position = {node: place for place, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.is_mutable:
            continue
        source, twin = node.args[0], _twin(node.target)
        if twin is None or not isinstance(source, fx.Node) or source.op != "call_function":
            continue
        users = [user for alias in _aliases(source, node) for user in alias.users]
        if all(position[user] <= position[node] or _views(user) for user in users):
            node.target = twin


def _views(node: fx.Node) -> bool:
    """Whether the result lies in the memory of an operand (unsafe_split and its like say that theirs does not)."""
    if node.target is operator.getitem:
        return isinstance(node.args[0], fx.Node) and _views(node.args[0])
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(item.alias_info is not None for item in schema.returns)


def _aliases(node: fx.Node, writer: fx.Node) -> list[fx.Node]:
    """`node`, what it is a view of, and every other view of that, as they are without the result of `writer`."""
    while _views(node) and node.all_input_nodes:
        node = node.all_input_nodes[0]
    found = [node]
    for alias in found:
        found.extend(user for user in alias.users if user is not writer and _views(user) and user not in found)
    return found


def _may_alias(node: fx.Node) -> bool:
    """Whether the result may share memory with an operand."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return True
    schema = node.target._schema
    if schema.is_mutable:
        return False  # an earlier link of x.add_(1).relu_(), rewritten before this one
    identity = schema.name.removeprefix("aten::") in ("dropout", "feature_dropout", "alpha_dropout", "einsum")
    return identity or any(item.alias_info is not None for item in schema.returns)
