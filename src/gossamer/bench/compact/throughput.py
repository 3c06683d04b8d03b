"""How much faster a network runs when a share of all its channels is gone, skip streams included.

Weights are random: which channels go does not matter for speed, only how many are left in each layer. Every removable
group loses the same share, widths rounded up to what the hardware likes. Beside ours: the masked network (same zeros,
nothing removed) and Torch-Pruning at the same ratio and rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from itertools import product

import torch
from torch import nn

import gossamer as gs
from gossamer import extras
from gossamer.bench.cells import milliseconds, ratio, value
from gossamer.bench.compact.channels import (
    COMPACT,
    CONTROL,
    DENSE,
    ROUND,
    flops,
    lowest_channels,
    share_removed,
)  # fmt: skip
from gossamer.bench.section import Row, Section, Settings, Table

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
PRUNING, MASKED = "torch-pruning", "masked"


def _torch_pruning(model: nn.Module, x: torch.Tensor, fraction: float, round_to: int) -> nn.Module | None:
    tp = extras.compared("torch_pruning", "Torch-Pruning", "bench")
    if tp is None:
        return None
    pruned = copy.deepcopy(model)
    head = [m for m in pruned.modules() if isinstance(m, nn.Linear)][-1]
    pruner = tp.pruner.BasePruner(
        pruned, x, importance=tp.importance.MagnitudeImportance(p=1), pruning_ratio=fraction,
        ignored_layers=[head], round_to=round_to,
    )  # fmt: skip
    pruner.step()
    return pruned.eval()


def _candidates(model: nn.Module, x: torch.Tensor, fraction: float) -> tuple[dict[str, nn.Module], float]:
    graph = gs.compaction.ChannelGraph.build(model, x)
    masked = copy.deepcopy(model)
    keep = lowest_channels(graph, masked, fraction)
    gs.compaction.zero_channels_(masked, graph, keep)
    small = gs.compact(masked, x, check_latency=False)
    found = {DENSE: model, MASKED: masked, COMPACT: small.model}
    with torch.enable_grad():
        theirs = _torch_pruning(model, x, fraction, round_to=ROUND)
    if theirs is not None:
        found[PRUNING] = theirs
    return found, share_removed(keep)


def rows(settings: Settings) -> Iterator[Row]:
    """One row per model, share of channels removed, batch and memory format."""
    side = 64 if settings.quick else 224
    for name, fraction in product(("resnet50", "vgg16"), (0.4, 0.5)):
        torch.manual_seed(0)
        model = gs.models.build(name, input_shape=(3, side, side), classes=1000).eval().to(settings.device)
        nets, share = _candidates(model, torch.randn(1, 3, side, side, device=settings.device), fraction)
        for batch, (layout, memory_format) in product((1, 8), FORMATS.items()):
            x = torch.randn(batch, 3, side, side, device=settings.device).to(memory_format=memory_format)
            calls = {}
            for key, net in nets.items():
                net = net.to(memory_format=memory_format)  # type: ignore[call-overload]  # torch's stubs lack this form
                calls[key] = partial(net, x)
            with torch.inference_mode():
                run = gs.measure.interleave(calls, baseline=DENSE, reps=min(settings.reps, 9), warmup=1, seconds=60)
            counts = {key: gs.measure.count(net, x).to_dict() for key, net in nets.items()}
            yield {
                "model": name, "removed": fraction, "batch": batch, "layout": layout,
                "share_removed": share, "counts": counts, **run.to_dict(),
            }  # fmt: skip


COLUMNS = (
    ("model", value("model")), ("channels removed", value("share_removed", ".1%")), ("batch", value("batch")),
    ("layout", value("layout")), ("dense ms", milliseconds(digits=1)), (COMPACT, ratio(COMPACT)),
    ("FLOPs", flops(COMPACT)), ("Torch-Pruning", ratio(PRUNING)), ("its FLOPs", flops(PRUNING)),
    ("masked only", ratio(MASKED)), CONTROL,
)  # fmt: skip


SECTION = Section(rows, Table(COLUMNS))
