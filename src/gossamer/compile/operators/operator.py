"""What the compiler knows of an operator: which axes it has, and how it runs when only some tokens are there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch.fx import Node

from gossamer.compile.labels import Axes, Label, Size
from gossamer.compile.operators.call import Call


class CannotPack(Exception):
    """An operator that needs all tokens, and one plain sentence why."""


class Packer(Protocol):
    """The packed graph while it is made. Tokens are the first dimension of a tensor; the others keep their order."""

    axes: Axes
    descendants: set[Node]
    """Nodes that depend on attention."""

    def packed(self, node: Node) -> Node:
        """A tensor that has tokens, as [T, other dimensions]. Raises CannotPack."""

    def merged(self, node: Node) -> Node:
        """A tensor whose first dimension is batch and sequence merged, because of who reads it."""

    def operand(self, node: Node, beside: Label) -> Node:
        """Any tensor, such that it broadcasts against a packed one whose label was `beside`."""

    def plain(self, node: Any) -> Any:
        """A tensor without tokens as it is, and what is no tensor. Raises CannotPack if it has tokens."""

    def like(self, node: Node) -> Node:
        """A tensor of which only the dtype and device count."""

    def emit(self, like: Node, *args: Any, **kwargs: Any) -> Node:
        """The same call with other arguments."""

    def call(self, method: str, *args: Any) -> Node:
        """A call of a method of tensors."""

    def attention(self, node: Node, q: Node, k: Node, v: Node, mask: Node, scale: Any, dropout: Any) -> Node:
        """Attention of every token to the tokens of its own text."""

    def across(self, q: Node, k: Node, v: Node, mask: Node | None, scale: Any, dropout: Any) -> Node:
        """Attention of every token to other texts, which are whole. Raises CannotPack if they depend on attention."""

    def keep_inside(self, node: Node) -> None:
        """Nobody outside of the packed graph may read this."""

    def condition(self, condition: Any) -> None:
        """What must hold at run time for the packed graph to be right."""

    def place(self, label: Label) -> tuple[int | None, int | None, int | None]:
        """Which dimensions are the batch, the sequence, and both merged. Raises CannotPack."""

    def rest(self, label: Label) -> list[int]:
        """The dimensions of a label that are no tokens. Raises CannotPack where its tokens are not plain."""

    def around(self, label: Label) -> tuple[Size, Size, Size, Size]:
        """Whether the batch comes after the sequence, and how many elements lie before both, between, and behind."""


class Names:
    """Short names for the axes of a graph, given out as they come up; those of tokens are b and s."""

    def __init__(self, axes: Axes, given: dict[int, str] | None = None) -> None:
        self.axes, self.given = axes, dict(given or {})

    def of(self, name: str, label: Label) -> str:
        """A tensor in an expression: "X[b,s,d]". Dimensions of size 1 are left out."""
        return f"{name}[{','.join(self._dim(dim) for dim in label if dim)}]"

    def keys(self, name: str, label: Label) -> str:
        """Weights of attention, whose keys run over the same tokens as its queries: they are called j."""
        return f"{name}[{','.join([*(self._dim(dim) for dim in label if dim), 'j'])}]"

    def along(self, dim: tuple[int, ...]) -> str:
        return self._dim(dim)

    def _dim(self, dim: tuple[int, ...]) -> str:
        return "".join(self._axis(self.axes.root(axis)) for axis in dim)

    def _axis(self, axis: int) -> str:
        if axis not in self.given:
            taken = set(self.given.values())
            self.given[axis] = next((x for x in "mnkhdopqrtuvwxyzacefgil" if x not in taken), f"x{axis}")
        return self.given[axis]


class Operator(Protocol):
    """One family of operators, without state: what there is to know is in the call and in the axes."""

    def label(self, call: Call, axes: Axes) -> Any:
        """The label of the result (a tuple of labels for a tuple of tensors); unifies what is the same axis."""

    def expression(self, call: Call, names: Names) -> str | None:
        """What it computes, in the grammar of `gossamer.compile.expressions.expression`, or None."""

    def pack(self, call: Call, packer: Packer) -> Any:
        """The call on packed operands: a node of the packed graph. Raises CannotPack."""


def dimension(at: int, rank: int) -> int:
    return at + rank if at < 0 else at


def dimensions(at: Any, rank: int) -> list[int]:
    """A dim argument as a list: None and none are all."""
    if isinstance(at, bool):
        raise CannotPack("a flag where a dimension is expected")
    several: Sequence[int] = [at] if isinstance(at, int) else list(at or ())
    if not several:
        return list(range(rank))
    return [dimension(each, rank) for each in several]


def pack_along(call: Call, packer: Packer, at: int, dim: int) -> Node:
    """The same call on packed tokens, along the same dimension, which is its argument `at` or "dim"."""
    rest = packer.rest(packer.axes.of(call.operands[0]))
    if dim not in rest:
        raise CannotPack(f"{call.name} runs along the tokens")
    args, kwargs = list(call.node.args), dict(call.node.kwargs)
    args[0] = packer.packed(call.operands[0])
    if at < len(args):
        args[at] = rest.index(dim) + 1
    else:
        kwargs["dim"] = rest.index(dim) + 1
    return packer.emit(call.node, *args, **kwargs)
