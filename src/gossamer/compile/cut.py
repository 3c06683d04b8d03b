"""Cut a graph where its plan says: what comes before the packed part, the packed part, and what comes after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from gossamer.compile.modes import has_effect, is_switch
from gossamer.compile.operators import Call, CannotPack, call_of
from gossamer.compile.packing import Entry
from gossamer.compile.padding import Plan, readers


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
    _check_order(graph, plan)
    output = next(iter(reversed(graph.nodes)))
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    region = set(plan.region)
    rest = readers(graph, region)
    late = [node for node in rest if node in packing.descendants]
    if any(node in packing.elsewhere for node in late):  # each part switches modes where the whole does
        late = [node for node in graph.nodes if node in set(late) or is_switch(node)]
    early = [
        node
        for node in graph.nodes
        if node.op in ("call_function", "call_method", "get_attr") and node not in packing.descendants
    ]
    needed: set[Node] = set()
    for node in [*late, output]:
        needed.update(source for source in node.all_input_nodes if source not in packing.descendants)
    for kind, what in packing.placed:
        if kind == "entry":
            needed.add(what.node)
        elif what is not None:
            needed.add(what)
    for condition in plan.conditions:
        needed.update(condition.nodes)
    made = tuple(node for node in early if node in needed)
    before = _graph(gm, inputs, early, made)
    packed = packing.graph
    packed.output(tuple(packing.env[node] for node in plan.exits))
    packed.eliminate_dead_code()
    wanted = tuple(
        dict.fromkeys(source for node in [*late, output] for source in node.all_input_nodes if source not in late)
    )
    after = _graph(gm, list(wanted), late, output.args[0])
    return Cut(before, made, GraphModule(gm, packed), after, wanted)


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


def _check_order(graph: Graph, plan: Plan) -> None:
    """Parts run one after the other, so no write may cross from one to another. Raises CannotPack."""
    region = set(plan.region)

    def part(node: Node) -> int:
        return 0 if node not in plan.packing.descendants else 1 if node in region else 2

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
