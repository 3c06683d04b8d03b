"""Cut a graph where its plan says: what comes before the packed part, the packed part, and what comes after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from gossamer.compile.modes import has_effect, is_switch
from gossamer.compile.operators import Call, CannotPack, call_of
from gossamer.compile.unpadding.packing import Entry
from gossamer.compile.unpadding.padding import Plan, readers

_COMPUTED = ("call_function", "call_method", "get_attr")


@dataclass(frozen=True)
class Cut:
    """Three graphs and what each of them takes.

    Attributes:
        before: takes the graph's inputs; makes `made`.
        packed: takes `packing.placed`; makes `exits`.
        after: takes `wanted`, nodes of the whole graph; makes its outputs.
    """

    before: GraphModule
    made: tuple[Node, ...]
    packed: GraphModule
    after: GraphModule
    wanted: tuple[Node, ...]


def cut(gm: GraphModule, plan: Plan) -> Cut:
    """Raises CannotPack where writes in place forbid another order."""
    graph, packing = gm.graph, plan.packing
    early = _early(graph, plan)
    _check_order(graph, plan, early)
    output = next(iter(reversed(graph.nodes)))
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    region = set(plan.region)
    rest = readers(graph, region)
    late = [node for node in rest if node.op in _COMPUTED and node not in early]
    if any(node in packing.elsewhere for node in late):  # each part switches modes where the whole does
        late = [node for node in graph.nodes if node in set(late) or is_switch(node)]
    needed = _needed(plan)
    for node in [*late, output]:
        needed.update(node.all_input_nodes)
    first = [node for node in graph.nodes if node in early]
    made = tuple(node for node in first if node in needed)
    before = _graph(gm, inputs, first, made)
    packed = packing.graph
    packed.output(tuple(packing.env[node] for node in plan.exits))
    packed.eliminate_dead_code()
    wanted = tuple(
        dict.fromkeys(source for node in [*late, output] for source in node.all_input_nodes if source not in late)
    )
    after = _graph(gm, list(wanted), late, output.args[0])
    return Cut(before, made, GraphModule(gm, packed), after, wanted)


def _needed(plan: Plan) -> set[Node]:
    """What the packed part and the conditions take."""
    placed = (what.node if kind == "entry" else what for kind, what in plan.packing.placed)
    return {node for node in placed if node is not None}.union(*(each.nodes for each in plan.conditions))


def _early(graph: Graph, plan: Plan) -> set[Node]:
    """What is computed before the packed part; no more than it takes where other tokens come behind it, as a decoder's.

    The last part is asked again then, and is to have all of theirs.
    """
    free = {node for node in graph.nodes if node.op in _COMPUTED and node not in plan.packing.descendants}
    if not plan.others:
        return free
    needed = _needed(plan)
    for node in reversed(graph.nodes):
        if node in needed or (node in free and has_effect(node)):
            needed.update(node.all_input_nodes)
            needed.add(node)
    return free & needed


def _graph(gm: GraphModule, inputs: list[Node], nodes: list[Node], outputs: Any) -> GraphModule:
    new = Graph()
    env: dict[Node, Node] = {}
    for node in inputs:
        env[node] = new.placeholder(node.name)
        env[node].meta = dict(node.meta)
    for node in nodes:
        env[node] = new.node_copy(node, lambda each: env[each])
    new.output(torch.fx.node.map_arg(tuple(outputs), lambda each: env[each]))
    new.eliminate_dead_code(is_impure_node=has_effect)
    return GraphModule(gm, new)


def _check_order(graph: Graph, plan: Plan, early: set[Node]) -> None:
    """Parts run one after the other, so no write may cross from one to another. Raises CannotPack."""
    region = set(plan.region)

    def part(node: Node) -> int:
        return 1 if node in region else 0 if node in early or node.op not in _COMPUTED else 2

    memory = {node: _memory(node.meta.get("example_value")) for node in graph.nodes}
    for node in graph.nodes:
        call = call_of(node)
        if call is None or not call.in_place:
            continue
        written = set().union(*(memory[each] for each in _written(call)))
        aliases = [other for other in graph.nodes if memory[other] & written]
        if any(alias.op in ("placeholder", "get_attr") for alias in aliases):
            raise CannotPack(f"{node.name} writes into an input of the graph")
        if len({part(user) for alias in (node, *aliases) for user in (alias, *alias.users) if user.op != "output"}) > 1:
            raise CannotPack(f"{node.name} writes in place into what other parts read")


def _written(call: Call) -> list[Node]:
    """What a call writes into; all that it is given where that is not known."""
    node, out = call.node, call.node.kwargs.get("out")
    if out is not None:
        return _nodes(out)
    plain = node.op == "call_method" or getattr(node.target, "__module__", "") in ("_operator", "torch")
    first = node.args[0] if node.args else None
    return [first] if plain and isinstance(first, Node) else node.all_input_nodes


def _nodes(tree: Any) -> list[Node]:
    found: list[Node] = []
    torch.fx.node.map_arg(tree, found.append)
    return found


def _memory(value: Any) -> set[int]:
    """Which memory the tensors of a node's example value lie in: views share theirs."""
    if isinstance(value, torch.Tensor) and value.layout == torch.strided:
        return {value.untyped_storage()._cdata}
    if isinstance(value, (tuple, list)):
        return set().union(*map(_memory, value))
    return set()


__all__ = ["Cut", "Entry", "cut"]
