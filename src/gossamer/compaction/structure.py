"""Proof that a shrunk model still computes the same thing on fewer channels, from its structure alone.

The shrunk model is captured again. Its parameter axes start with the labels of the positions that were kept; if the
model's own code (views, chunks, head counts) still lines channels up, no two different channels ever meet, every
operator is the same one with the same numbers, and every tensor has exactly the size the labels predict.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from .attributes import shape_after
from .capture import capture
from .captured import CaptureError
from .graph import ChannelGraph
from .rules import propagate
from .rules.table import Flow, arguments, module_path, op_name

# Operators whose integer arguments are sizes or positions, which are compared through the output shapes instead.
_SIZED = {
    "view", "reshape", "_unsafe_view", "expand", "full", "zeros", "ones", "new_zeros", "new_ones", "new_full", "empty",
    "new_empty", "split", "split_with_sizes", "unsafe_split", "unsafe_chunk", "unsafe_split_with_sizes",
    "tensor_split", "chunk", "slice", "narrow", "unflatten", "repeat", "broadcast_to", "conv1d", "conv2d", "conv3d",
    "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "group_norm", "native_group_norm",
    "arange", "instance_norm", "scalar_tensor", "constant_pad_nd", "pad",
}  # fmt: skip

# Operators that only lay memory out; whether they appear depends on strides, and those on sizes of 1.
_LAYOUT = {"clone", "contiguous", "view", "reshape", "_unsafe_view", "expand", "alias"}


class StructureError(RuntimeError):
    """A model whose code does not follow its shrunk tensors.

    `paths` = modules whose code was running, innermost first; `place` = operators of the original that were matched.
    """

    def __init__(self, message: str, paths: tuple[str, ...] = ("",), place: int = 0) -> None:
        super().__init__(message)
        self.paths, self.place = paths, place


def culprits(
    names: list[str], attempt: Callable[[list[str]], object], errors: tuple[type[Exception], ...] = (StructureError,)
) -> dict[str, str]:
    """Which of `names` fail, and why: `attempt` has all of them at once, and halves where that fails."""
    try:
        attempt(names)
    except errors as error:
        if len(names) == 1:
            return {names[0]: str(error)}
        half = len(names) // 2
        return culprits(names[:half], attempt, errors) | culprits(names[half:], attempt, errors)
    return {}


def check_structure(
    model: nn.Module, graph: ChannelGraph, kept: dict[str, dict[int, Any]], removed: np.ndarray
) -> Flow:
    """Labels of the shrunk `model`; StructureError unless it lines up with `graph`, the channel graph of the original.

    `kept` = {tensor: {axis: positions}}, `removed` = the label roots that went.
    """
    before = graph.flow
    seeds = {}
    for (name, axis), labels in before.state.items():
        roots = before.labels.find(labels)
        positions = kept.get(name, {}).get(axis)
        seeds[name, axis] = roots if positions is None else roots[np.asarray(positions)]
    try:
        again = capture(model, graph.example_inputs, route=before.capture.route, watches=before.capture.watches)
        after = propagate(again, seeds)
    except CaptureError as error:
        place = next((i for i, node in enumerate(_computing(before)) if module_path(node) == error.paths[0]), 0)
        raise StructureError(f"its forward fails, {error.causes[0]}", error.paths, place) from None
    except ValueError as error:
        raise StructureError(str(error)) from None
    _same_constants(before, after)
    _same_program(before, after, removed)
    _no_new_ties(after, seeds, np.concatenate(graph.roots))
    return after


def _computing(flow: Flow) -> list[fx.Node]:
    return [node for node in flow.capture.calls if op_name(node) not in _LAYOUT]


def _around(path: str) -> tuple[str, ...]:
    """A module's path and those of the modules around it, innermost first."""
    parts = path.split(".") if path else []
    return tuple(".".join(parts[:n]) for n in range(len(parts), -1, -1))


def _same_constants(before: Flow, after: Flow) -> None:
    """What a forward has built and kept (grids, tables, scales) must not depend on what shrank."""
    old, new = (list(flow.capture.constants.values()) for flow in (before, after))
    for number, (left, right) in enumerate(zip(old, new)):  # noqa: B905 - operators missing are named by _same_program
        if left.shape != right.shape or not torch.equal(left.nan_to_num(), right.nan_to_num()):
            raise StructureError(f"constant {number} of its forward, shape {tuple(left.shape)}, changes")


def _same_program(before: Flow, after: Flow, removed: np.ndarray) -> None:
    old, new = _computing(before), _computing(after)
    for place, (left, right) in enumerate(zip(old, new)):  # noqa: B905 - a difference in length is reported afterwards
        try:
            if op_name(left) != op_name(right):
                raise StructureError(f"{before.where(left)} became {after.where(right)}")
            _same_numbers(before, left, right)
            _same_shapes(before, left, right, removed)
        except StructureError as error:
            error.paths, error.place = _around(module_path(left)), place
            raise
    if len(old) != len(new):
        raise StructureError(f"the model runs {len(new)} operators, expected {len(old)}", place=min(len(old), len(new)))


def _same_numbers(flow: Flow, left: fx.Node, right: fx.Node) -> None:
    """Literals must survive: a scale computed from a size that shrank would change every value."""
    if left.target is operator.getitem:
        return
    sized = op_name(left) in _SIZED
    for (name, old), new in zip(arguments(left).items(), arguments(right).values(), strict=True):
        if _literals(old, sized) != _literals(new, sized):
            raise StructureError(f"{flow.where(left)} gets {name}={_short(new)} instead of {_short(old)}")


def _literals(value: Any, sized: bool) -> list[Any]:
    if isinstance(value, (tuple, list)):
        return [item for part in value for item in _literals(part, sized)]
    if isinstance(value, (bool, float, str)) or value is None:
        return [value]
    return [value] if isinstance(value, int) and not sized else []


def _short(value: Any) -> str:
    return str(value)[:60]


def _same_shapes(flow: Flow, left: fx.Node, right: fx.Node, removed: np.ndarray) -> None:
    old: Any = left.meta.get("val")
    new: Any = right.meta.get("val")
    if isinstance(old, (tuple, list)):
        read = {user.args[1] for user in left.users if user.target is operator.getitem}  # not the unread statistics
        tensors = [i for i, item in enumerate(old) if isinstance(item, Tensor) and i in read]
        pairs = [(shape_after(flow, left, removed, i), new[i]) for i in tensors]
    elif isinstance(old, Tensor):
        pairs = [(shape_after(flow, left, removed), new)]
    else:
        pairs = []
    for expected, tensor in pairs:
        fits = len(expected) == tensor.dim() and all(
            n in (None, m) for n, m in zip(expected, tensor.shape, strict=True)
        )
        if not fits:
            raise StructureError(f"{flow.where(left)} gives shape {tuple(tensor.shape)}, expected {expected}")


def _no_new_ties(after: Flow, seeds: dict[tuple[str, int], np.ndarray], channels: np.ndarray) -> None:
    """Each channel of the shrunk model must be one of the original's `channels` (kernel taps are none)."""
    keys = [key for key in seeds if key in after.state and len(seeds[key]) == len(after.state[key])]
    if not keys:
        return
    old = np.concatenate([seeds[key] for key in keys])
    new = after.labels.find(np.concatenate([after.state[key] for key in keys]))
    known = np.isin(old, channels)
    pairs = np.unique(np.stack([new[known], old[known]]), axis=1)
    repeated = np.flatnonzero(pairs[0][1:] == pairs[0][:-1])
    if len(repeated):
        root = pairs[0][repeated[0]]
        tied = [key for key in keys if (after.labels.find(after.state[key]) == root).any()]
        names = [f"{name} axis {axis}" for name, axis in tied]
        raise StructureError(f"channels no longer line up between {' and '.join(names[:3])}")
