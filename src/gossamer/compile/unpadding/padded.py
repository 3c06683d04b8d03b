"""A graph that leaves padding out where there is enough of it, and runs dense otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from gossamer.compile.labels import shape_of
from gossamer.compile.operators import call_of, is_tensor
from gossamer.compile.options import Options
from gossamer.compile.pieces import Compiler, Piece
from gossamer.compile.tally import Tally
from gossamer.compile.tokens import gather, kept, scatter, tokens_of
from gossamer.compile.unpadding.cut import Cut
from gossamer.compile.unpadding.padding import Plan

_WORK = frozenset({"linear", "addmm", "matmul", "mm", "bmm", "scaled_dot_product_attention"})


class Padded:
    """What `torch.compile` calls in place of a graph.

    Each call reads the masks of attention and asks which tokens are there and whether the conditions of the plan hold
    (one read from the device); then either the dense graph runs, or the three parts do. What has been compiled is
    preferred to what has not where both are right: a batch with little padding is not worth a compilation.

    Args:
        gm: the graph that runs dense. spelled: the one that `plan` and `parts` are of.
        later: stands for the last part, of whose tokens padding is left out too, as of a decoder behind an encoder.
    """

    def __init__(
        self, gm: GraphModule, spelled: GraphModule, plan: Plan, parts: Cut, options: Options, compiler: Compiler,
        tally: Tally, later: Padded | None = None,
    ) -> None:  # fmt: skip
        self.plan, self.parts, self.options, self.tally = plan, parts, options, tally
        self.inputs = [node for node in spelled.graph.nodes if node.op == "placeholder"]
        self.dense = Piece(gm, [_sizes(node) for node in self.inputs], compiler, tally)
        self.before = self._piece(parts.before, self.inputs, compiler)
        packed_sizes = [self._packed_sizes(kind, what) for kind, what in plan.packing.placed]
        self.packed = Piece(parts.packed, packed_sizes, compiler, tally)
        self.after = later or self._piece(parts.after, parts.wanted, compiler)

    def _piece(self, gm: GraphModule, inputs: Sequence[Node], compiler: Compiler) -> Any:
        """A part with products is compiled; a handful of small operators is not worth its seconds."""
        calls = [call for node in gm.graph.nodes if (call := call_of(node)) is not None]
        if any(call.name in _WORK for call in calls):
            return Piece(gm, [_sizes(node) for node in inputs], compiler, self.tally)
        return gm

    def _packed_sizes(self, kind: str, what: Any) -> Any:
        if kind == "tokens":
            return ("T",)
        if kind == "offsets":
            return ("texts",)
        if kind == "kind":
            return ()
        if kind == "mask":
            sizes = shape_of(what)
            assert sizes is not None
            return tuple(1 if isinstance(size, int) and size == 1 else f"mask_{at}" for at, size in enumerate(sizes))
        if kind == "entry":
            shape = shape_of(what.node)
            assert shape is not None
            gone = (what.batch, what.sequence, what.merged, *what.squeeze)
            return ("T", *(_name(size) for at, size in enumerate(shape) if at not in gone))
        return _sizes(what)

    def __call__(self, *inputs: Any) -> Any:
        values: dict[Node, Any] = dict(zip(self.inputs, inputs, strict=True))
        values.update(zip(self.parts.made, self.before(*inputs), strict=True))
        masks = [values[mask] for mask in self.plan.masks]
        keep = kept(masks, *self._shape(values, masks))
        with torch.no_grad():
            holds = [
                condition.holds(keep, *(values[node] for node in condition.nodes)) for condition in self.plan.conditions
            ]
            lengths = keep.sum(1)
            read = [lengths.sum(), lengths.square().sum(), *(each.to(torch.int64) for each in holds)]
            count, pairs, *answers = torch.stack(read).tolist()
        broken = [str(c) for c, holds_ in zip(self.plan.conditions, answers, strict=True) if not holds_]
        padding = 1 - count / max(keep.numel(), 1)
        little = padding < self.options.min_padding
        if broken or (little and (self.dense.variants or not self.packed.variants)):
            self.tally.dense(padding, broken)
            return self.dense(*inputs)
        self.tally.packed(padding, 1 - pairs / max(keep.numel() * keep.shape[1], 1))
        tokens = tokens_of(masks, keep)
        given = []
        for kind, what in self.plan.packing.placed:
            if kind == "tokens":
                given.append(tokens.at)
            elif kind == "offsets":
                given.append(tokens.offsets)
            elif kind == "kind":
                given.append(tokens.kinds[self.plan.masks.index(what)])
            elif kind == "entry":
                given.append(gather(values[what.node], tokens, what.batch, what.sequence, what.merged, what.squeeze))
            else:
                given.append(values[what])
        for node, value in zip(self.plan.exits, self.packed(*given), strict=True):
            label = self.plan.packing.axes.of(node)
            if is_tensor(node) and self.plan.packing.has_tokens(label):
                value = scatter(value, tokens, *self.plan.packing.place(label))
            values[node] = value
        return self.after(*(values[node] for node in self.parts.wanted))

    def _shape(self, values: dict[Node, Any], masks: Sequence[Tensor]) -> tuple[int, int]:
        """How many texts, and tokens in each."""
        for kind, what in self.plan.packing.placed:
            if kind == "entry" and what.batch is not None:
                return values[what.node].shape[what.batch], masks[0].shape[-1]
            if kind == "entry" and what.merged is not None:
                return values[what.node].shape[what.merged] // masks[0].shape[-1], masks[0].shape[-1]
        return masks[0].shape[0], masks[0].shape[-1]


def _name(size: Any) -> int | str:
    return size if isinstance(size, int) else str(size)


def _sizes(node: Node) -> Any:
    value = node.meta.get("example_value")
    if isinstance(value, Tensor):
        return tuple(_name(size) for size in value.shape)
    return _name(value) if isinstance(value, torch.SymInt) else None
