"""Channel labels: which positions of which tensor axes must be removed together.

Every axis of every tensor in a captured graph is one of

    ndarray    int64 labels, one per position; equal labels (after `find`) = the same channel
    Fixed      an axis that never shrinks (batch, space, classes), with the reason if there is one worth telling
    Factor     one factor of a labelled axis that a view has split: C = heads x head_size, C = groups x C/groups
    FREE       an axis of a freshly made constant (zeros, full): it follows whatever it meets

Worked example: y = conv2(relu(conv1(x))) gives conv1.weight axis 0, conv1.bias axis 0 and conv2.weight axis 1 the
same eight labels, so channel 3 of conv1 owns row 3, bias 3 and column 3.

A split axis stays undecided until an operation asks for one of its factors: attention needs whole heads (the outer
factor), a channel shuffle needs whole columns (the inner one), and a view that is undone later needs no decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Fixed:
    """An axis that keeps its size; `reason` is empty where a reader would not expect channels anyway."""

    reason: str = ""


class Free:
    """An axis of a constant filled with one value: any channel may be removed from it."""

    def __repr__(self) -> str:
        return "FREE"


FREE = Free()
QUIET = Fixed()


@dataclass
class Split:
    """A labelled axis seen as a box of factors; at most one factor can shrink, the others then tie their positions."""

    labels: np.ndarray
    open: set[int] = field(default_factory=set)
    kept: int | None = None
    result: np.ndarray | None = None
    target: Split | None = None  # set when this split was identified with another of the same shape

    def root(self) -> Split:
        split = self
        while split.target is not None:
            split = split.target
        return split


@dataclass(frozen=True, eq=False)
class Factor:
    """Factor number `index` of a split axis."""

    split: Split
    index: int


Axis = np.ndarray | Fixed | Factor | Free


class Labels:
    """Union-find over channel labels, vectorised over whole axes, with the reasons why labels cannot be removed."""

    def __init__(self) -> None:
        self._parent = np.zeros(0, dtype=np.int64)
        self._splits: list[Split] = []
        self.frozen: list[tuple[np.ndarray, str]] = []  # first reason wins; "" = not a channel axis at all
        self.marks: dict[str, list[np.ndarray]] = {"residual": [], "heads": []}

    @property
    def count(self) -> int:
        """How many labels there are."""
        return len(self._parent)

    # ---- union-find -------------------------------------------------------------------------------------------

    def fresh(self, count: int) -> np.ndarray:
        """`count` new labels, each its own channel."""
        start = len(self._parent)
        labels = np.arange(start, start + count, dtype=np.int64)
        self._parent = np.concatenate([self._parent, labels])
        return labels

    def find(self, labels: np.ndarray) -> np.ndarray:
        """The representative of every label."""
        roots = self._parent[labels]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        self._parent[labels] = roots
        return roots

    def union(self, left: np.ndarray, right: np.ndarray) -> None:
        """Position-wise: left[i] and right[i] become one channel (arrays broadcast)."""
        left, right = np.broadcast_arrays(left, right)
        left, right = left.ravel(), right.ravel()
        while True:
            a, b = self.find(left), self.find(right)
            differ = a != b
            if not differ.any():
                return
            a, b = a[differ], b[differ]
            # Several pairs may hang the same root; minimum keeps one of them and the loop retries the others.
            np.minimum.at(self._parent, np.maximum(a, b), np.minimum(a, b))
            left, right = left[differ], right[differ]

    def freeze(self, labels: np.ndarray, reason: str) -> None:
        self.frozen.append((np.asarray(labels).ravel(), reason))

    def mark(self, kind: str, axis: Axis) -> None:
        """Remember that the channels of `axis` were joined by an addition ("residual") or are attention "heads"."""
        axis = self.settled(axis)
        if isinstance(axis, np.ndarray):
            self.marks[kind].append(axis)

    # ---- split axes -------------------------------------------------------------------------------------------

    def split(self, labels: np.ndarray, sizes: Sequence[int]) -> list[Axis]:
        """See one labelled axis as a box of `sizes`; returns one axis per factor."""
        split = Split(labels.reshape(tuple(sizes)), {i for i, size in enumerate(sizes) if size > 1})
        self._splits.append(split)
        axes: list[Axis] = [Factor(split, i) if size > 1 else QUIET for i, size in enumerate(sizes)]
        return axes

    def _keep(self, split: Split, index: int) -> None:
        """Decide that factor `index` shrinks: all positions that differ only in the other factors are tied."""
        rows = np.moveaxis(split.labels, index, 0).reshape(split.labels.shape[index], -1)
        self.union(rows, rows[:, :1])
        split.kept, split.result = index, rows[:, 0].copy()

    def _fix_factor(self, split: Split, index: int, reason: str) -> None:
        if split.kept is not None:
            if split.kept == index:
                assert split.result is not None
                self.freeze(split.result, reason)
            return
        split.open.discard(index)
        if len(split.open) == 1:
            self._keep(split, next(iter(split.open)))
        elif not split.open:
            self.freeze(split.labels, reason)
            split.kept, split.result = -1, None

    def settled(self, axis: Axis) -> Axis:
        """`axis` with decided factors replaced by what they became."""
        if not isinstance(axis, Factor):
            return axis
        split = axis.split.root()
        if split.kept is None:
            return Factor(split, axis.index)
        if split.kept == axis.index:
            assert split.result is not None
            return split.result
        return QUIET

    def settle(self) -> None:
        """Decide every split nobody asked about: its largest factor shrinks."""
        for split in self._splits:
            if split.target is None and split.kept is None:
                self._keep(split, max(split.open, key=lambda i: (split.labels.shape[i], -i)))

    # ---- what rules say about axes ----------------------------------------------------------------------------

    def labelled(self, axis: Axis) -> np.ndarray | None:
        """The labels of `axis`, deciding a split in its favour; None when the axis is not labelled."""
        axis = self.settled(axis)
        if isinstance(axis, Factor):
            split = axis.split
            if axis.index not in split.open:
                return None
            self._keep(split, axis.index)
            axis = self.settled(axis)
        return axis if isinstance(axis, np.ndarray) else None

    def fix(self, axis: Axis, reason: str) -> None:
        """`axis` must keep its size."""
        axis = self.settled(axis)
        if isinstance(axis, np.ndarray):
            self.freeze(axis, reason)
        elif isinstance(axis, Factor):
            self._fix_factor(axis.split, axis.index, reason)

    def join(self, left: Axis, right: Axis, reason: str) -> Axis:
        """The axis of an element-wise result: positions of both operands become the same channels."""
        left, right = self.settled(left), self.settled(right)
        if isinstance(left, Free):
            return right
        if isinstance(right, Free):
            return left
        if isinstance(left, Fixed) or isinstance(right, Fixed):
            fixed, other = (left, right) if isinstance(left, Fixed) else (right, left)
            assert isinstance(fixed, Fixed)
            if not isinstance(other, Fixed):
                self.fix(other, fixed.reason or reason)
                return Fixed(fixed.reason or reason)
            return fixed if fixed.reason else other
        if isinstance(left, Factor) and isinstance(right, Factor):
            return self._join_factors(left, right, reason)
        if isinstance(left, Factor) or isinstance(right, Factor):
            factor, vector = (left, right) if isinstance(left, Factor) else (right, left)
            if isinstance(factor, Factor) and factor.index == max(factor.split.open, default=-1):
                # One vector for every outer position (rotary table, norm of each head): a head size, not channels.
                shared = "one vector serves every head"
                self.fix(factor, shared)
                self.fix(vector, shared)
                return Fixed(shared)
        a = self.labelled(left)
        if a is None:
            return self.join(QUIET, right, reason)
        b = self.labelled(right)
        if b is None:
            return self.join(QUIET, a, reason)
        self.union(a, b)
        return a

    def _join_factors(self, left: Factor, right: Factor, reason: str) -> Axis:
        if left.split is right.split and left.index == right.index:
            return left
        same_box = left.split.labels.shape == right.split.labels.shape and left.index == right.index
        if same_box and left.split is not right.split:
            # Two axes split alike and combined factor by factor: identify them and stay undecided.
            self.union(left.split.labels, right.split.labels)
            closed = set(range(left.split.labels.ndim)) - (left.split.open & right.split.open)
            right.split.target = left.split
            for index in closed & left.split.open:
                self._fix_factor(left.split, index, reason)
            return self.settled(left)
        a, b = self.labelled(left), self.labelled(right)
        if a is not None and b is not None:
            self.union(a, b)
            return a
        return self.join(QUIET if a is None else a, QUIET if b is None else b, reason)

    def vector(self, axis: Axis, size: int, reason: str) -> np.ndarray:
        """`axis` as labels whatever it is: a fixed axis becomes frozen labels, so that it can be concatenated."""
        labels = self.labelled(axis)
        if labels is None:
            axis = self.settled(axis)
            labels = self.fresh(size)
            if not isinstance(axis, Free):
                self.freeze(labels, axis.reason if isinstance(axis, Fixed) and axis.reason else reason)
        return labels
