"""Return a smaller dense model that computes exactly what a model with dead channels computes.

graph -> dead channels -> shrink a copy -> same structure, same outputs, lower latency, or an honest refusal
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gossamer import measure
from gossamer.wrappers import strip_, unwrap, unwrap_optimizer

from .borrow import duplicate, refuse_shards
from .equality import InexactError, default_tolerance, difference, outputs, runs
from .fold import fold_
from .graph import ChannelGraph
from .liveness import Liveness, analyse
from .optimizer import check_state, copied
from .result import Compact, numbered
from .rewrite import Kept, kept_positions, shrink_
from .rounding import preferred_multiple, rounded, step
from .structure import StructureError, culprits
from .verdict import CompactWarning, timed, told, why_nothing
from .watchers import quiet


@torch.inference_mode(False)
def compact(
    model: nn.Module,
    example_inputs: Any,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    keep: dict[str, Tensor] | None = None,
    round_to: int | str | None = "auto",
    check_latency: bool = True,
    tolerance: float | None = None,
    fold: bool = False,
    route: str = "auto",
) -> Compact:
    """Remove every dead channel from a copy of `model` and prove that the copy computes the same.

    Args:
        model: any module that can be captured, in any number of wrappers (DistributedDataParallel, DataParallel,
            torch.compile, AveragedModel, Fabric's, a LightningModule around one network), prepared by Accelerate or
            under autocast or not, which is compared in full precision; neither it nor `optimizer` is changed.
        example_inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments.
        optimizer: copied over the smaller parameters, with the same hyperparameters and sliced state, without hooks,
            and without what wraps it (`gossamer.wrappers.unwrap_optimizer`).
        keep: group name -> bool tensor [channels]; only these groups lose channels, and only channels marked False.
        round_to: keep dead channels until widths are multiples of this; "auto" = 16 (AVX-512, CUDA) or 8, None = 1.
        check_latency: time both models interleaved on `example_inputs`, and refuse if the smaller is clearly slower.
        tolerance: largest relative difference of any output; None = 1e-5 (float32) or 1e-12 (float64).
        fold: also remove channels that are constant but not zero, where every reader can take the constant into its
            bias (exact to rounding, in eval mode only).
        route: how to capture, see `ChannelGraph.build`.

    Returns:
        A `Compact`. Groups whose removal would break or change the model stay and say why in `explain()`. When nothing
        was removed, `refused` says why and a `CompactWarning` repeats it.

    Raises:
        CaptureError: the model cannot be captured.
        TypeError: not a module, or its parameters are cut into shards (FSDP).
        ValueError: `keep` removes a live channel, bad arguments, or optimizer state that cannot be sliced.
        InexactError: two forwards of the unchanged model already differ.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
    >>> _ = net[2].weight.data[:, 3:].zero_()
    >>> small = compact(net, torch.randn(5, 4), round_to=1, check_latency=False)
    >>> small.model[0].weight.shape, small.report["channels"]
    (torch.Size([3, 4]), {'0': {'before': 8, 'after': 3}})
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"tolerance must be at least 0, got {tolerance}")
    model = unwrap(model)
    optimizer = None if optimizer is None else unwrap_optimizer(optimizer)
    refuse_shards(model)
    multiple = _multiple(round_to, model)
    source = strip_(duplicate(model))
    graph = ChannelGraph.build(source, example_inputs, route)
    example_inputs = graph.example_inputs
    watches = graph.flow.capture.watches
    expected, again = runs(source, example_inputs, watches, 2)
    bound = default_tolerance(graph.flow.capture) if tolerance is None else tolerance
    if difference(expected, again) > bound:
        raise InexactError(f"{type(model).__name__} gives two different outputs for one input: nothing can be verified")

    liveness = analyse(graph, source, training=source.training and not fold)
    if fold:
        fold_(source, graph.flow, liveness)
        liveness = analyse(graph, source, training=False)
    wanted = _wanted(source, graph, liveness, keep, multiple)
    if optimizer is not None:
        touched, _ = kept_positions(source, graph, wanted)
        names = [name for name, _ in source.named_parameters()]
        check_state(optimizer, {n: p for n, p in zip(names, model.parameters(), strict=True) if n in touched})

    def copies(net: nn.Module) -> tuple[nn.Module, torch.optim.Optimizer | None]:
        twin = strip_(duplicate(net))
        return twin, None if optimizer is None else copied(optimizer, model, twin)

    def attempt(masks: dict[str, Tensor]) -> Result:
        twin, twin_optimizer = copies(source)
        kept = shrink_(twin, graph, masks, twin_optimizer)
        error = difference(expected, outputs(twin, example_inputs, watches))
        if not error <= bound:
            raise InexactError(f"removing it changes the outputs by {error:.2g}, more than {bound:.2g}")
        return twin, twin_optimizer, kept, error

    (twin, twin_optimizer, kept, error), unfit = _largest(wanted, attempt)
    final = {name: mask for name, mask in wanted.items() if name not in unfit}
    latency = timed(source, twin, graph.example_inputs, watches) if kept and check_latency else None
    refused = None if kept else why_nothing(graph, liveness, unfit, multiple)
    if latency is not None and latency["verdict"] == "slower":
        refused = f"latency would rise: {told(latency)}"
        final, kept, error = {}, Kept({}), 0.0
        twin, twin_optimizer = copies(model)
    _warn(type(model).__name__, refused, latency)
    report = _report(source, twin, graph.example_inputs, graph, final, error, latency)
    return Compact(twin, kept, report, twin_optimizer, refused, graph, final, liveness.dead, liveness.constants, unfit)


def _warn(name: str, refused: str | None, latency: dict[str, Any] | None) -> None:
    """Say that nothing was removed, or that it could not be told whether it was worth it."""
    text = None
    if refused is not None:
        text = f"{name} was not compacted, nothing was removed: {refused}"
    elif latency is not None and latency["verdict"] == "inconclusive":
        text = f"{name} is compact, but no faster that could be told: {told(latency)}"
    if text is not None:
        warnings.warn(text, CompactWarning, stacklevel=4)  # at the call of `compact`, through inference_mode's wrapper


Result = tuple[nn.Module, torch.optim.Optimizer | None, Kept, float]


def _multiple(round_to: int | str | None, model: nn.Module) -> int:
    if round_to == "auto":
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        return preferred_multiple(device)
    if round_to is None:
        return 1
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise ValueError(f'round_to must be "auto", None or a positive integer, got {round_to!r}')
    return round_to


def _wanted(
    model: nn.Module, graph: ChannelGraph, liveness: Liveness, keep: dict[str, Tensor] | None, multiple: int
) -> dict[str, Tensor]:
    """The channels that stay, for every group that loses some."""
    if keep is not None:
        kept_positions(model, graph, keep)  # names and shapes
        for name, mask in keep.items():
            alive = ~mask.cpu() & ~liveness.dead.get(name, torch.zeros_like(mask, device="cpu"))
            if bool(alive.any()):
                raise ValueError(
                    f"keep[{name!r}] removes {int(alive.sum())} channels that are not dead: {numbered(alive)}; "
                    "zero them first (zero_channels_), or use shrink_ to remove live channels"
                )
    masks = {}
    for group in graph.removable:
        stay = ~liveness.dead[group.name]
        if keep is not None:
            stay = keep[group.name].cpu().clone() if group.name in keep else torch.ones_like(stay)
        stay = rounded(group, stay, step(group, multiple), model)
        if not bool(stay.all()):
            masks[group.name] = stay
    return masks


def _largest(
    wanted: dict[str, Tensor], attempt: Callable[[dict[str, Tensor]], Result]
) -> tuple[Result, dict[str, str]]:
    """Shrink as many groups as go together; the others with the reason each failed alone."""
    unfit: dict[str, str] = {}
    errors = (StructureError, InexactError)
    while True:
        masks = {name: mask for name, mask in wanted.items() if name not in unfit}
        try:
            return attempt(masks), unfit
        except errors as error:
            found = culprits(list(masks), lambda names: attempt({name: wanted[name] for name in names}), errors)
            # Each fits alone but not all together: give up the last one and try again.
            unfit |= found or {list(masks)[-1]: str(error)}


def _report(
    model: nn.Module,
    twin: nn.Module,
    example_inputs: Any,
    graph: ChannelGraph,
    final: dict[str, Tensor],
    error: float,
    latency: dict[str, Any] | None,
) -> dict[str, Any]:
    watches = graph.flow.capture.watches
    with quiet(model, watches), quiet(twin, watches):
        before, after = (measure.count(net, example_inputs).to_dict() for net in (model, twin))
    report: dict[str, Any] = {
        name: {"before": before[name], "after": after[name]} for name in ("parameters", "bytes", "flops")
    }
    report["channels"] = {
        group.name: {
            "before": group.channels,
            "after": int(final[group.name].sum()) if group.name in final else group.channels,
        }
        for group in graph.removable
    }
    return report | {"error": error, "latency": latency, "inputs": measure.described(example_inputs)}
