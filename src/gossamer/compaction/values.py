"""What every activation is known to be: abstract interpretation of a captured graph with the model's weights.

A `Value` says, per position, either the constant an activation has for every input, or that it varies:

    value [broadcast shape], known [broadcast shape]; an axis of size 1 stands for all its positions

Parameters are known, graph inputs vary. conv with an all-zero row gives its bias; BatchNorm in eval mode maps the
constant c to gamma (c - mean) / sqrt(var + eps) + beta; 0 times anything is 0 (activations are taken to be finite).
While training, BatchNorm uses batch statistics and dropout rescales, so only zeros that hold in both modes count.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from .captured import Capture
from .rules.reduction import SPATIAL
from .rules.table import arguments, dims_of, is_pointwise, op_name, shape_of

TRAILING = {name: count for count, names in SPATIAL.items() for name in names}
_EXACT_POOLS = ("max_pool", "adaptive", "nearest")
MOVES = {
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "permute", "transpose", "t", "unsqueeze", "squeeze",
    "expand", "cat", "stack", "split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk", "slice", "select",
    "unbind", "index_select", "repeat", "narrow", "constant_pad_nd", "pad", "pixel_shuffle", "pixel_unshuffle",
    "channel_shuffle", "native_channel_shuffle", "repeat_interleave", "flip", "roll", "expand_as", "broadcast_to",
    "swapaxes", "movedim", "tensor_split", "unsafe_split_with_sizes",
}  # fmt: skip
COPIES = {
    "dropout", "feature_dropout", "alpha_dropout", "detach", "alias", "contiguous", "lift_fresh", "_to_copy", "to",
    "type_as", "clone", "copy",
}  # fmt: skip


Handler = Callable[["Interpreter", fx.Node, dict[str, Any]], Any]
HANDLERS: dict[str, Handler] = {}


def constants_of(*names: str) -> Callable[[Handler], Handler]:
    """Register how an operator turns known operands into known results (None = nothing is known)."""

    def register(function: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names, function))
        return function

    return register


@dataclass(frozen=True)
class Value:
    """`value` where `known`; 0 where not. Both broadcast to the tensor's shape."""

    value: Tensor
    known: Tensor

    @classmethod
    def where(cls, known: Tensor, value: Tensor) -> Value:
        """`value` at the known positions; the two broadcast to one shape."""
        value, known = torch.broadcast_tensors(value, known)
        return cls(torch.where(known, value, torch.zeros_like(value)), known)

    @cached_property
    def zero(self) -> Tensor:
        return (self.value == 0) if bool(self.known.all()) else self.known & (self.value == 0)

    @cached_property
    def maybe(self) -> Tensor:
        """Positions that may be nonzero."""
        return ~self.zero

    @cached_property
    def anything(self) -> bool:
        return bool(self.known.any())


def varies(rank: int) -> Value:
    return Value(
        torch.zeros((1,) * rank, dtype=torch.float32, device="cpu"),
        torch.zeros((1,) * rank, dtype=torch.bool, device="cpu"),
    )


def constant(tensor: Tensor) -> Value:
    return Value(tensor.detach(), torch.ones((1,) * tensor.dim(), dtype=torch.bool, device=tensor.device))


def aligned(tensor: Tensor, rank: int) -> Tensor:
    """`tensor` with as many axes of size 1 before its own as make `rank`."""
    return tensor.reshape((1,) * (rank - tensor.dim()) + tuple(tensor.shape))


def grown(tensor: Tensor, axis: int, size: int) -> Tensor:
    """Axis `axis` expanded to `size` positions (it is 1 or `size` already)."""
    shape = list(tensor.shape)
    shape[axis] = size
    return tensor.expand(shape)


def reaches(a: Tensor, b: Tensor) -> Tensor:
    """Boolean matrix product, any over k of a[.., m, k] and b[.., k, n]; axes of size 1 stand for all positions."""
    inner = max(a.shape[-1], b.shape[-2])
    a, b = grown(a, -1, inner), grown(b, -2, inner)
    if a.numel() == inner and b.dim() == 2:
        rows = a.reshape(-1)
        chosen = b if bool(rows.all()) else b[rows]
        return chosen.any(0).reshape([1] * (a.dim() - 1) + [-1])
    if b.numel() == inner and a.dim() == 2:
        columns = b.reshape(-1)
        chosen = a if bool(columns.all()) else a[:, columns]
        return chosen.any(1).reshape([1] * (b.dim() - 2) + [-1, 1])
    return torch.matmul(a.float(), b.float()) > 0.5


def compressed(value: Value) -> Value:
    """Axes along which nothing differs shrink to size 1."""
    data, known = value.value, value.known.expand(value.value.shape)
    for axis in range(data.dim()):
        if data.shape[axis] > 1:
            first_data, first_known = data.narrow(axis, 0, 1), known.narrow(axis, 0, 1)
            if bool((known == first_known).all()) and bool(((data == first_data) | ~known).all()):
                data, known = first_data, first_known
    return Value.where(known, data)


class Interpreter:
    """Values of every node of `capture` given the tensors of `state`."""

    def __init__(self, capture: Capture, state: dict[str, Tensor], *, training: bool) -> None:
        self.capture = capture
        self.training = training
        self.values: dict[fx.Node, Any] = {}
        self.from_input: set[fx.Node] = set()
        with torch.no_grad():
            for node in capture.graph.nodes:
                if node in capture.tensors:
                    self.values[node] = constant(state[capture.tensors[node]])
                elif node in capture.constants:
                    self.values[node] = constant(capture.constants[node].cpu())
                elif node.op == "call_function":
                    result = self._run(node)
                    if any(item in self.from_input for item in node.all_input_nodes):
                        self.from_input.add(node)
                        result = self._surviving_training(result)
                    self.values[node] = result
                else:
                    self.from_input.add(node)
                    self.values[node] = varies(len(shape_of(node)))

    def of(self, node: fx.Node) -> Value:
        value = self.values[node]
        assert isinstance(value, Value), node
        return value

    def _from_state(self, node: fx.Node) -> bool:
        """Computed from parameters alone (a weight under weight norm): simply run it."""
        items = node.all_input_nodes
        return all(item not in self.from_input and bool(self.of(item).known.all()) for item in items)

    def _surviving_training(self, result: Any) -> Any:
        """Dropout is not in an eval graph, but rescales constants in training: only zeros are safe there."""
        if isinstance(result, tuple):
            return tuple(self._surviving_training(item) for item in result)
        return Value(result.value * result.zero, result.zero) if self.training else result

    def _unknown(self, node: fx.Node) -> Any:
        value = node.meta.get("val")
        if isinstance(value, (tuple, list)):
            return tuple(varies(item.dim() if isinstance(item, Tensor) else 0) for item in value)
        return varies(value.dim() if isinstance(value, Tensor) else 0)

    def _run(self, node: fx.Node) -> Any:
        if node.target is operator.getitem:
            items = self.values[node.args[0]]  # type: ignore[index]
            return items[node.args[1]]
        name = op_name(node)
        operands = [self.values[item] for item in node.all_input_nodes]
        schema = getattr(node.target, "_schema", None)
        if any(not isinstance(item, Value) for item in operands) or (schema is not None and schema.is_mutable):
            return self._unknown(node)
        handler = HANDLERS.get(name)
        result: Any
        if operands and self._from_state(node) and isinstance(node.meta.get("val"), Tensor):
            value = call_with(node, lambda item: self.of(item).value.expand(shape_of(item)).contiguous())
            result = compressed(constant(value))
        elif handler is not None:
            result = handler(self, node, arguments(node))
        elif name in COPIES:
            result = _copied(self, node, name)
        elif is_pointwise(node):
            result = _pointwise(self, node, name)
        elif not any(item.anything for item in operands):
            result = None
        elif name in MOVES:
            result = _moved(self, node)
        elif name in TRAILING:
            result = _resampled(node, name, operands[0])
        elif name in ("sum", "mean", "amax", "amin"):
            result = _reduced(self, node, arguments(node))
        else:
            result = None
        return self._unknown(node) if result is None else result


def call_with(node: fx.Node, replace: Callable[[fx.Node], Any]) -> Any:
    """Call the operator itself, on the CPU, with every node argument replaced."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), replace)
    kwargs = {key: torch.device("cpu") if key == "device" and value else value for key, value in kwargs.items()}
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _copied(run: Interpreter, node: fx.Node, name: str) -> Value:
    """The operand itself, in the dtype of the result; copy(a, b) is b. Dropout that is on rescales all but zeros."""
    args = arguments(node)
    source = run.of(args["src"] if name == "copy" else node.all_input_nodes[0])
    if args.get("train") is True:
        source = Value(source.value * source.zero, source.zero)
    rank = len(shape_of(node))
    return Value(aligned(source.value, rank).to(node.meta["val"].dtype), aligned(source.known, rank))


def _pointwise(run: Interpreter, node: fx.Node, name: str) -> Value | None:
    operands = [run.of(item) for item in node.all_input_nodes]
    rank = len(shape_of(node))
    known = torch.ones((1,) * rank, dtype=torch.bool, device="cpu")
    for operand in operands:
        known = known & operand.known
    absorbing = name == "mul" and len(operands) == 2
    if not bool(known.any()) and not (absorbing and any(bool(item.zero.any()) for item in operands)):
        return None
    if isinstance(node.meta.get("val"), (tuple, list)):
        return None
    value = call_with(node, lambda item: run.of(item).value)
    if absorbing:
        known = known | operands[0].zero | operands[1].zero
    return Value.where(known, value)


def _moved(run: Interpreter, node: fx.Node) -> Any:
    """Views, concatenations and slices: run the operator on values and on the mask, fully expanded."""
    values = call_with(node, lambda item: run.of(item).value.expand(shape_of(item)).contiguous())
    padding = {"constant_pad_nd", "pad"} & {op_name(node)}
    if padding:
        # The padding is a known constant: pad the mask of varying positions with 0, whatever the padding value is.
        if arguments(node).get("mode", "constant") != "constant":
            return None
        source = node.all_input_nodes[0]
        unknown = (~run.of(source).known).expand(shape_of(source)).float()
        return compressed(Value(values, F.pad(unknown, arguments(node)["pad"]) == 0))
    known = call_with(node, lambda item: run.of(item).known.expand(shape_of(item)).contiguous())
    if isinstance(values, (tuple, list)):
        return tuple(compressed(Value(a, b)) for a, b in zip(values, known, strict=True))
    return compressed(Value(values, known))


def first_output(node: fx.Node, value: Value) -> Any:
    """The only interesting output of operators that also return their statistics."""
    items = node.meta.get("val")
    if isinstance(items, (tuple, list)):
        return (value, *(varies(item.dim() if isinstance(item, Tensor) else 0) for item in items[1:]))
    return value


def _resampled(node: fx.Node, name: str, x: Value) -> Any:
    """Pools and interpolations of a constant plane: zero stays zero, a constant stays unless padding dilutes it."""
    count = TRAILING[name]
    if any(x.value.shape[axis] != 1 or x.known.shape[axis] != 1 for axis in range(-count, 0)):
        planes = tuple(range(-count, 0))
        known = x.known.expand(x.value.shape).amin(planes, keepdim=True) & (
            x.value.amin(planes, keepdim=True) == x.value.amax(planes, keepdim=True)
        )
        x = Value(x.value.amax(planes, keepdim=True) * known, known)
    padding = arguments(node).get("padding", 0)
    diluted = any(padding) if isinstance(padding, (tuple, list)) else bool(padding)
    diluted = diluted or arguments(node).get("divisor_override") is not None
    exact = any(part in name for part in _EXACT_POOLS) or not diluted
    return first_output(node, x if exact else Value(x.value * x.zero, x.zero))


def _reduced(run: Interpreter, node: fx.Node, args: dict[str, Any]) -> Value:
    source = node.all_input_nodes[0]
    x, shape = run.of(source), shape_of(source)
    dims, keepdim = dims_of(args, len(shape)), bool(args.get("keepdim", False))
    sizes = [shape[i] if i in dims else max(x.value.shape[i], x.known.shape[i]) for i in range(len(shape))]
    value = call_with(node, lambda item: x.value.expand(sizes))
    known = x.known.expand(sizes).float().amin(dims, keepdim=keepdim) > 0
    return compressed(Value(value, known))
