"""Matrix products: the contracted axes of both operands join, the others pass to the output."""

from __future__ import annotations

from typing import Any

from torch import fx

from ..labels import QUIET, Axis, Factor
from .table import Axes, Flow, Result, factors, rule, shape_of


def contract(flow: Flow, left: Axis, right: Axis, where: str) -> None:
    """Join two contracted axes. A factor of a split axis keeps its size: it is a head size, and sets the scale."""
    for axis in (flow.labels.settled(left), flow.labels.settled(right)):
        if isinstance(axis, Factor):
            flow.labels.fix(axis, f"head size contracted by {where}")
    left, right = flow.labels.settled(left), flow.labels.settled(right)
    flow.labels.join(left, right, f"other operand of {where} cannot shrink")


@rule("linear")
def linear(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Axes:
    x, w = flow.of(args["input"]), flow.of(args["weight"])
    where = flow.where(node)
    flow.role(w[0], "writer")
    flow.role(w[-1], "reader")
    flow.labels.join(x[-1], w[-1], f"input of {where} cannot shrink")
    out: Axis = w[0] if len(w) == 2 else QUIET
    if args.get("bias") is not None:
        flow.role(flow.of(args["bias"])[0], "writer")
        out = flow.labels.join(out, flow.of(args["bias"])[0], f"bias of {where}")
    return [*x[:-1], out] if len(w) == 2 else x[:-1]


def _product(flow: Flow, node: fx.Node, left: fx.Node, right: fx.Node) -> Axes:
    """torch.matmul's shape rules, broadcast batch axes included."""
    a, b = flow.of(left), flow.of(right)
    where = flow.where(node)
    contracted_b = -2 if len(b) > 1 else -1
    if right in flow.only_state:
        flow.role(b[contracted_b], "reader")
        flow.role(b[-1], "writer")
    if left in flow.only_state:
        flow.role(a[-1], "reader")
        flow.role(a[-2] if len(a) > 1 else a[-1], "writer")
    if right in flow.only_state or left in flow.only_state:
        flow.labels.join(a[-1], b[contracted_b], f"operand of {where} cannot shrink")
    else:
        contract(flow, a[-1], b[contracted_b], where)
    a, b = flow.of(left), flow.of(right)
    batch = broadcast(flow, a[:-2], b[:-2], shape_of(left)[:-2], shape_of(right)[:-2], where)
    for axis in batch:
        flow.labels.mark("heads", axis)
    return [*batch, *(a[-2:-1] if len(a) > 1 else []), *(b[-1:] if len(b) > 1 else [])]


def broadcast(flow: Flow, a: Axes, b: Axes, a_shape: tuple[int, ...], b_shape: tuple[int, ...], where: str) -> Axes:
    """Right-aligned axes of a broadcast pair: an axis of size 1 follows the other operand."""
    rank = max(len(a), len(b))
    a, a_shape = [QUIET] * (rank - len(a)) + a, (1,) * (rank - len(a)) + a_shape
    b, b_shape = [QUIET] * (rank - len(b)) + b, (1,) * (rank - len(b)) + b_shape
    out: Axes = []
    for left, right, n, m in zip(a, b, a_shape, b_shape, strict=True):
        if n == 1 or m == 1:
            out.append(right if n == 1 else left)
        else:
            out.append(flow.labels.join(left, right, f"other operand of {where} cannot shrink"))
    return out


@rule("matmul", "bmm", "mm", "mv", "dot")
def matmul(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Axes:
    return _product(flow, node, node.all_input_nodes[0], node.all_input_nodes[-1])  # one node where it is x @ x


@rule("addmm", "baddbmm")
def addmm(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Axes:
    product = _product(flow, node, *factors(args))
    extra = args["self"]
    shape = shape_of(node)
    own = flow.of(extra)
    if extra in flow.only_state and own:
        flow.role(own[-1], "writer")
    return broadcast(flow, product, own, shape, shape_of(extra), flow.where(node))


@rule("einsum")
def einsum(flow: Flow, node: fx.Node, args: dict[str, Any]) -> Result:
    equation, operands = args["equation"].replace(" ", ""), args["tensors"]
    if "." in equation or "->" not in equation:
        return flow.barrier(node)
    left, out = equation.split("->")
    terms = left.split(",")
    if any(len(set(term)) != len(term) for term in terms):
        return flow.barrier(node, f"{flow.where(node)} takes a diagonal")
    where = flow.where(node)
    for term, operand in zip(terms, operands, strict=True):
        if operand in flow.only_state:
            for letter, own in zip(term, flow.of(operand), strict=True):
                flow.role(own, "writer" if letter in out else "reader")
    weighted = any(operand in flow.only_state for operand in operands)
    axes: dict[str, Axis] = {}
    for letter in dict.fromkeys("".join(terms)):
        found = [(op, term.index(letter)) for term, op in zip(terms, operands, strict=True) if letter in term]
        sized = [(op, i) for op, i in found if shape_of(op)[i] != 1]
        if letter not in out and (len(found) == 1 or len(sized) == 1):
            for op, i in sized:
                flow.labels.fix(flow.of(op)[i], f"summed by {where}")
            continue
        axis: Axis = QUIET
        for place, (op, i) in enumerate(sized):
            if letter not in out and not weighted:
                contract(flow, flow.of(sized[0][0])[sized[0][1]], flow.of(op)[i], where)
            axis = flow.of(op)[i] if place == 0 else flow.labels.join(axis, flow.of(op)[i], f"operand of {where}")
        axes[letter] = axis
    for letter in out:
        if all(letter in term for term in terms) and len(terms) > 1 and not weighted:
            flow.labels.mark("heads", axes[letter])
    return [axes[letter] for letter in out]
