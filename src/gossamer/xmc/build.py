"""The head that a recipe asks for, before its first step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gossamer.measure.memory import require_memory
from gossamer.ops.fan_in.step import STATES
from gossamer.pattern.build import index_dtype
from gossamer.ranks import Ranks
from gossamer.xmc.heads.base_head import Head
from gossamer.xmc.heads.head import FusedHead
from gossamer.xmc.heads.joined import JoinedHead
from gossamer.xmc.heads.memory import Layout
from gossamer.xmc.heads.sharded import ShardedHead
from gossamer.xmc.heads.wide import WideHead
from gossamer.xmc.recipe import Recipe

_SHARED = 64  # labels that read all inputs share the list of them ...
_BESIDE = 48  # bytes of a label beside the head: frequencies, first biases and what the test counts, measured
_MANY = 4096  # ... where there are so many that processes can still divide them


def build_head(
    width: int, labels: int, recipe: Recipe, *, beside: int = 0, order: Tensor | None = None, ranks: Ranks
) -> Head:
    """A head over `labels` labels for vectors of `width` numbers.

    Args:
        beside: features that the head reads too; a wide layer in front of it (`Recipe.intermediate`) reads none.
        order: int64[labels], as `gossamer.xmc.grouping.order_of` gives it.
        ranks: the processes that divide the labels.

    Raises:
        ValueError: naming the setting. MemoryError: it does not fit; says what does.
    """
    inner = recipe.intermediate or width + beside
    top = recipe.frequent_of(labels)
    wanted = recipe.frequent_fan_in or inner
    if top and recipe.frequent_fan_in and not recipe.fan_in <= wanted <= inner:
        raise ValueError(f"frequent_fan_in must be from fan_in={recipe.fan_in} to the width of {inner}, got {wanted}")
    if labels and recipe.fan_in <= inner:  # else the head says what is wrong
        _check_room(inner, labels, top, recipe, ranks)
    common = {
        "device": "cpu",
        "loss": recipe.loss,
        "optimizer": recipe.optimizer,
        "dtype": getattr(torch, recipe.dtype),
    }
    parts = []
    if top:
        group = _SHARED if wanted == inner and top >= _MANY else 1
        parts.append(_part(inner, top, ranks, fan_in=wanted, group=group, seed=recipe.seed + 1, **common))
    parts.append(
        _part(inner, labels - top, ranks, fan_in=recipe.fan_in, group=recipe.group, seed=recipe.seed, **common)
    )
    head: Head = parts[0] if order is None else JoinedHead(parts, order)
    if recipe.intermediate:
        relative = recipe.intermediate_lr / recipe.head_lr
        head = WideHead(width, head, relative_lr=relative, seed=recipe.seed + 2, device="cpu")
    return head


def _check_room(width: int, labels: int, top: int, recipe: Recipe, ranks: Ranks) -> None:
    """Refuse what would not fit with all that is made beside the head, before anything of it is."""
    value = getattr(torch, recipe.dtype).itemsize
    layout = Layout(recipe.fan_in, index_dtype(width).itemsize, value, STATES[recipe.optimizer], recipe.group, True)
    each = _BESIDE + layout.label * (labels - top) / ranks.size / labels
    advice = "Take a smaller fan_in, dtype=bfloat16, optimizer=sgd or a larger group"
    require_memory(f"labels={labels:,} with fan_in={recipe.fan_in}", labels, each, advice)


def _part(width: int, labels: int, ranks: Ranks, **settings: Any) -> Head:
    if ranks.size == 1:
        return FusedHead(width, labels, **settings)
    return ShardedHead(width, labels, process_group=ranks.group, **settings)
