"""How much faster a network runs when a share of all its channels is gone, skip streams included.

Weights are random: which channels go does not matter for speed, only how many are left in each layer. Every removable
group loses the same share, widths rounded up to what the hardware likes. Beside ours: the masked network (same zeros,
nothing removed) and Torch-Pruning at the same ratio and rounding.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from torch import nn

import gossamer as gs
from gossamer.bench import Settings

log = logging.getLogger(__name__)

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


ROUND = 16  # channels: a full AVX-512 register of fp32, and what tensor cores want in bf16


def lowest_channels(
    graph: gs.compaction.ChannelGraph, model: nn.Module, fraction: float, *, round_to: int = ROUND
) -> dict[str, torch.Tensor]:
    """Keep masks that drop about `fraction` of every removable group, smallest weights first.

    Widths go to the nearest multiple of `round_to`, up or down, so that the share removed overall stays near
    `fraction`; `share_removed` says what it came to.
    """
    tensors = dict(model.named_parameters())
    keep = {}
    for group in graph.removable:
        size = torch.zeros(group.channels)
        for member in group.members:
            if member.role == "writer" and member.tensor in tensors:
                weight = tensors[member.tensor].detach().movedim(member.axis, 0)
                size += weight.reshape(len(weight), -1).abs().sum(1)[member.index].sum(1)
        multiple = max(1, round_to // group.unit)
        left = max(multiple, round(group.channels * (1 - fraction) / multiple) * multiple)
        alive = torch.ones(group.channels, dtype=torch.bool)
        alive[torch.argsort(size, stable=True)[: max(0, group.channels - left)]] = False
        keep[group.name] = alive
    return keep


def share_removed(keep: dict[str, torch.Tensor]) -> float:
    """Channels removed over channels there were."""
    return 1 - sum(int(alive.sum()) for alive in keep.values()) / sum(alive.numel() for alive in keep.values())


def _torch_pruning(model: nn.Module, x: torch.Tensor, fraction: float, round_to: int) -> nn.Module | None:
    try:
        import torch_pruning as tp
    except ImportError:
        log.warning("Torch-Pruning is not installed, so its rows are left out: pip install 'gossamer[bench]'")
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
    found = {"dense": model, "masked": masked, "compact": small.model}
    with torch.enable_grad():
        theirs = _torch_pruning(model, x, fraction, round_to=ROUND)
    if theirs is not None:
        found["torch-pruning"] = theirs
    return found, share_removed(keep)


def rows(settings: Settings) -> list[dict[str, Any]]:
    """One row per model, share of channels removed, batch and memory format."""
    side = 64 if settings.quick else 224
    out = []
    for name in ("resnet50", "vgg16"):
        for fraction in (0.4, 0.5):
            torch.manual_seed(0)
            model = gs.models.build(name, input_shape=(3, side, side), classes=1000).eval().to(settings.device)
            nets, share = _candidates(model, torch.randn(1, 3, side, side, device=settings.device), fraction)
            for batch in (1, 8):
                for layout, memory_format in FORMATS.items():
                    x = torch.randn(batch, 3, side, side, device=settings.device).to(memory_format=memory_format)
                    calls = {}
                    for key, net in nets.items():
                        net = net.to(memory_format=memory_format)  # type: ignore[call-overload]  # torch's stubs lack this form
                        calls[key] = lambda net=net, x=x: net(x)
                    with torch.inference_mode():
                        run = gs.measure.interleave(
                            calls, baseline="dense", reps=min(settings.reps, 9), warmup=1, seconds=60
                        )
                    counts = {key: gs.measure.count(net, x).to_dict() for key, net in nets.items()}
                    out.append(
                        {
                            "model": name, "removed": fraction, "batch": batch, "layout": layout,
                            "share_removed": share, "counts": counts, **run.to_dict(),
                        }
                    )  # fmt: skip
    return out


def refusal_rows(settings: Settings) -> list[dict[str, Any]]:
    """What `gs.compact` answers when almost nothing would be removed."""
    side = 64 if settings.quick else 224
    out = []
    for fraction in (0.01, 0.05, 0.4):
        torch.manual_seed(0)
        model = gs.models.build("resnet50", input_shape=(3, side, side), classes=1000).eval().to(settings.device)
        x = torch.randn(1, 3, side, side, device=settings.device)
        graph = gs.compaction.ChannelGraph.build(model, x)
        # Not rounded: awkward widths are what a user who removes 5 % gets.
        gs.compaction.zero_channels_(model, graph, lowest_channels(graph, model, fraction, round_to=1))
        small = gs.compact(model, x, round_to=1)
        out.append({"model": "resnet50", "removed": fraction, "refused": small.refused})
    return out
