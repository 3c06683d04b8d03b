"""Operators that move no numbers, or only lay them out anew: views, slices, concatenations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.fx import Node

from gossamer.compile.labels import Axes, Label, same, shape_of
from gossamer.compile.operators.call import Call
from gossamer.compile.operators.operator import CannotPack, Names, Packer, dimension, pack_along


class _View:
    def expression(self, call: Call, names: Names) -> str | None:
        return None


class Reshape(_View):
    """view, reshape, flatten, unflatten, squeeze, unsqueeze."""

    def label(self, call: Call, axes: Axes) -> Label:
        shape = shape_of(call.node)
        assert shape is not None
        return axes.reshaped(axes.labels[call.operands[0]], shape)

    def pack(self, call: Call, packer: Packer) -> Any:
        source, shape = call.operands[0], shape_of(call.node)
        assert shape is not None
        before, after = packer.axes.of(source), packer.axes.of(call.node)
        # Elements before, between and behind batch and sequence: their grouping may change, not their number.
        if not all(map(same, packer.around(before), packer.around(after))):
            raise CannotPack(f"{call.name} joins tokens with other dimensions")
        sizes = [shape[at] for at in packer.rest(after)]
        if not all(isinstance(size, int) for size in sizes):
            raise CannotPack(f"{call.name} to sizes that change")
        return packer.call("reshape", packer.packed(source), (-1, *sizes))


class Permute(_View):
    """transpose, permute, t, mT, movedim."""

    def order(self, call: Call) -> list[int]:
        rank = call.operands[0].meta["example_value"].dim()
        order = list(range(rank))
        if call.name == "permute":
            dims = call.get(1, "dims")
            given: Any = dims if isinstance(dims, (tuple, list)) else call.node.args[1:]
            return [dimension(at, rank) for at in given]
        if call.name == "transpose":
            a, b = dimension(call.get(1, "dim0"), rank), dimension(call.get(2, "dim1"), rank)
        else:
            a, b = rank - 2, rank - 1
        order[a], order[b] = order[b], order[a]
        return order

    def label(self, call: Call, axes: Axes) -> Label:
        label = axes.labels[call.operands[0]]
        return tuple(label[at] for at in self.order(call))

    def pack(self, call: Call, packer: Packer) -> Any:
        source, order = call.operands[0], self.order(call)
        rest = packer.rest(packer.axes.of(source))
        new = [0, *(rest.index(at) + 1 for at in order if at in rest)]
        packed = packer.packed(source)
        return packed if new == sorted(new) else packer.call("permute", packed, tuple(new))


class Expand(_View):
    """expand, repeat_interleave by views."""

    def label(self, call: Call, axes: Axes) -> Label:
        shape, label = shape_of(call.node), axes.labels[call.operands[0]]
        assert shape is not None
        label = ((),) * (len(shape) - len(label)) + label
        return tuple(dim or axes.fresh(size) for dim, size in zip(label, shape, strict=True))

    def pack(self, call: Call, packer: Packer) -> Any:
        source, shape, label = call.operands[0], shape_of(call.node), packer.axes.of(call.node)
        assert shape is not None
        if len(shape) != len(packer.axes.of(source)):
            raise CannotPack("expand adds dimensions before those of the tokens")
        sizes = [shape[at] for at in packer.rest(label)]
        if not all(isinstance(size, int) for size in sizes):
            raise CannotPack("expand to sizes that change")
        return packer.call("expand", packer.packed(source), (-1, *sizes))


class Pieces(_View):
    """chunk, split, unbind over one dimension."""

    def dim(self, call: Call) -> int:
        at = {"unbind": 1}.get(call.name, 2)
        return dimension(call.get(at, "dim", 0), call.operands[0].meta["example_value"].dim())

    def label(self, call: Call, axes: Axes) -> Any:
        label, dim = axes.labels[call.operands[0]], self.dim(call)
        pieces = call.node.meta["example_value"]
        if call.name == "unbind":
            return tuple(label[:dim] + label[dim + 1 :] for _ in pieces)
        return tuple((*label[:dim], axes.fresh(piece.shape[dim]), *label[dim + 1 :]) for piece in pieces)

    def pack(self, call: Call, packer: Packer) -> Any:
        return pack_along(call, packer, {"unbind": 1}.get(call.name, 2), self.dim(call))


class Join(_View):
    """cat over one dimension."""

    def dim(self, call: Call) -> int:
        return dimension(call.get(1, "dim", 0), call.node.meta["example_value"].dim())

    def label(self, call: Call, axes: Axes) -> Label:
        shape, dim = shape_of(call.node), self.dim(call)
        assert shape is not None
        whole = _filled(call)
        if len(whole) == 1:
            return axes.labels[whole[0]]
        first = axes.labels[whole[0]]
        for other in whole[1:]:
            for at, (a, b) in enumerate(zip(first, axes.labels[other], strict=True)):
                if at != dim:
                    axes.unify(a, b)
        return tuple(axes.fresh(size) if at == dim else first[at] for at, size in enumerate(shape))

    def pack(self, call: Call, packer: Packer) -> Any:
        whole, dim = _filled(call), self.dim(call)
        if len(whole) == 1:
            return packer.packed(whole[0])
        rest = packer.rest(packer.axes.of(call.node))
        if dim not in rest:
            raise CannotPack("cat along the tokens")
        return packer.emit(call.node, [packer.packed(each) for each in whole], dim=rest.index(dim) + 1)


def _filled(call: Call) -> list[Node]:
    """The operands that hold something: an empty cache holds nothing."""
    tensors: Sequence[Node] = call.get(0, "tensors")
    return [each for each in tensors if tuple(each.meta["example_value"].shape) != (0,)] or list(tensors)


class GetItem(_View):
    """x[index]: a piece of a tuple, or a slice of a tensor."""

    def index(self, call: Call) -> list[Any] | None:
        """One entry for each dimension and each new one, or None for an index by tensors."""
        index = call.node.args[1]
        entries = list(index) if isinstance(index, tuple) else [index]
        if any(
            not isinstance(entry, (int, slice, type(None), type(Ellipsis))) or isinstance(entry, bool)
            for entry in entries
        ):
            return None
        rank = call.operands[0].meta["example_value"].dim()
        missing = rank - sum(entry is not None and entry is not Ellipsis for entry in entries)
        if Ellipsis not in entries:
            entries.append(Ellipsis)
        at = entries.index(Ellipsis)
        # x[0:] is all of x too.
        entries = [slice(None) if entry in (slice(0, None), slice(0, None, 1)) else entry for entry in entries]
        return entries[:at] + [slice(None)] * missing + entries[at + 1 :]

    def label(self, call: Call, axes: Axes) -> Any:
        source: Any = call.node.args[0]
        if not call.operands:
            pieces, at = axes.labels.get(source), call.get(1, "index")
            return pieces[at] if isinstance(pieces, tuple) else None
        shape, index = shape_of(call.node), self.index(call)
        assert shape is not None
        if index is None:
            return axes.fresh_label(shape)
        out: list[tuple[int, ...]] = []
        at = 0
        for entry in index:
            if entry is None:
                out.append(())
                continue
            dim = axes.labels[source][at]
            at += 1
            if isinstance(entry, slice):
                out.append(dim if entry == slice(None) else axes.fresh(shape[len(out)]))
        return tuple(out)

    def pack(self, call: Call, packer: Packer) -> Any:
        source: Any = call.node.args[0]
        if not call.operands:
            return packer.emit(call.node, packer.packed(source), call.node.args[1])
        index = self.index(call)
        if index is None:
            raise CannotPack("a choice by tensors among the tokens")
        rest, at = packer.rest(packer.axes.of(source)), 0
        new: list[Any] = [slice(None)]
        for entry in index:
            if entry is None:
                new.append(None)
                continue
            if at in rest:
                new.append(entry)
            elif entry != slice(None):
                raise CannotPack("a slice of the tokens")
            at += 1
        return packer.emit(call.node, packer.packed(source), tuple(new))
