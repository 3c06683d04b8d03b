"""Channels: those that are exactly zero now, and those that training could do without."""

from __future__ import annotations

import shlex
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from gossamer import measure
from gossamer.compaction import (
    ChannelGraph,
    ChannelGroup,
    CompactWarning,
    compact,
    shrink_,
)
from gossamer.compaction.borrow import duplicate
from gossamer.compaction.rounding import step
from gossamer.profile.findings import Finding, Gain, Place, told, verdict_of
from gossamer.profile.study import Study
from gossamer.training.channels import Channels

REMOVED = 0.4
"""Share of the channels that Chase removes as published."""
WIDTHS = 16
"""Widths end on multiples of this, as those of `gossamer train`."""
LARGEST = 1 << 26
"""Parameters of a network up to which it is copied and cut, to see how much smaller and faster it gets."""

COMPACT = """\
import gossamer as gs

small = gs.compact(model, example).model"""


def find_channels(study: Study) -> Finding:
    """The finding `channels`: those that `gs.compact` can take out now, without changing an output."""
    suspects = _suspects(study.model)
    if not suspects:
        matrices = sum(parameter.dim() > 1 for parameter in study.model.parameters())
        found = f"none of {matrices} weights has a row or a column of zeros, and no norm a scale of zero"
        return Finding("channels", "nothing here", found, 0.0)
    if sum(parameter.numel() for parameter in study.model.parameters()) > LARGEST:
        why = f"weights have rows or columns of zeros ({suspects[0]}), but a network of this size is not cut here"
        return Finding("channels", "not measured because", why, to_try=_compact(study))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CompactWarning)
            small = compact(study.model, study.largest.inputs)
    except (RuntimeError, TypeError) as error:  # of torch's capture, where sizes depend on the data, among others
        return Finding("channels", "not measured because", _said(error))
    widths = small.report["channels"]
    before, dead = sum(each["before"] for each in widths.values()), sum(int(mask.sum()) for mask in small.dead.values())
    share = dead / max(before, 1)
    places = tuple(Place(name, float(mask.float().mean())) for name, mask in small.dead.items() if bool(mask.any()))
    places = tuple(sorted(places, key=lambda place: -place.share))
    if not dead:
        return Finding("channels", "nothing here", f"none of {before} channels is exactly zero for its readers", 0.0)
    found = f"{dead} of {before} channels ({share:.1%}) are exactly zero for those that read them"
    if small.refused is not None:
        return Finding("channels", "too little to gain", f"{found}; they stay: {small.refused}", share, where=places)
    parameters = small.report["parameters"]
    found += (
        f"; without them there are {parameters['after']:,} of {parameters['before']:,} parameters, the same outputs"
    )
    latency = small.report["latency"]
    ratio = next(row["ratio"] for row in latency["rows"] if row["name"] == "compact")
    gain = Gain(
        ratio if latency["verdict"] == "faster" else 1.0, study.a_pass, "the network and the smaller one took turns"
    )
    return Finding("channels", verdict_of(gain), found, share, gain, places, _compact(study))


def _said(error: Exception) -> str:
    return f"its channels could not be followed: {next(iter(str(error).splitlines()), type(error).__name__)}"


def _compact(study: Study) -> str:
    inputs = "batches[0]" if study.largest.args else "dict(batches[0])"
    return COMPACT.replace("example", inputs)


def _suspects(model: nn.Module) -> list[str]:
    """Parameters with a row, a column or, of one dimension, the scale of a norm, that is exactly zero."""
    found = []
    for path, module in model.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            if parameter.dim() > 1:
                sizes = parameter.detach().abs()
                flat = sizes.flatten(2).sum(2) if sizes.dim() > 2 else sizes
                zero = bool((flat.amax(0) == 0).any())
                if not isinstance(module, nn.Embedding):  # whose row of padding is no channel
                    zero |= bool((flat.amax(1) == 0).any())
            else:
                zero = own == "weight" and bool((parameter == 0).any())
            if zero:
                found.append(f"{path}.{own}" if path else own)
    return found


def find_width(study: Study) -> Finding:
    """The finding `width`: the network with 40 % of its channels gone, counted and timed; no word about accuracy."""
    model = study.model
    if study.of_transformers:
        why = "it takes training from the start, and this is a model of transformers that has its weights"
        return Finding("width", "not measured because", why)
    total = sum(parameter.numel() for parameter in model.parameters())
    if total > LARGEST:
        return Finding("width", "not measured because", f"{total:,} parameters are more than the {LARGEST:,} looked at")
    example = study.largest.inputs
    try:
        graph = ChannelGraph.build(duplicate(model), example)
        groups = [group for group in graph.removable if group.kind in ("inner", "heads")]
        groups = list(Channels.of(model, graph, groups).fitting().groups.values())
    except (RuntimeError, TypeError) as error:
        return Finding("width", "not measured because", _said(error))
    keep = {group.name: _first(group) for group in groups}
    keep = {name: mask for name, mask in keep.items() if not bool(mask.all())}
    if not keep:
        why = "no layer inside a block has channels that could be taken out"
        return Finding("width", "nothing here", why, 0.0)
    twin: Any = duplicate(model)
    shrink_(twin, graph, keep)
    return _compared(study, twin, keep, example)


def _first(group: ChannelGroup) -> Tensor:
    """Which channels stay when about `REMOVED` go, to the nearest width that training would end on."""
    size = step(group, WIDTHS)
    left = max(round((1 - REMOVED) * group.channels / size), 1) * size
    return torch.arange(group.channels, device="cpu") < left


def _compared(study: Study, twin: nn.Module, keep: dict[str, Tensor], example: Any) -> Finding:
    before, after = measure.count(study.model, example), measure.count(twin, example)
    batch = study.largest
    run = measure.interleave(
        {"now": lambda: batch.run(study.model), "smaller": lambda: batch.run(twin)}, reps=9, seconds=6.0
    )
    gone = sum(int((~mask).sum()) for mask in keep.values())
    share = gone / sum(len(mask) for mask in keep.values())
    found = (
        f"with {share:.0%} of the channels of {len(keep)} layers gone there would be {after.parameters:,} of "
        f"{before.parameters:,} parameters and {after.flops / before.flops:.0%} of the FLOPs: counted on a copy that "
        "was cut. Which channels can go, and what that costs, training from the start finds out"
    )
    ratio, noise = told(run, "smaller")
    how = f"the network and the copy, equally cut in all of these layers, took turns{noise}"
    gain = Gain(ratio, study.a_pass, how)
    places = tuple(Place(name, float((~mask).float().mean())) for name, mask in keep.items())
    return Finding("width", verdict_of(gain), found, share, gain, places, _train(study))


def _train(study: Study) -> str:
    if study.name is not None:
        names = f"--model {shlex.quote(study.name)} --data {shlex.quote(str(study.source))}"
        return f"gossamer train {names} --method chase --channel-sparsity {REMOVED:g}"
    return (
        "import torch\nimport gossamer as gs\n\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)   # or yours, before training\n"
        "method = gs.training.Chase(model, optimizer, total_steps=1000, density=0.1, "
        f"channel_sparsity={REMOVED:g}, example_inputs=batches[0])"
    )
