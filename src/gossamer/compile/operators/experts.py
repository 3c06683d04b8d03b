"""Mixture of experts: every token has its own product, whoever else is there."""

from __future__ import annotations

from typing import Any

from gossamer.compile.labels import Axes, Label
from gossamer.compile.operators.call import Call
from gossamer.compile.operators.operator import CannotPack, Names, Packer


class ExpertIndex:
    """expert_index(ids, experts): it is of the tokens that are there, so nobody outside may have it."""

    def label(self, call: Call, axes: Axes) -> Any:
        return tuple(axes.fresh_label(tuple(each.shape)) for each in call.node.meta["example_value"])

    def expression(self, call: Call, names: Names) -> str | None:
        return None

    def pack(self, call: Call, packer: Packer) -> Any:
        packer.keep_inside(call.node)
        return packer.emit(call.node, packer.packed(call.operands[0]), call.get(1, "experts"))


class ExpertRows:
    """expert_rows(x, ids, offsets, order, weights, transposed)."""

    def label(self, call: Call, axes: Axes) -> Label:
        x, ids, weights = axes.labels[call.operands[0]], axes.labels[call.operands[1]], axes.labels[call.operands[4]]
        axes.unify(x[0], ids[0])
        return (*ids, weights[1 if call.get(5, "transposed") else 2])

    def expression(self, call: Call, names: Names) -> str | None:
        """One token and one of its experts, e, whose weights are W."""
        y, x = names.axes.of(call.node), names.axes.of(call.operands[0])
        inner = names.along(x[-1])
        return f"{names.of('Y', y)} += {names.of('X', x)} * W[{names.along(y[0])},{inner},{names.along(y[-1])}]"

    def pack(self, call: Call, packer: Packer) -> Any:
        arguments: list[Any] = list(call.node.args)
        x, ids, offsets, order, weights, transposed = arguments
        if packer.rest(packer.axes.of(ids)) != [1]:
            raise CannotPack("experts of something that is not tokens")
        packed = [packer.packed(each) for each in (x, ids, offsets, order)]
        return packer.emit(call.node, *packed, packer.plain(weights), transposed)
