"""Which dimension of which tensor is which axis, through a whole graph.

Every dimension of every value is labelled with the axes it runs over: `(b,)` for a batch, `(b, s)` for a batch and a
sequence that a view has merged, `()` for a dimension of size 1. Operators say which dimensions of their operands are
the same axis (`gossamer.compile.operators`), and what is the same anywhere is the same everywhere (union-find). So a
batch is recognised by how it is used, and never by its size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

Size = int | torch.SymInt
Dim = tuple[int, ...]
"""The axes that a dimension runs over, outermost first."""
Label = tuple[Dim, ...]


def same(a: Size, b: Size) -> bool:
    """Whether two sizes are known to be equal. Asking adds no guard."""
    return a is b or bool(statically_known_true(a == b))


class Axes:
    """All axes of a graph.

    Attributes:
        labels: of each node: a `Label`, a tuple of them for a tuple of tensors, or None for what is no tensor.
    """

    def __init__(self) -> None:
        self.labels: dict[Node, Any] = {}
        self._above: list[int] = []
        self._sizes: list[Size] = []

    def fresh(self, size: Size) -> Dim:
        """A dimension of its own axis; of no axis if its size is 1."""
        if isinstance(size, int) and size == 1:
            return ()
        self._above.append(len(self._above))
        self._sizes.append(size)
        return (len(self._above) - 1,)

    def fresh_label(self, sizes: Sequence[Size]) -> Label:
        return tuple(self.fresh(size) for size in sizes)

    def root(self, axis: int) -> int:
        while self._above[axis] != axis:
            self._above[axis] = self._above[self._above[axis]]
            axis = self._above[axis]
        return axis

    def size(self, axis: int) -> Size:
        return self._sizes[axis]

    def of(self, node: Node) -> Label:
        """The label of a tensor, with what has become known since it was made."""
        return tuple(tuple(self.root(axis) for axis in dim) for dim in self.labels[node])

    def unify(self, a: Dim, b: Dim) -> None:
        """Say that two dimensions run over the same axes. What cannot be the same is left as it is."""
        if len(a) == len(b) and all(same(self.size(x), self.size(y)) for x, y in zip(a, b, strict=True)):
            for x, y in zip(a, b, strict=True):
                low, high = sorted((self.root(x), self.root(y)))
                self._above[high] = low

    def reshaped(self, label: Label, sizes: Sequence[Size]) -> Label:
        """The label after a view: dimensions are merged and split, and data stays in its order."""
        atoms = [axis for dim in label for axis in dim]
        out: list[Dim] = []
        at = 0
        while len(out) < len(sizes):
            here = len(out)
            if isinstance(sizes[here], int) and sizes[here] == 1:
                out.append(())
            elif merged := self._merged(atoms[at:], sizes[here]):
                out.append(merged)
                at += len(merged)
            elif at < len(atoms) and (pieces := _split(self.size(atoms[at]), sizes[here:])):
                out.extend(self.fresh(size) for size in pieces)
                at += 1
            else:  # pieces of several axes, or sizes that nobody can compare
                out.extend(self.fresh_label(sizes[here:]))
        return tuple(out)

    def _merged(self, atoms: Sequence[int], size: Size) -> Dim:
        """The first axes of `atoms` that together have a size."""
        product: Size = 1
        for count, axis in enumerate(atoms, 1):
            product = product * self.size(axis)
            if same(product, size):
                return tuple(atoms[:count])
        return ()


def _split(whole: Size, sizes: Sequence[Size]) -> Sequence[Size]:
    """The first of `sizes` that together make a whole."""
    product: Size = 1
    for count, size in enumerate(sizes, 1):
        product = product * size
        if same(product, whole):
            return sizes[:count]
    return ()


def shape_of(node: Node) -> tuple[Size, ...] | None:
    """The sizes of a node's result, or None if it is no tensor."""
    value = node.meta.get("example_value")
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None
