"""The rule table and the walk over a captured graph that applies it."""

from __future__ import annotations

import bisect
import itertools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from ..captured import Capture
from ..labels import QUIET, Axis, Fixed, Free, Labels

Axes = list[Axis]
Result = Axes | tuple[Axes, ...]
Rule = Callable[["Flow", fx.Node, dict[str, Any]], Result]

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule under ATen operator names (without overload, without the "_copy" of functionalised views)."""

    def register(function: Rule) -> Rule:
        for name in names:
            if name in RULES:
                raise RuntimeError(f"operator {name} already has a rule")
            RULES[name] = function
        return function

    return register


def op_name(node: fx.Node) -> str:
    """`aten.transpose_copy.int` -> "transpose"; operators of other namespaces keep theirs ("mylib::op")."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        name = target._schema.name
        if not name.startswith("aten::"):
            return name
        name = name.removeprefix("aten::")
        return name.removesuffix("_copy") if name != "_to_copy" else name
    return getattr(target, "__name__", str(target))


def arguments(node: fx.Node) -> dict[str, Any]:
    """The call's arguments by schema name, defaults filled in."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return {str(i): value for i, value in enumerate(node.args)}
    schema = node.target._schema.arguments
    named = {item.name: item.default_value for item in schema if item.has_default_value()}
    named.update({item.name: value for item, value in zip(schema, node.args, strict=False)})
    named.update(node.kwargs)
    return named


def factors(args: dict[str, Any]) -> tuple[fx.Node, fx.Node]:
    """The two factors of addmm or baddbmm."""
    return (args["mat1"], args["mat2"]) if "mat1" in args else (args["batch1"], args["batch2"])


def dims_of(args: dict[str, Any], rank: int) -> list[int]:
    """The axes that a reduction names, counted from the front; all of them if it names none."""
    dims = args.get("dim", args.get("dims"))
    named = [dims] if isinstance(dims, int) else dims
    return [int(dim) % rank for dim in named or range(rank)]


def shape_of(node: fx.Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    return tuple(int(size) for size in value.shape) if isinstance(value, Tensor) else ()


def module_path(node: fx.Node) -> str:
    """The innermost module whose forward made this node ("" = the model itself, or unknown)."""
    if "nn_module_stack" not in node.meta:
        return str((node.meta.get("custom") or {}).get("module", ""))
    path = ""
    for entry in node.meta["nn_module_stack"].values():
        path = entry[0]
    return path


class Flow:
    """Labels of every axis of every tensor of one captured graph."""

    def __init__(self, capture: Capture, seeds: dict[tuple[str, int], np.ndarray] | None = None) -> None:
        self.capture = capture
        self.labels = Labels()
        self.axes: dict[fx.Node, Result] = {}
        self.state: dict[tuple[str, int], np.ndarray] = {}  # labels of each parameter or buffer axis
        self.roles: dict[tuple[str, int], str] = {}
        self.only_state: set[fx.Node] = set()  # nodes computed from parameters and buffers alone
        self.sums: list[tuple[str, np.ndarray]] = []  # module whose code adds two activations, and their labels
        self.composite = False  # an operator of PyTorch without a rule, which the other route may take apart
        self.slices: dict[tuple[fx.Node, int], dict[tuple[int, int], np.ndarray]] = {}
        self._starts: list[int] = []  # first label of each parameter axis, increasing, and whose it is
        self._keys: list[tuple[str, int]] = []
        self._seeds = seeds
        most = max((int(values.max(initial=0)) for values in (seeds or {}).values()), default=0)
        self._seeded = np.full(most + 1, -1, dtype=np.int64)  # a label of every seed seen

    def _join_seeds(self, seeds: np.ndarray, labels: np.ndarray) -> None:
        """Positions that share a seed are one channel from the start, before a view asks which of its factors go."""
        unseen = self._seeded[seeds] < 0
        self._seeded[seeds[unseen]] = labels[unseen]
        self.labels.union(self._seeded[seeds], labels)

    def of(self, node: fx.Node) -> Axes:
        axes = self.axes[node]
        assert isinstance(axes, list), node
        return [self.labels.settled(axis) for axis in axes]

    def where(self, node: fx.Node) -> str:
        path = module_path(node)
        return f"{op_name(node)} in {path}" if path else op_name(node)

    def role(self, axis: Axis, role: str) -> None:
        """Say what a parameter axis is for; the first rule to use it decides (a tied weight may serve twice)."""
        if isinstance(axis, np.ndarray) and len(axis):
            place = bisect.bisect_right(self._starts, int(axis[0])) - 1
            if place >= 0 and int(axis[0]) < self._starts[place] + len(self.state[self._keys[place]]):
                self.roles.setdefault(self._keys[place], role)

    def barrier(self, node: fx.Node, why: str = "") -> Result:
        """Freeze every axis of every operand: the operator may mix positions in a way no rule describes."""
        self.composite |= not why and str(node.target).startswith("aten.")
        reason = why or f"{self.where(node)} has no channel rule"
        for operand in node.all_input_nodes:
            for axis in each_axis(self.axes[operand]):
                self.labels.fix(axis, reason)
        return fixed_like(node, reason)

    def add_state(self, node: fx.Node, name: str) -> None:
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or not value.is_floating_point():
            self.axes[node] = fixed_like(node)  # counters and index tables hold positions, not channels
            return
        axes: Axes = []
        for axis, size in enumerate(value.shape):
            key = (name, axis)
            if key not in self.state:
                seeds = None if self._seeds is None else self._seeds.get(key)
                if seeds is not None and len(seeds) != int(size):
                    raise ValueError(f"{name} axis {axis} has {int(size)} positions, {len(seeds)} were kept")
                self.state[key] = self.labels.fresh(int(size))
                if seeds is not None:
                    self._join_seeds(seeds, self.state[key])
                if size > 0:
                    self._starts.append(int(self.state[key][0]))
                    self._keys.append(key)
            axes.append(self.state[key] if size > 1 else QUIET)
        self.axes[node] = axes
        self.only_state.add(node)


def each_axis(axes: Result) -> list[Axis]:
    """The axes of all outputs."""
    return [axis for group in axes for axis in group] if isinstance(axes, tuple) else axes


def fixed_like(node: fx.Node, reason: str = "") -> Result:
    """Fixed axes for the output(s) of `node`."""
    value = node.meta.get("val")
    if isinstance(value, (tuple, list)):
        return tuple([Fixed(reason)] * item.dim() if isinstance(item, Tensor) else [] for item in value)
    return [Fixed(reason)] * value.dim() if isinstance(value, Tensor) else []


def _checked(flow: Flow, node: fx.Node, result: Result) -> Result:
    """Axes of size 1 never shrink; every labelled axis must have one label per position."""
    value = node.meta.get("val")
    if isinstance(result, tuple):
        items = list(value) if isinstance(value, (tuple, list)) else [value]
        pairs = zip(result, [*items, *[None] * (len(result) - len(items))], strict=True)
        return tuple(_checked_one(node, axes, item) for axes, item in pairs)
    return _checked_one(node, result, value)


def _checked_one(node: fx.Node, axes: Axes, value: Any) -> Axes:
    if not isinstance(value, Tensor):
        return []
    assert len(axes) == value.dim(), f"rule of {node.target} gave {len(axes)} axes for shape {tuple(value.shape)}"
    out: Axes = []
    for axis, size in zip(axes, value.shape, strict=True):
        assert not isinstance(axis, np.ndarray) or len(axis) == int(size), f"rule of {node.target}: {len(axis)}!={size}"
        out.append(QUIET if int(size) == 1 and not isinstance(axis, Fixed) else axis)
    return out


def propagate(capture: Capture, seeds: dict[tuple[str, int], np.ndarray] | None = None) -> Flow:
    """Label every axis of the graph. `seeds` presets parameter labels (equal seeds = the same channel)."""
    flow = Flow(capture, seeds)
    for node in capture.graph.nodes:
        if node in capture.tensors:
            flow.add_state(node, capture.tensors[node])
        elif node in capture.constants:
            flow.axes[node] = [Fixed("a constant of the forward pass")] * capture.constants[node].dim()
        elif node.op in ("placeholder", "get_attr"):
            value = node.meta.get("val")
            count = value.dim() if isinstance(value, Tensor) else 0
            flow.axes[node] = [Fixed(f"graph input {node.name}")] * count
        elif node.op == "call_function":
            flow.axes[node] = _checked(flow, node, _apply(flow, node))
            if node.all_input_nodes and all(item in flow.only_state for item in node.all_input_nodes):
                flow.only_state.add(node)
    for node, name in capture.writes:
        for i, axis in enumerate(flow.of(node)):
            if (name, i) in flow.state:
                flow.labels.join(axis, flow.state[name, i], f"written to {name}")
    for node in capture.outputs:
        for axis in each_axis(flow.axes[node]):
            flow.labels.fix(axis, "graph output")
    _tie_partitions(flow)
    flow.labels.settle()
    return flow


def _apply(flow: Flow, node: fx.Node) -> Result:
    if node.target is operator.getitem:
        axes = flow.axes[node.args[0]]  # type: ignore[index]
        index = node.args[1]
        assert isinstance(axes, tuple) and isinstance(index, int), node
        return axes[index]
    name = op_name(node)
    operands = [flow.axes[item] for item in node.all_input_nodes]
    found = RULES.get(name)
    if found is None and is_pointwise(node):
        found = RULES["pointwise"]
    if found is None:
        axes = [axis for result in operands for axis in each_axis(result)]
        if all(isinstance(axis, (Fixed, Free)) for axis in axes):
            return fixed_like(node, next((axis.reason for axis in axes if isinstance(axis, Fixed) and axis.reason), ""))
        return flow.barrier(node)
    return found(flow, node, arguments(node))


# Element-wise operators that PyTorch does not tag as such.
_ELEMENTWISE = {"hardswish", "log_sigmoid", "relu6", "rrelu", "float_power", "_prelu_kernel", "masked_fill"}


def is_pointwise(node: fx.Node) -> bool:
    """PyTorch's own operator tag, plus a few names. Nothing else is taken for element-wise."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    return torch.Tag.pointwise in target.tags or op_name(node) in _ELEMENTWISE


def has_rule(node: fx.Node) -> bool:
    """Whether the operator is described: a rule of its own, element-wise, or not on tensors at all."""
    values = [item.meta.get("val") for item in node.all_input_nodes]
    floats = any(isinstance(value, Tensor) and value.is_floating_point() for value in values)
    return op_name(node) in RULES or is_pointwise(node) or not floats


def _tie_partitions(flow: Flow) -> None:
    """x[:, :half] and x[:, half:] recompute `half` after a removal: equal slices must lose the same positions."""
    for (node, axis), parts in flow.slices.items():
        spans = sorted(parts)
        equal = len({stop - start for start, stop in spans}) == 1
        adjacent = all(left[1] == right[0] for left, right in itertools.pairwise(spans))
        whole = spans[0][0] == 0 and spans[-1][1] == shape_of(node)[axis]
        if len(spans) > 1 and equal and adjacent and whole:
            for span in spans[1:]:
                flow.labels.union(parts[spans[0]], parts[span])
