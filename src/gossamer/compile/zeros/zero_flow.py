"""Which values of a torch-level graph hold zeros that are found at run time, and from where they come.

Nothing depends on the answer but time: who skips zeros looks for them in what the tensor then holds. So an operator
that is not known costs a gain, never a number.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from torch.fx import Graph, Node

from gossamer.compile.zeros.zero_rules import LOSES, argument, keeps, made_by, named


@dataclass(frozen=True)
class Zeros:
    """Zeros of one value.

    Attributes:
        kind: "relu", "mask", "top-k", "dropout", ...; "marked" where the user said so.
        source: the node that makes them. through: names of the operators that they came through.
    """

    kind: str
    source: str
    through: tuple[str, ...] = ()

    def __str__(self) -> str:
        way = f" through {', '.join(self.through)}" if self.through else ""
        return f"zeros of {self.kind} ({self.source}){way}"


class ZeroFlow:
    """The zeros of each value of a graph, in order of its operators.

    Args:
        graph: torch-level, with `example_value` of each node.
        sources: names of nodes whose values hold zeros whatever makes them.
    """

    def __init__(self, graph: Graph, sources: Collection[str] = ()) -> None:
        self._now: dict[Node, Zeros] = {}
        self._lost: dict[Node, str] = {}
        self._root: dict[Node, Node] = {}
        self._aliases: dict[Node, list[Node]] = {}
        self._sources = frozenset(sources)
        self._read: dict[tuple[Node, Node], Zeros | None] = {}  # what an operator found in an operand
        for node in graph.nodes:
            self._visit(node)

    def read(self, node: Node, operand: Node) -> Zeros | None:
        """The zeros that `node` finds in its operand."""
        return self._read.get((node, operand))

    def why_none(self, operand: Node) -> str:
        """Why a value holds none."""
        if operand in self._lost:
            return self._lost[operand]
        if operand.op in ("placeholder", "get_attr"):
            return "nothing is known of its input's zeros: it comes from outside"
        name = named(operand).name or str(operand.target)
        return f"its input is a result of {name}, which makes no zeros"

    def _visit(self, node: Node) -> None:
        for operand in node.all_input_nodes:
            self._read[node, operand] = self._now.get(operand)
        op = named(node)
        first = node.args[0] if node.args and isinstance(node.args[0], Node) else None
        root = self._root[first] if first is not None and op.may_alias else node
        self._root[node] = root
        self._aliases.setdefault(root, []).append(node)
        zeros, lost = self._result(node, op.name)
        for each in self._aliases[root] if op.in_place else [node]:
            self._set(each, zeros, f"{node.name} writes into it in place: {lost}" if op.in_place and lost else lost)

    def _set(self, node: Node, zeros: Zeros | None, lost: str) -> None:
        self._now.pop(node, None)
        self._lost.pop(node, None)
        if zeros is not None:
            self._now[node] = zeros
        elif lost:
            self._lost[node] = lost

    def _result(self, node: Node, name: str) -> tuple[Zeros | None, str]:
        """The zeros of what an operator returns, or why those of its operands are lost."""
        if node.name in self._sources:
            return Zeros("marked", node.name), ""
        kind = made_by(node, name)
        if kind is not None:
            return Zeros(kind, node.name), ""
        found = [self._now[each] for each in self._carriers(node, name) if each in self._now]
        if name in ("cat", "concat", "stack") and len(found) < len(node.all_input_nodes):
            found = []
        if found and keeps(node, name) is not None:
            best = min(found, key=lambda zeros: zeros.kind == "mask")  # of a ReLU times a mask, name the ReLU
            return Zeros(best.kind, best.source, (*best.through, name)), ""
        held = [self._now[each] for each in node.all_input_nodes if each in self._now]
        if held:
            why = LOSES.get(name, "it is not known to keep a zero")
            return None, f"the {held[0]} are lost in {name or node.name}: {why}"
        return None, next((self._lost[each] for each in self._carriers(node, name) if each in self._lost), "")

    def _carriers(self, node: Node, name: str) -> Iterator[Node]:
        """The operands whose zeros a result may keep."""
        if name == "mul":
            yield from (each for each in node.args if isinstance(each, Node))
        elif name in ("cat", "concat", "stack"):
            yield from node.all_input_nodes
        else:
            first = argument(node, 0, "input")
            if isinstance(first, Node):
                yield first
