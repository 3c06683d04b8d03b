"""A block's sparsity, divided among its linears: step by step to the one that the block's output feels least (TEAL).

A block, one layer of a transformer, is run again and again on the inputs it got from the data. Every step takes the
same number of bytes from one linear; tried for each, and kept where the output of the block moves least.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from gossamer.nn.threshold.magnitudes import Magnitudes
from gossamer.nn.threshold.places import Place
from gossamer.ops.gemv import shrink

_CAP = 0.95
"""No linear loses more than this unless the whole is asked to."""


@dataclass
class Block:
    """A repeated part of the model, the places in it, and calls it got."""

    name: str
    module: nn.Module
    places: list[Place]
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)

    def run(self) -> list[Tensor]:
        return [_tensor(self.module(*_fresh(args), **_fresh(kwargs))) for args, kwargs in self.calls]


def blocks_of(model: nn.Module, places: list[Place]) -> list[Block]:
    """Places by the entry of an nn.ModuleList around them, else of an nn.Sequential, else by the whole model."""
    found: dict[str, Block] = {}
    for place in places:
        name = _block_name(model, place.name)
        block = found.setdefault(name, Block(name, model.get_submodule(name), []))
        block.places.append(place)
    return list(found.values())


def _block_name(model: nn.Module, place: str) -> str:
    """The outermost entry of a list of modules on the way to the place."""
    parts = place.split(".")
    for kind in (nn.ModuleList, nn.Sequential):
        for depth in range(len(parts) - 1):
            if isinstance(model.get_submodule(".".join(parts[:depth])), kind):
                return ".".join(parts[: depth + 1])
    return ""


def greedy(block: Block, seen: Mapping[str, Magnitudes], sparsity: float, step: float) -> dict[str, float]:
    """The sparsity of each place of a block, `sparsity` of their bytes together; never worse there than uniform."""
    uniform = {place.name: sparsity for place in block.places}
    if len(block.places) < 2 or not block.calls or not sparsity:
        return uniform
    expected = block.run()

    def error(share: Mapping[str, float]) -> float:
        with ExitStack() as hooks:
            for place in block.places:
                threshold = seen[place.name].threshold(share[place.name]) if share[place.name] else 0.0
                hooks.callback(place.hook(functools.partial(shrink, threshold=threshold)).remove)
            pairs = zip(block.run(), expected, strict=True)
            return sum(float((found.double() - right.double()).square().sum()) for found, right in pairs)

    total = sum(place.bytes for place in block.places)
    cap = max(_CAP, (1 + sparsity) / 2)
    share = dict.fromkeys(uniform, 0.0)
    missing, now = sparsity * total, 0.0
    while missing > 1e-9 * total:
        tries = []
        for at, place in enumerate(block.places):
            taken = min(step * total, missing, (cap - share[place.name]) * place.bytes)
            if taken > 1e-9 * total:
                more = {**share, place.name: share[place.name] + taken / place.bytes}
                then = error(more)
                tries.append(((then - now) / taken, at, taken, then, more))  # per byte: a step may be a short one
        _, _, taken, now, share = min(tries, key=lambda entry: entry[:2])
        missing -= taken
    return share if now <= error(uniform) else uniform


def _tensor(output: Any) -> Tensor:
    """The first tensor of what a block returned: its hidden states."""
    if isinstance(output, Tensor):
        return output
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    for value in values:
        if isinstance(value, Tensor):
            return value
    raise ValueError(f"allocation='greedy' needs blocks that return a tensor, got {type(output).__name__}")


def _fresh(value: Any) -> Any:
    """A copy that a call may change: caches of keys and values grow with every run."""
    if isinstance(value, Tensor) or value is None or isinstance(value, (int, float, str, bool)):
        return value
    if isinstance(value, (tuple, list)) and type(value) in (tuple, list):
        return type(value)(_fresh(item) for item in value)
    if type(value) is dict:
        return {key: _fresh(item) for key, item in value.items()}
    return copy.deepcopy(value)


def kept(value: Any) -> Any:
    """A copy of a call's arguments that later layers cannot change."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) in (tuple, list):
        return type(value)(kept(item) for item in value)
    if type(value) is dict:
        return {key: kept(item) for key, item in value.items()}
    return _fresh(value)
