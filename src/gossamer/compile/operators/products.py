"""Products with weights, tables of embeddings."""

from __future__ import annotations

from typing import Any

from gossamer.compile.labels import Axes, Label, shape_of
from gossamer.compile.operators.call import Call
from gossamer.compile.operators.operator import CannotPack, Names, Packer


class Linear:
    """linear(x, weight, bias), torch's or ours."""

    def label(self, call: Call, axes: Axes) -> Label:
        x, weight = axes.labels[call.operands[0]], axes.labels[call.operands[1]]
        axes.unify(x[-1], weight[1])
        return (*x[:-1], weight[0])

    def expression(self, call: Call, names: Names) -> str | None:
        x, weight = names.axes.of(call.operands[0]), names.axes.of(call.operands[1])
        # What is multiplied may be one axis for the weight and several for x, such as heads and their width.
        y = (*x[:-1], weight[0])
        return f"{names.of('Y', y)} += {names.of('X', (*x[:-1], weight[1]))} * {names.of('W', weight)}"

    def pack(self, call: Call, packer: Packer) -> Any:
        label = packer.axes.of(call.operands[0])
        if len(label) - 1 not in packer.rest(label):
            raise CannotPack("linear multiplies along the tokens")
        x, others = call.operands[0], call.node.args[1:]
        kwargs = {name: packer.plain(value) for name, value in call.node.kwargs.items()}
        return packer.emit(call.node, packer.packed(x), *map(packer.plain, others), **kwargs)


class Matmul:
    """matmul, bmm, @."""

    def label(self, call: Call, axes: Axes) -> Label:
        shape = shape_of(call.node)
        assert shape is not None
        a, b = (axes.labels[each] for each in _factors(call))
        if len(a) < 2 or len(b) < 2:
            return axes.fresh_label(shape)
        axes.unify(a[-1], b[-2])
        batch: list[tuple[int, ...]] = [() for _ in shape[:-2]]
        for label in (a[:-2], b[:-2]):
            for at, dim in enumerate(label, len(batch) - len(label)):
                if dim and batch[at]:
                    axes.unify(batch[at], dim)
                elif dim:
                    batch[at] = dim
        return (*batch, a[-2], b[-1])

    def expression(self, call: Call, names: Names) -> str | None:
        a, b = (names.axes.of(each) for each in _factors(call))
        if len(a) < 2 or len(b) < 2:
            return None
        y = names.axes.of(call.node)
        return f"{names.of('C', y)} += {names.of('A', a)} * {names.of('B', (*b[:-2], a[-1], b[-1]))}"

    def pack(self, call: Call, packer: Packer) -> Any:
        a, b = _factors(call)
        label = packer.axes.of(a)
        if call.name == "bmm" or len(packer.axes.of(b)) != 2 or len(label) - 1 not in packer.rest(label):
            raise CannotPack(f"{call.name} is not a product of tokens with a matrix")
        return packer.emit(call.node, packer.packed(a), packer.plain(b))


class Addmm:
    """addmm(bias, x, weight) without factors."""

    def label(self, call: Call, axes: Axes) -> Label:
        x, weight = (axes.labels[each] for each in _operands(call))
        axes.unify(x[1], weight[0])
        return (x[0], weight[1])

    def expression(self, call: Call, names: Names) -> str | None:
        x, weight = (names.axes.of(each) for each in _operands(call))
        y = names.axes.of(call.node)
        return f"{names.of('Y', y)} += {names.of('X', x)} * {names.of('W', (x[1], weight[1]))}"

    def pack(self, call: Call, packer: Packer) -> Any:
        bias, (x, weight) = call.get(0, "input"), _operands(call)
        if packer.rest(packer.axes.of(x)) != [1] or len(packer.axes.of(bias)) > 1:
            raise CannotPack("addmm is not a product of tokens with a matrix")
        return packer.emit(call.node, packer.plain(bias), packer.packed(x), packer.plain(weight), **call.node.kwargs)


def _operands(call: Call) -> tuple[Any, Any]:
    return call.get(1, "mat1"), call.get(2, "mat2")


def _factors(call: Call) -> tuple[Any, Any]:
    return call.node.args[0], call.get(1, "other", call.node.kwargs.get("mat2"))


class Embedding:
    """embedding(ids, weight)."""

    def label(self, call: Call, axes: Axes) -> Label:
        return (*axes.labels[call.operands[0]], axes.labels[call.operands[1]][1])

    def expression(self, call: Call, names: Names) -> str | None:
        return None

    def pack(self, call: Call, packer: Packer) -> Any:
        (ids, weight), others = call.operands[:2], call.node.args[2:]
        if call.get(3, "max_norm") is not None or call.get(5, "scale_grad_by_freq", False):
            raise CannotPack("embedding counts or renews the rows that it reads, those of the padding too")
        return packer.emit(call.node, packer.packed(ids), packer.plain(weight), *others, **call.node.kwargs)
