"""A node of a Dynamo graph as a call by its plain name: `x.add(y)`, `torch.add(x, y)` and `x + y` are all "add"."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

_IN_PLACE = {
    operator.iadd: "add", operator.isub: "sub", operator.imul: "mul", operator.itruediv: "div", operator.ipow: "pow",
    operator.iand: "and", operator.ior: "or", operator.ixor: "xor", operator.setitem: "setitem",
}  # fmt: skip
_PLAIN = {
    "and_": "and", "or_": "or", "not_": "not", "truediv": "div", "true_divide": "div", "divide": "div",
    "multiply": "mul", "subtract": "sub", "clip": "clamp", "invert": "bitwise_not", "swapaxes": "transpose",
    "swapdims": "transpose", "concat": "cat", "concatenate": "cat", "cast": "to", "_softmax": "softmax",
}  # fmt: skip
_ROLES = {
    "scaled_dot_product_attention": ("query", "key", "value"),
    "linear": ("input", "weight"),
    "embedding": ("input", "weight"),
    "cross_entropy": ("input", "target"),
}
"""Operands that are told apart by their names, in whatever order they are written."""
_MODULES = frozenset({"", "_operator", "builtins", "math"})


@dataclass(frozen=True)
class Call:
    """
    Attributes:
        name: plain name of what is called, without the underscore of an in-place spelling.
        in_place: whether it writes into an operand.
    """

    node: Node
    name: str
    in_place: bool

    def get(self, at: int, name: str, default: Any = None) -> Any:
        """The argument at a position or of a name."""
        if at < len(self.node.args):
            return self.node.args[at]
        return self.node.kwargs.get(name, default)

    @property
    def operands(self) -> list[Node]:
        """All nodes among the arguments that are tensors, in order, each once; or by their roles."""
        roles = _ROLES.get(self.name)
        if roles is not None:
            return [self.get(at, name) for at, name in enumerate(roles)]
        return [node for node in self.node.all_input_nodes if is_tensor(node)]


def is_tensor(node: Node) -> bool:
    return isinstance(node.meta.get("example_value"), torch.Tensor)


def call_of(node: Node) -> Call | None:
    """None for what is no call: inputs, outputs, attributes."""
    if node.op == "call_method":
        name = str(node.target)
        in_place = name.endswith("_") and not name.endswith("__")
        if name.startswith("__") and name.endswith("__"):
            name = name.strip("_")
        return Call(node, _plain(name[:-1] if in_place else name), in_place)
    if node.op != "call_function":
        return None
    target: Any = node.target
    if target in _IN_PLACE:
        return Call(node, _IN_PLACE[target], True)
    if isinstance(target, torch._ops.OpOverload):
        return Call(node, f"{target.namespace}::{target._opname}", target._schema.is_mutable)
    if isinstance(target, torch._ops.OpOverloadPacket):
        schemas = [getattr(target, each)._schema for each in target.overloads()]
        return Call(node, target._qualified_op_name, any(schema.is_mutable for schema in schemas))
    name = getattr(target, "__name__", str(target))
    module = getattr(target, "__module__", "") or ""
    if not _is_known(module):  # somebody's own function, whatever its name
        return Call(node, f"{module}.{name}", False)
    in_place = node.kwargs.get("out") is not None
    if name.endswith("_") and not name.endswith("__") and name not in _PLAIN and not module.startswith("gossamer"):
        name, in_place = name[:-1], True
    call = Call(node, _plain(name), in_place)
    if _writes(call):
        call = Call(node, call.name, True)
    return call


def _is_known(module: str) -> bool:
    root = module.split(".")[0]
    strange = module.startswith(("torch.sparse", "torch.masked"))
    return module in _MODULES or (root in ("torch", "gossamer") and not strange)


def _plain(name: str) -> str:
    return _PLAIN.get(name, name)


_INPLACE_AT = {"relu": 1, "dropout": 3, "silu": 1, "elu": 2, "leaky_relu": 2, "hardtanh": 3, "relu6": 1, "threshold": 3,
               "mish": 1, "hardswish": 1, "hardsigmoid": 1, "celu": 2, "selu": 1, "alpha_dropout": 3}  # fmt: skip


def _writes(call: Call) -> bool:
    """F.relu(x, inplace=True) and its like, and norms that update what they have seen so far."""
    if call.name == "batch_norm":
        return call.get(1, "running_mean") is not None and bool(call.get(5, "training", False))
    if call.name == "instance_norm":
        return call.get(1, "running_mean") is not None and bool(call.get(5, "use_input_stats", True))
    at = _INPLACE_AT.get(call.name)
    if at is None or getattr(call.node.target, "__module__", "") != "torch.nn.functional":
        return False
    return bool(call.get(at, "inplace", False))
