"""Where the time of a step goes: convolutions forward and backward, the first one apart, and everything else.

Hooks around each convolution's forward and around its node in autograd's graph read the clock; a profiler would take
as long for its own work as the step does, and leave the allocator and the caches to the next step in another state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.measure import clock

PARTS = ("forward", "backward", "first", "other")

_NODES = ("ConvolutionBackward0", "SkipZerosBackward")
_open: dict[str, float] | None = None  # the seconds by part of the step that is timed now


def mark(model: nn.Module) -> None:
    """Make every convolution of `model` visible to `timed`. The first is that of the images."""
    parts = ("first", "first"), ("forward", "backward")
    for i, module in enumerate(module for module in model.modules() if isinstance(module, nn.Conv2d)):
        _mark(module, *parts[min(i, 1)])


def _mark(module: nn.Module, forward: str, backward: str) -> None:
    starts: list[float] = []

    def begin(*_: Any) -> None:
        starts.append(clock.now())

    def end(part: str) -> None:
        seconds = clock.now() - starts.pop()
        if _open is not None:
            _open[part] += seconds

    def after_forward(module: nn.Module, inputs: Any, output: Tensor) -> None:
        end(forward)
        node = output.grad_fn if _open is not None else None
        while node is not None and type(node).__name__ not in _NODES:  # a ReLU fused into the layer
            node = node.next_functions[0][0]
        if node is not None:
            node.register_prehook(begin)
            node.register_hook(lambda *_: end(backward))

    module.register_forward_pre_hook(begin)
    module.register_forward_hook(after_forward)


def timed(call: Callable[[], Any]) -> dict[str, float]:
    """Seconds of one call: "step", and each of PARTS; "conv" is forward and backward together.

    What runs inside a convolution (packing, choosing, a ReLU fused into it, copies of its own) counts as that
    convolution.
    """
    global _open
    _open = seconds = dict.fromkeys(PARTS, 0.0)
    try:
        start = clock.now()
        call()
        step = clock.now() - start
    finally:
        _open = None
    seconds["other"] = step - sum(seconds.values())
    return {"step": step, "conv": seconds["forward"] + seconds["backward"], **seconds}


def median(samples: list[dict[str, float]]) -> dict[str, float]:
    """The median of each part over several steps."""
    return {part: float(torch.tensor([s[part] for s in samples], dtype=torch.float64).median()) for part in samples[0]}
