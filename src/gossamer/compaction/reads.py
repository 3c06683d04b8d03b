"""Who reads whom: the backward pass of liveness over a captured graph."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from .constants import CONVOLUTIONS, conv_terms, einsum_terms, is_transposed
from .labels import QUIET, Axis
from .rules.table import RULES, Flow, arguments, dims_of, each_axis, factors, is_pointwise, op_name, shape_of
from .values import COPIES, MOVES, TRAILING, Interpreter, Value, aligned, call_with, grown, reaches

# Moves under which every position of every operand is read once all of the result is.
_BIJECTIONS = MOVES - {
    "split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk", "slice", "select", "unbind", "index_select",
    "narrow", "constant_pad_nd", "pad", "tensor_split", "unsafe_split_with_sizes",
}  # fmt: skip
_PRODUCTS = {"matmul", "bmm", "mm", "mv", "dot", "addmm", "baddbmm"}
_SUMS = {"linear", "einsum", *_PRODUCTS, *CONVOLUTIONS}
_NORMS = {
    "batch_norm", "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
    "instance_norm", "group_norm", "native_group_norm", "layer_norm", "native_layer_norm", "rms_norm",
}  # fmt: skip
_REDUCTIONS = {"sum", "mean", "amax", "amin", "var", "std"}


class Reads:
    """Backward pass: which positions of every activation reach an output, and which labels are summed on the way."""

    def __init__(self, flow: Flow, run: Interpreter) -> None:
        self.flow = flow
        self.run = run
        self.demand: dict[fx.Node, Any] = {}
        self.alive: list[np.ndarray] = []  # roots of channels some reader needs
        self.varying: list[np.ndarray] = []  # ... needs and whose activation is not a constant
        self.constant: dict[int, float] = {}
        self.terms: dict[fx.Node, tuple[Tensor, Value]] = {}
        for node in (*flow.capture.outputs, *(node for node, _ in flow.capture.writes)):
            self._ask(node, torch.ones((1,) * len(shape_of(node)), dtype=torch.bool, device="cpu"))
        with torch.no_grad():
            for node in reversed(flow.capture.calls):
                if node in self.demand:
                    self._visit(node, self.demand[node])

    def _ask(self, node: fx.Node, demand: Tensor) -> None:
        """Add to what is read of `node`; `demand` broadcasts to its shape."""
        demand = aligned(demand, len(shape_of(node)))
        self.demand[node] = demand if node not in self.demand else self.demand[node] | demand

    def _ask_all(self, node: fx.Node) -> None:
        for item in node.all_input_nodes:
            if item not in self.flow.only_state:
                self._ask(item, torch.ones((1,) * len(shape_of(item)), dtype=torch.bool, device="cpu"))

    def _visit(self, node: fx.Node, demand: Any) -> None:
        if node.target is operator.getitem:
            parts = self.demand.setdefault(node.args[0], {})  # type: ignore[arg-type]
            if isinstance(parts, dict):
                parts[node.args[1]] = demand
            return
        name = op_name(node)
        several = isinstance(demand, dict)
        if name == "linear" and self._is_plain(node):
            self._linear(node, demand)
        elif name in CONVOLUTIONS and not several:
            self._conv(node, demand)
        elif name in _PRODUCTS and len(node.all_input_nodes) >= 2:
            self._product(node, demand)
        elif name == "einsum" and einsum_terms(arguments(node)["equation"]) is not None:
            self._einsum(node, demand)
        elif (name in COPIES or name == "prelu" or is_pointwise(node)) and not several:
            self._pointwise(node, demand, name)
        elif name in MOVES:
            self._moved(node, demand, name)
        elif several and 0 in demand and name in _NORMS:
            self._same(node, demand[0])
        elif name in _NORMS and not several:
            self._same(node, demand)
        elif name in TRAILING or name in _REDUCTIONS:
            self._pooled(node, demand[0] if several and 0 in demand else demand)
        else:
            if name not in RULES or name in _SUMS:
                self._needed_whole(node)
            self._ask_all(node)

    # ---- readers: operators that sum over channels ------------------------------------------------------------

    def _read(self, summed: list[Axis], axis: int, needed: Tensor, value: Value) -> None:
        """Positions with a term that counts keep their channels alive.

        `summed` = the summed axis as each operand has it (a filled constant has no labels of its own); `axis` = its
        place in `needed` and `value`.
        """
        labels = next((item for item in summed if isinstance(item, np.ndarray)), None)
        if labels is None:
            return
        others = tuple(i for i in range(needed.dim()) if i != axis % needed.dim())
        flat = (needed.amax(others) if others else needed).expand(len(labels)).numpy()
        roots = self.flow.labels.find(labels)
        self.alive.append(np.unique(roots[flat]))
        constant = value.known.expand(torch.broadcast_shapes(value.known.shape, value.value.shape))
        fixed = (constant.amin(others) if others else constant).expand(len(labels)).numpy()
        self.varying.append(np.unique(roots[flat & ~fixed]))
        if (flat & fixed).any():
            first = value.value.amax(others) if others else value.value
            for root, number in zip(roots[flat & fixed], first.expand(len(labels)).numpy()[flat & fixed], strict=True):
                self.constant.setdefault(int(root), float(number))

    def _is_plain(self, node: fx.Node) -> bool:
        args = arguments(node)
        return len(shape_of(args["weight"])) == 2 and len(shape_of(args["input"])) > 0

    def _linear(self, node: fx.Node, demand: Tensor) -> None:
        args = arguments(node)
        w = self.run.of(args["weight"])
        self._contract(node, args["input"], args["weight"], demand, Value(w.value.mT, w.known.mT), transposed=True)
        if args.get("bias") is not None and args["bias"] not in self.flow.only_state:
            self._ask(args["bias"], torch.ones(1, dtype=torch.bool, device="cpu"))

    def _product(self, node: fx.Node, demand: Tensor) -> None:
        args = arguments(node)
        left, right = node.all_input_nodes[-2:]
        if op_name(node) in ("addmm", "baddbmm"):
            left, right = factors(args)
            if args["self"] not in self.flow.only_state:
                self._ask(args["self"], torch.ones((1,) * len(shape_of(args["self"])), dtype=torch.bool, device="cpu"))
        self._contract(node, left, right, demand, self.run.of(right), transposed=False)

    def _contract(
        self, node: fx.Node, left: fx.Node, right: fx.Node, demand: Tensor, b: Value, *, transposed: bool
    ) -> None:
        """out = a @ b: a[.., m, k] is read where some demanded out[.., m, n] has b[.., k, n] that may be nonzero.

        A vector is a matrix of one row on the left, of one column on the right.
        """
        own, inner = self.run.of(left), shape_of(left)[-1]
        row, column = len(shape_of(left)) == 1, len(shape_of(right)) == 1
        a_zero, b_maybe = (own.zero[None] if row else own.zero), (b.maybe[:, None] if column else b.maybe)
        demand = demand.reshape(shape_like(demand, shape_of(node), row, column))
        rows = 1 if row else shape_of(left)[-2]
        columns = 1 if column else shape_of(right)[-2 if transposed else -1]
        wanted = grown(demand, -1, columns)
        reach = reaches(wanted, grown(grown(b_maybe, -1, columns), -2, inner).mT)  # [.., m, k]
        rank = len(shape_of(left))
        if left not in self.flow.only_state:
            self._ask(left, _fold(reach, shape_of(left)))
        needed = _fold(reach & ~grown(a_zero, -1, inner), shape_of(left))
        right_axis = 0 if column else len(shape_of(right)) - (1 if transposed else 2)
        summed = [self.flow.of(left)[rank - 1], self.flow.of(right)[right_axis]]
        self._read(summed, rank - 1, needed, own)
        self.terms[node] = (needed, own)
        if right not in self.flow.only_state:
            reach = reaches(grown(grown(~a_zero, -2, rows), -1, inner).mT, grown(wanted, -2, rows))  # [.., k, n]
            reach = reach.squeeze(-1) if column else reach.mT if transposed else reach
            reach = _fold(reach, shape_of(right))
            self._ask(right, reach)
            other = self.run.of(right)
            self._read(summed[::-1], right_axis, reach & ~other.zero, other)

    def _conv(self, node: fx.Node, demand: Tensor) -> None:
        args = arguments(node)
        source, weight = args["input"], self.run.of(args["weight"])
        space = len(shape_of(args["weight"])) - 2
        channel = len(shape_of(source)) - space - 1
        out_channel = demand.dim() - space - 1
        others = tuple(i for i in range(demand.dim()) if i != out_channel)
        wanted = demand.amax(others).expand(shape_of(node)[out_channel])
        taps, groups = conv_terms((~weight.zero).expand(shape_of(args["weight"])), args, is_transposed(node, args))
        terms = torch.einsum("go,goi->gi", wanted.float().reshape(groups, -1), taps.any(-1).float()).reshape(-1) > 0
        reach = terms.reshape([-1 if i == channel else 1 for i in range(len(shape_of(source)))])
        self._ask(source, reach)
        a = self.run.of(source)
        needed = reach & ~a.zero
        columns = self.flow.of(args["weight"])[0 if is_transposed(node, args) or groups > 1 else 1]
        if groups > 1:
            width = shape_of(source)[channel] // groups
            columns = np.repeat(columns.reshape(groups, -1)[:, 0], width) if isinstance(columns, np.ndarray) else QUIET
        self._read([self.flow.of(source)[channel], columns], channel, needed, a)
        self.terms[node] = (needed, a)
        if args["weight"] not in self.flow.only_state:
            self._ask(args["weight"], torch.ones((1,) * len(shape_of(args["weight"])), dtype=torch.bool, device="cpu"))

    def _einsum(self, node: fx.Node, demand: Tensor) -> None:
        args = arguments(node)
        terms = einsum_terms(args["equation"])
        assert terms is not None
        left, right, out = terms
        a, b = args["tensors"]
        for item, own, other, others in ((a, left, b, right), (b, right, a, left)):
            maybe = (~self.run.of(other).zero).float()
            seen = "".join(letter for letter in own if letter in out or letter in others)
            reach = torch.einsum(f"{out},{others}->{seen}", demand.float(), maybe) > 0
            reach = reach.reshape([reach.shape[seen.index(letter)] if letter in seen else 1 for letter in own])
            value = self.run.of(item)
            for axis, letter in enumerate(own):
                if letter not in out:
                    self._read([self.flow.of(item)[axis]], axis, reach & ~value.zero, value)
            if item not in self.flow.only_state:
                self._ask(item, reach)

    def _needed_whole(self, node: fx.Node) -> None:
        """An operator without a reading rule needs every channel of its operands."""
        for item in node.all_input_nodes:
            for axis in map(self.flow.labels.settled, each_axis(self.flow.axes[item])):
                if isinstance(axis, np.ndarray):
                    roots = np.unique(self.flow.labels.find(axis))
                    self.alive.append(roots)
                    self.varying.append(roots)

    # ---- operators that keep channels apart -------------------------------------------------------------------

    def _pointwise(self, node: fx.Node, demand: Tensor, name: str) -> None:
        operands = node.all_input_nodes
        for item in operands:
            if item in self.flow.only_state:
                continue
            wanted = demand
            if name == "mul" and len(operands) == 2:
                other = operands[1] if item is operands[0] else operands[0]
                wanted = demand & ~self.run.of(other).zero
            self._ask(item, _fold(wanted, shape_of(item)))

    def _same(self, node: fx.Node, demand: Tensor) -> None:
        """Normalisations read whole planes (batch), whole norm groups (group) or everything (layer)."""
        args, name = arguments(node), op_name(node)
        source, weight = args["input"], args.get("weight")
        if "layer" in name or "rms" in name:
            self._ask_all(node)
            return
        rank, channels = len(shape_of(source)), shape_of(source)[1]
        wanted = demand.amax(tuple(i for i in range(rank) if i != 1)).expand(channels)
        if weight is not None:
            wanted = wanted & ~self.run.of(weight).zero
        if "group" in name:
            groups = int(args["num_groups"] if "num_groups" in args else args["group"])
            wanted = wanted.reshape(groups, -1).amax(1, keepdim=True).expand(-1, channels // groups).reshape(-1)
        self._ask(source, wanted.reshape([channels if i == 1 else 1 for i in range(rank)]))

    def _pooled(self, node: fx.Node, demand: Any) -> None:
        source = node.all_input_nodes[0]
        if not isinstance(demand, Tensor):
            self._ask_all(node)
        elif op_name(node) in _REDUCTIONS:
            self._reduced(node, demand)
        else:
            count = TRAILING[op_name(node)]
            others = tuple(range(demand.dim() - count, demand.dim()))
            self._ask(source, demand.amax(others, keepdim=True))

    def _reduced(self, node: fx.Node, demand: Tensor) -> None:
        source, args = node.all_input_nodes[0], arguments(node)
        if not args.get("keepdim", False):
            for dim in sorted(dims_of(args, len(shape_of(source)))):
                demand = demand.unsqueeze(dim)
        self._ask(source, demand)

    def _moved(self, node: fx.Node, demand: Any, name: str) -> None:
        """Follow positions through views, slices and concatenations by moving their indices."""
        if name in _BIJECTIONS and isinstance(demand, Tensor) and bool(demand.all()):
            self._ask_all(node)
            return
        offset, bases = 0, {}
        for item in node.all_input_nodes:
            bases[item] = offset
            offset += int(np.prod(shape_of(item), dtype=np.int64))

        def indices(item: fx.Node) -> Tensor:
            count = int(np.prod(shape_of(item), dtype=np.int64))
            return torch.arange(bases[item] + 1, bases[item] + 1 + count, device="cpu").reshape(shape_of(item))

        if name in ("pad", "constant_pad_nd"):
            moved: Any = torch.nn.functional.pad(indices(node.all_input_nodes[0]), arguments(node)["pad"])
        else:
            moved = call_with(node, indices)
        read = torch.zeros(offset + 1, dtype=torch.bool, device="cpu")
        parts = demand.items() if isinstance(demand, dict) else [(None, demand)]
        for key, wanted in parts:
            target = moved if key is None else moved[key]
            read[target[wanted.expand(target.shape)]] = True
        for item in node.all_input_nodes:
            if item in self.flow.only_state:
                continue
            count = int(np.prod(shape_of(item), dtype=np.int64))
            self._ask(item, _narrow(read[bases[item] + 1 : bases[item] + 1 + count].reshape(shape_of(item))))


def shape_like(demand: Tensor, shape: tuple[int, ...], row: bool, column: bool) -> tuple[int, ...]:
    """The shape of a demand on a product with the axes back that a vector on the left or right has none of."""
    full = tuple(aligned(demand, len(shape)).shape)
    place = len(full) if column else len(full) - 1
    full = (*full[:place], 1, *full[place:]) if row else full
    return (*full, 1) if column else full


def _fold(demand: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A demand on a broadcast result, seen by an operand of `shape`."""
    while demand.dim() > len(shape):
        demand = demand.amax(0)
    lead = len(shape) - demand.dim()
    for axis in range(demand.dim()):
        if shape[lead + axis] == 1 and demand.shape[axis] > 1:
            demand = demand.amax(axis, keepdim=True)
    return demand


def _narrow(demand: Tensor) -> Tensor:
    """Axes along which the demand does not differ shrink to size 1."""
    for axis in range(demand.dim()):
        first = demand.narrow(axis, 0, 1)
        if demand.shape[axis] > 1 and bool((demand == first).all()):
            demand = first
    return demand
