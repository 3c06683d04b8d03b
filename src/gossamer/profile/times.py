"""Which part of the time of a pass is spent in which module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from gossamer.measure import clock

FEWEST, MOST, SECONDS = 3, 15, 1.5
"""Passes that are timed: as many as fit into so many seconds, but within these bounds."""

_ATTENTION = "scaled_dot_product_attention"


@dataclass(frozen=True, eq=False)
class Times:
    """Where the time of a pass goes.

    Attributes:
        total: seconds of a pass. share: name of each module -> its share of that.
        attention: the share of scaled_dot_product_attention.
    """

    total: float
    share: Mapping[str, float]
    attention: float


def timed(model: nn.Module, parts: Iterable[str], run: Callable[[], Any], *, holding: Iterable[str] = ()) -> Times:
    """Run some passes with a clock at each of these modules; one pass before them is not counted.

    A pass is what its parts take and the rest between them, each the least of all passes: an interruption of the
    machine falls on some part of some pass, and would otherwise make the others' shares smaller.

    Args:
        parts: names of modules, none inside another one; all calls of one in a pass are added up.
        holding: names of modules that hold such parts, timed too.
    """
    parts = tuple(dict.fromkeys(parts))
    clocks = {name: _Clock() for name in (*parts, *holding, _ATTENTION)}
    least = dict.fromkeys((*clocks, ""), float("inf"))
    with ExitStack() as hooks:
        for name in clocks:
            if name != _ATTENTION:
                module = model.get_submodule(name)
                hooks.callback(module.register_forward_pre_hook(clocks[name].begin).remove)
                hooks.callback(module.register_forward_hook(clocks[name].end).remove)
        hooks.enter_context(_Attention(clocks[_ATTENTION]))
        run()
        first = clock.now()
        for at in range(MOST):
            for each in clocks.values():
                each.spent = 0.0
            begun = clock.now()
            run()
            rest = clock.now() - begun - sum(clocks[name].spent for name in (*parts, _ATTENTION))
            least = {name: min(before, clocks[name].spent if name else rest) for name, before in least.items()}
            if at + 1 >= FEWEST and clock.now() - first > SECONDS:
                break
    total = sum(least[name] for name in (*parts, _ATTENTION, ""))
    share = {name: least[name] / total for name in least}
    return Times(total, share, share[_ATTENTION])


class _Clock:
    """Adds up the time of calls."""

    def __init__(self) -> None:
        self.spent = self.begun = 0.0

    def begin(self, *_: Any) -> None:
        self.begun = clock.now()

    def end(self, *_: Any) -> None:
        self.spent += clock.now() - self.begun


class _Attention(TorchFunctionMode):
    """Has scaled_dot_product_attention timed by a clock."""

    def __init__(self, watch: _Clock) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self.watch.begin()
        out = func(*args, **(kwargs or {}))
        self.watch.end()
        return out
