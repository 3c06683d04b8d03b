"""Where the time of a step goes: convolutions by pass, the first one apart, copies between layouts, everything else."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd import profiler

PARTS = ("forward", "backward", "first", "copies", "other")

_FORWARD, _FIRST = "bench: a convolution", "bench: the first convolution"
_COPIES = ("aten::copy_", "aten::clone", "aten::contiguous", "aten::_to_copy")
_FEW = 3  # channels of an image: no convolution behind the first reads so few


def mark(model: nn.Module) -> None:
    """Make the forward of every convolution of `model` visible to `timed`. The first is that of the images."""
    first = True
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            _mark(module, _FIRST if first else _FORWARD)
            first = False


def _mark(module: nn.Module, name: str) -> None:
    open_ranges: list[profiler.record_function] = []

    def begin(module: nn.Module, inputs: Any) -> None:
        open_ranges.append(profiler.record_function(name))
        open_ranges[-1].__enter__()

    def end(module: nn.Module, inputs: Any, output: Any) -> None:
        open_ranges.pop().__exit__(None, None, None)

    module.register_forward_pre_hook(begin)
    module.register_forward_hook(end)


def _part(event: Any) -> str | None:
    """The part that an event and all inside it belongs to; None if that is decided by what is around or inside it."""
    shapes = event.input_shapes
    match event.name:
        case name if name == _FORWARD:
            return "forward"
        case name if name == _FIRST:
            return "first"
        case "aten::convolution_backward":  # dy, x, weight
            if shapes[2][1] == _FEW:
                return "first"
            return "backward" if shapes[2][1] > _FEW else None  # the one constant channel of a Fixup shift
        case "SkipZerosBackward" if shapes and len(shapes[0]) == 4:  # of an image: a Linear has rows
            return "backward"
        case name if name in _COPIES:
            return "copies"
    return None


def timed(call: Callable[[], Any]) -> dict[str, float]:
    """Seconds of one call: "step", and each of PARTS; "conv" is forward and backward together.

    What runs inside a convolution (packing, choosing, a ReLU fused into it, copies of its own) counts as that
    convolution.
    """
    # Not kineto: a trace of names, shapes and times is all that is wanted.
    with profiler.profile(use_kineto=False, record_shapes=True) as trace:
        start = time.perf_counter()
        call()
        step = time.perf_counter() - start
    seconds = dict.fromkeys(PARTS, 0.0)
    for event in trace.function_events:
        part, parent = _part(event), event.cpu_parent
        while part is not None and parent is not None:
            if _part(parent) is not None:
                part = None
            parent = parent.cpu_parent
        if part is not None:
            seconds[part] += event.cpu_time_total * 1e-6
    seconds["other"] = step - sum(seconds.values())
    return {"step": step, "conv": seconds["forward"] + seconds["backward"], **seconds}


def median(samples: list[dict[str, float]]) -> dict[str, float]:
    """The median of each part over several steps."""
    return {part: float(torch.tensor([s[part] for s in samples], dtype=torch.float64).median()) for part in samples[0]}
