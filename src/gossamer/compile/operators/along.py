"""Functions along some dimensions, which keep them or reduce them: softmax, norms, sums."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from gossamer.compile.labels import Axes, Label, same, shape_of
from gossamer.compile.operators.call import Call
from gossamer.compile.operators.operator import CannotPack, Names, Packer, dimension, dimensions, pack_along

SOFTMAX = frozenset({"softmax", "log_softmax", "softmin", "cumsum", "cumprod", "normalize"})
NORMS = frozenset({"layer_norm", "rms_norm"})
REDUCTIONS = frozenset({"sum", "mean", "amax", "amin", "var", "std", "prod", "norm", "logsumexp", "all", "any"})


class Along:
    """`dim` is kept: softmax, cumsum."""

    def label(self, call: Call, axes: Axes) -> Label:
        return axes.labels[call.operands[0]]

    def dim(self, call: Call) -> int:
        at = 2 if call.name == "normalize" else 1
        dim = call.get(at, "dim", 1 if call.name == "normalize" else None)
        if not isinstance(dim, int):
            raise CannotPack(f"{call.name} runs along a dimension that is not a number")
        return dimension(dim, call.node.meta["example_value"].dim())

    def expression(self, call: Call, names: Names) -> str | None:
        label = names.axes.of(call.node)
        along = names.along(label[self.dim(call)])
        function = {"softmax": "softmax", "cumsum": "cumsum"}.get(call.name)
        if function is None or not along:
            return None
        return f"{names.of('Y', label)} {function}({along})= {names.of('X', names.axes.of(call.operands[0]))}"

    def pack(self, call: Call, packer: Packer) -> Any:
        return pack_along(call, packer, 2 if call.name == "normalize" else 1, self.dim(call))


class Norm:
    """Over the last dimensions: layer_norm, rms_norm."""

    def label(self, call: Call, axes: Axes) -> Label:
        return axes.labels[call.operands[0]]

    def over(self, call: Call) -> int:
        return len(call.get(1, "normalized_shape"))

    def expression(self, call: Call, names: Names) -> str | None:
        label = names.axes.of(call.node)
        along = names.along(label[-1])
        if self.over(call) != 1 or not along:
            return None
        return f"{names.of('Y', label)} layernorm({along})= {names.of('X', names.axes.of(call.operands[0]))}"

    def pack(self, call: Call, packer: Packer) -> Any:
        label = packer.axes.of(call.node)
        rest, last = packer.rest(label), self.over(call)
        if any(at not in rest for at in range(len(label) - last, len(label))):
            raise CannotPack(f"{call.name} runs over the tokens")
        args = list(call.node.args)
        args[0] = packer.packed(call.operands[0])
        args[2:4] = [packer.plain(each) for each in args[2:4]]
        kwargs = {k: packer.plain(v) if k in ("weight", "bias") else v for k, v in call.node.kwargs.items()}
        return packer.emit(call.node, *args, **kwargs)


class Reduction:
    """`dim` goes away: sum, mean."""

    def dims(self, call: Call) -> list[int]:
        rank = call.operands[0].meta["example_value"].dim()
        at = 2 if call.name == "norm" else 1
        return dimensions(call.get(at, "dim", call.node.kwargs.get("axis")), rank)

    def label(self, call: Call, axes: Axes) -> Label:
        given, shape = axes.labels[call.operands[0]], shape_of(call.node)
        assert shape is not None
        dims = self.dims(call)
        if len(shape) == len(given):
            return tuple(() if at in dims else dim for at, dim in enumerate(given))
        return tuple(dim for at, dim in enumerate(given) if at not in dims)

    def expression(self, call: Call, names: Names) -> str | None:
        reducer = {"sum": "+=", "mean": "mean=", "var": "var=", "amax": "max=", "amin": "min=", "prod": "*="}
        if call.name not in reducer:
            return None
        y, x = names.of("Y", names.axes.of(call.node)), names.of("X", names.axes.of(call.operands[0]))
        return f"{y} {reducer[call.name]} {x}"

    def pack(self, call: Call, packer: Packer) -> Any:
        label, dims = packer.axes.of(call.operands[0]), self.dims(call)
        rest = packer.rest(label)
        if any(at not in rest for at in dims):
            raise CannotPack(f"{call.name} runs over the tokens")
        args, kwargs = list(call.node.args), dict(call.node.kwargs)
        args[0] = packer.packed(call.operands[0])
        at = 2 if call.name == "norm" else 1
        kwargs.pop("axis", None)
        new: Any = [rest.index(dim) + 1 for dim in dims]
        if call.name == "prod":  # of all reductions the one that takes no list
            (new,) = new
        if at < len(args):
            args[at] = new
        else:
            kwargs["dim"] = new
        return packer.emit(call.node, *args, **kwargs)


class Selection:
    """The largest, or all in order, along one dimension: topk, sort; values and where they were."""

    def dim(self, call: Call) -> int:
        at = {"topk": 2}.get(call.name, 1)
        return dimension(call.get(at, "dim", -1), call.operands[0].meta["example_value"].dim())

    def label(self, call: Call, axes: Axes) -> Any:
        label, dim = axes.labels[call.operands[0]], self.dim(call)
        values = call.node.meta["example_value"][0]
        out = (*label[:dim], axes.fresh(values.shape[dim]), *label[dim + 1 :])
        return (out, out)

    def expression(self, call: Call, names: Names) -> str | None:
        return None

    def pack(self, call: Call, packer: Packer) -> Any:
        return pack_along(call, packer, {"topk": 2}.get(call.name, 1), self.dim(call))


class Picking:
    """Elements by numbers along one dimension: gather(x, dim, index), scatter(x, dim, index, src)."""

    def dim(self, call: Call) -> int:
        dim = call.get(1, "dim")
        if not isinstance(dim, int) or call.node.kwargs or len(call.node.args) > 4:
            raise CannotPack(f"{call.name} is called in a way that is not known")
        return dimension(dim, call.operands[0].meta["example_value"].dim())

    def label(self, call: Call, axes: Axes) -> Label:
        whole = call.operands[0]
        for index in call.operands[1:]:
            of_whole, of_index = shape_of(whole), shape_of(index)
            assert of_whole is not None and of_index is not None
            for at, (one, two) in enumerate(zip(of_whole, of_index, strict=True)):
                if at != self.dim(call) and same(one, two):  # an index may be shorter
                    axes.unify(axes.labels[whole][at], axes.labels[index][at])
        return axes.labels[call.operands[1] if call.name == "gather" else whole]

    def expression(self, call: Call, names: Names) -> str | None:
        return None

    def pack(self, call: Call, packer: Packer) -> Any:
        dim, labels = self.dim(call), [packer.axes.of(each) for each in call.operands]
        if any(packer.place(label) != packer.place(labels[0]) for label in labels):
            raise CannotPack(f"{call.name} of tokens that are not all there")
        rest = packer.rest(labels[0])
        if dim not in rest:
            raise CannotPack(f"{call.name} runs along the tokens")
        x, _, index, *src = call.node.args
        if not isinstance(x, Node) or not isinstance(index, Node):
            raise CannotPack(f"{call.name} is called in a way that is not known")
        more = [packer.packed(each) if isinstance(each, Node) else each for each in src]
        return packer.emit(call.node, packer.packed(x), rest.index(dim) + 1, packer.packed(index), *more)
