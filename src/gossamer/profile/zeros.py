"""Zeros that linear layers and convolutions read, many rows at a time: what `gs.nn.skip_zeros` would make of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer import measure, ops
from gossamer.ops.skipping.refusals import why_dense
from gossamer.profile.findings import Finding, Place, combined, verdict_of
from gossamer.profile.study import FEW, Study
from gossamer.profile.watch import Inputs, hooked

LEAST = 0.05
"""Fewer zeros than this share are never skipped, as by the layers themselves."""
WORTH = 1e-4
"""Seconds that skipping must save in a pass of a layer, as its tuner asks."""

LINES = """\
import gossamer as gs

gs.nn.skip_zeros(model)"""


def find_zeros(study: Study) -> Finding:
    """The finding `zeros`: exact zeros in the inputs of layers, and what it would bring to skip them in a pass."""
    inputs = study.seen.inputs
    if not inputs:
        return Finding("zeros", "not measured because", "no linear layer and no convolution ran")
    total = sum(each.total for each in inputs.values())
    share = sum(each.zeros for each in inputs.values()) / total
    with_zeros = {name: each for name, each in inputs.items() if each.share >= LEAST}
    most = max(inputs, key=lambda name: inputs[name].share)
    if not with_zeros:
        found = (
            f"{share:.1%} of what {len(inputs)} linear layers and convolutions read are zeros, at most "
            f"{inputs[most].share:.1%} in one ({most}): nothing like a ReLU is before them"
        )
        return Finding("zeros", "nothing here", found, share)
    found = (
        f"{share:.1%} of what {len(inputs)} linear layers and convolutions read are zeros; {len(with_zeros)} of them "
        f"read {LEAST:.0%} or more, {most} {inputs[most].share:.1%}"
    )
    refused = {name: why for name, each in with_zeros.items() if (why := _why_left(each))}
    taken = {name: each for name, each in with_zeros.items() if name not in refused}
    if not taken:
        name, why = next(iter(refused.items()))
        return Finding("zeros", "not measured because", f"{found}, but none of those can skip ({name}: {why})", share)
    alone = _tried(study, taken)
    places = [Place(name, each.share, study.times.share[name], alone.get(name, 1.0)) for name, each in taken.items()]
    gain = combined(places, study.a_pass, "each layer that reads zeros was timed skipping and dense, on its own inputs")
    places.sort(key=lambda place: -(place.time or 0) * (1 - 1 / (place.alone or 1)))
    slower = sum(place.alone == 1.0 for place in places)
    if slower:
        found += f". Skipping is no faster in {slower} of these {len(places)}, which stay dense"
    return Finding("zeros", verdict_of(gain), found, share, gain, tuple(places), LINES)


def _why_left(seen: Inputs) -> str:
    """Why a layer cannot skip; empty where it can."""
    module: Any = seen.module
    if type(module) not in (nn.Conv2d, nn.Linear):
        return f"a {type(module).__name__}, expected Conv2d or Linear"
    if isinstance(module, nn.Linear) and seen.many <= FEW:
        return f"{seen.many} rows, which wait for the weights"
    return why_dense(module.weight, module.weight, module.bias, getattr(module, "groups", 1), "auto") or ""


def _tried(study: Study, taken: dict[str, Inputs]) -> dict[str, float]:
    """How much faster each layer is when it skips, 1 where that is not clear; timed inside a pass, on its inputs.

    Layers of the same sizes and about as many zeros are timed once.
    """
    known: dict[Any, float] = {}
    found: dict[str, float] = {}

    def look(name: str, module: nn.Module, x: Tensor) -> None:
        if name in found:
            return
        zeros = 1 - int(torch.count_nonzero(x)) / max(x.numel(), 1)
        key = type(module), module.extra_repr(), tuple(x.shape), x.stride(), round(20 * zeros)
        if key not in known:
            known[key] = _ratio(module, x.detach())
        found[name] = known[key]

    with hooked({name: each.module for name, each in taken.items()}, look):
        study.largest.run(study.model)
    return found


def _ratio(module: Any, x: Tensor) -> float:
    run = measure.interleave(_ways(module, x), reps=7, sample=2e-3, seconds=0.5)
    row = run["skip"]
    if not run.faster("skip") or run["dense"].median - row.median < WORTH:
        return 1.0
    return row.ratio


def _ways(module: Any, x: Tensor) -> dict[str, Callable[[], Tensor]]:
    """A layer as it is, and skipping zeros."""
    weight, bias = module.weight, module.bias
    if isinstance(module, nn.Linear):
        return {
            "dense": lambda: F.linear(x, weight, bias),
            "skip": lambda: ops.linear(x, weight, bias, skip="input"),
        }
    padding: Any = module.padding
    if module.padding_mode != "zeros":
        x = F.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode)
        padding = (0, 0)
    rest = module.stride, padding, module.dilation, module.groups
    return {
        "dense": lambda: F.conv2d(x, weight, bias, *rest),
        "skip": lambda: ops.conv2d(x, weight, bias, *rest, skip="input"),
    }
