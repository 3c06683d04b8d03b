"""What operators of a torch-level graph do to zeros that are found at run time: who makes them, and who keeps them.

One table says which operators keep a zero where it is, and under which condition; another why the usual others do not.
An operator in neither table keeps nothing, so what is not known is dense.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from gossamer.compile.operators.call import call_of

_ALWAYS = "0 for 0"
_PLACES = "moves elements, or copies them"
_WINDOW = "0 where all of a window is"

KEEPS: dict[str, str] = {
    **dict.fromkeys(
        ("abs", "neg", "negative", "sqrt", "square", "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu",
         "silu", "mish", "hardswish", "tanh", "sin", "tan", "asin", "atan", "sinh", "asinh", "atanh", "expm1", "log1p",
         "erf", "softsign", "sign", "floor", "ceil", "round", "trunc", "hardshrink", "softshrink", "tanhshrink",
         "nan_to_num"),
        _ALWAYS,
    ),
    **dict.fromkeys(
        ("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "transpose", "permute", "t", "movedim",
         "contiguous", "clone", "detach", "expand", "repeat", "narrow", "chunk", "split", "unbind", "getitem", "flip",
         "roll", "index_select", "gather", "view_as", "expand_as", "swapaxes", "select", "alias", "identity"),
        _PLACES,
    ),
    **dict.fromkeys(("to", "float", "double", "half", "bfloat16", "type_as", "type"), "0 in every number format"),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d"), _WINDOW),
    **dict.fromkeys(("cat", "stack", "concat"), "where every part has zeros"),
    "dropout": "0 times a mask",
    "mul": "0 times anything finite",
    "div": "0 over anything but 0",
    "pow": "0 to a power above 0",
    "clamp": "0 within the bounds",
    "masked_fill": "what is filled in is 0, or few elements",
}  # fmt: skip
"""Operator -> on which condition an element that is 0 stays 0."""

LOSES: dict[str, str] = {
    **dict.fromkeys(("add", "sub", "rsub"), "a sum is 0 only where all its terms are"),
    **dict.fromkeys(("exp", "cos", "cosh", "sigmoid", "softplus", "rsqrt", "reciprocal", "log"), "it is not 0 at 0"),
    **dict.fromkeys(("softmax", "log_softmax"), "exp(0) is not 0"),
    **dict.fromkeys(("layer_norm", "batch_norm", "group_norm", "rms_norm", "instance_norm"), "it shifts what is 0"),
    **dict.fromkeys(("linear", "matmul", "mm", "bmm", "addmm", "conv1d", "conv2d", "conv3d"), "it sums over an axis"),
    **dict.fromkeys(("mean", "sum", "adaptive_avg_pool2d"), "it sums over an axis"),
}
"""Operator -> why an element that is 0 does not stay 0."""

_SAME = {"clamp_min": "clamp", "dropout1d": "dropout", "feature_dropout": "dropout",
         "max_pool2d_with_indices": "max_pool2d", "boolean_dispatch": "max_pool2d"}  # fmt: skip
_VIEWS = frozenset(
    ("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "transpose", "permute", "t", "movedim",
     "contiguous", "detach", "expand", "narrow", "chunk", "split", "unbind", "getitem", "view_as", "expand_as",
     "swapaxes", "select", "alias", "to", "float", "identity")
)  # fmt: skip
"""Operators whose result may lie in the memory of their first argument."""


@dataclass(frozen=True)
class Named:
    """An operator by its plain name, whoever spells it: torch.relu_, x.relu_() and F.relu(x, inplace=True) are relu."""

    name: str
    in_place: bool

    @property
    def may_alias(self) -> bool:
        return self.in_place or self.name in _VIEWS


def named(node: Node) -> Named:
    """The operator of a node; "" for what is none of torch's."""
    call = call_of(node)
    if (
        call is None
        or not call.name.isidentifier()
        or str(getattr(node.target, "__module__", "")).startswith("gossamer")
    ):
        return Named("", False)
    return Named(_SAME.get(call.name, call.name), call.in_place)


def argument(node: Node, at: int, name: str, default: Any = None) -> Any:
    """An argument by its place (-1: by name alone) or its name."""
    if name in node.kwargs:
        return node.kwargs[name]
    return node.args[at] if 0 <= at < len(node.args) else default


def made_by(node: Node, name: str) -> str | None:
    """What kind of zeros an operator makes of its own, whatever it reads."""
    value = node.meta.get("example_value")
    if isinstance(value, torch.Tensor) and value.dtype is torch.bool:
        return "mask"
    if name in ("relu", "relu6"):
        return name
    if name == "threshold" and argument(node, 2, "value") == 0:
        return name
    if name == "hardtanh" and argument(node, 1, "min_val", -1.0) == 0:
        return name
    if name == "clamp" and argument(node, 1, "min") == 0:
        return name
    if name in ("hardshrink", "softshrink"):
        return "shrink"
    if name == "masked_fill" and argument(node, 2, "value") == 0:
        return "mask"
    if name == "where" and any(is_zero(each) for each in (argument(node, 1, "input"), argument(node, 2, "other"))):
        return "mask"
    if name == "scatter" and is_zero(argument(node, 0, "input")):
        index = argument(node, 2, "index")
        return "top-k" if isinstance(index, Node) and _is_topk(index) else "scatter"
    if name == "one_hot":
        return "one-hot"
    if name == "dropout" and argument(node, 2, "training", True) is True:
        share = argument(node, 1, "p", 0.5)
        return "dropout" if isinstance(share, (int, float)) and share >= 0.5 else None
    return None


def keeps(node: Node, name: str) -> str | None:
    """On which condition this very call keeps zeros; None if it does not."""
    if name == "pow":
        power = argument(node, 1, "exponent")
        return KEEPS[name] if isinstance(power, (int, float)) and power > 0 else None
    if name == "clamp":
        low, high = argument(node, 1, "min"), argument(node, 2, "max")
        return KEEPS[name] if _within(low, 0) and _within(0, high) else None
    if name == "hardtanh":
        low, high = argument(node, 1, "min_val", -1.0), argument(node, 2, "max_val", 1.0)
        return "0 within the bounds" if _within(low, 0) and _within(0, high) else None
    return KEEPS.get(name)


def is_zero(value: Any) -> bool:
    """Is this the number 0, or a tensor of zeros that was just made?"""
    if isinstance(value, Node):
        name = named(value).name
        return name in ("zeros", "zeros_like", "new_zeros") or (
            name in ("full", "full_like", "new_full", "tensor", "scalar_tensor") and _last_number(value) == 0
        )
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == 0


def _last_number(node: Node) -> Any:
    return node.kwargs.get("fill_value", node.args[-1] if node.args else None)


def _within(low: Any, high: Any) -> bool:
    if low is None or high is None:
        return True
    return isinstance(low, (int, float)) and isinstance(high, (int, float)) and low <= high


def _is_topk(index: Node) -> bool:
    """Does an index come from topk?"""
    while named(index).name in _VIEWS and index.args and isinstance(index.args[0], Node):
        index = index.args[0]
    return named(index).name in ("topk", "indices", "argsort", "sort")
