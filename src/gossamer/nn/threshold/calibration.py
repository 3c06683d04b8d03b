"""Training-free activation sparsity: thresholds from a little data, after which decoding reads fewer weights (TEAL)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Literal, get_args

from torch import Tensor, nn

from gossamer.nn.evaluating import evaluating
from gossamer.nn.threshold.allocation import Block, blocks_of, greedy, kept
from gossamer.nn.threshold.applying import apply_thresholds
from gossamer.nn.threshold.experts import POINTS, close_experts, open_experts
from gossamer.nn.threshold.gated_feed_forward import check_sparsity
from gossamer.nn.threshold.linear import Prefill, check_prefill, check_reorder
from gossamer.nn.threshold.magnitudes import Magnitudes
from gossamer.nn.threshold.places import Layers, Place, checked, places_of
from gossamer.nn.threshold.report import ThresholdReport
from gossamer.nn.threshold.thresholded import Thresholded
from gossamer.ops.gemv import shrink
from gossamer.wrappers import seen_through, unwrap

Allocation = Literal["uniform", "greedy"]
Forward = Callable[[nn.Module, Any], Any]


def threshold(
    model: nn.Module,
    data: Any,
    sparsity: float,
    *,
    allocation: Allocation = "uniform",
    layers: Layers = None,
    prefill: Prefill = "dense",
    reorder: bool = False,
    passes: int = 2,
    step: float = 0.05,
    forward: Forward | None = None,
) -> ThresholdReport:
    """Let a model's linears leave out small inputs, so that decoding can read a share `sparsity` less. In place.

    A few batches of data show how large the inputs of each nn.Linear are; its threshold is the quantile of their
    magnitude. The linears become `ThresholdLinear` (the same objects and Parameters, the same state_dict); a
    `GatedFeedForward` gets its threshold on the activated gate instead, where it governs two of its three products.
    Fused experts of transformers get two in each module, on what their up and down products read. Nothing is trained.
    What it costs in quality is yours to measure (with prefill="threshold").

    Decoding gains nothing until the weights lie by input channel, so that those of a left-out input are a piece of
    memory that is never touched: `reorder=True`. It then takes close to (1 - sparsity) of the time spent on these
    weights.

    Args:
        model: on any device; run in eval mode, left in its own. Of one that is wrapped (compiled, by DDP) the model
            inside, whose names it has.
        data: an iterable of batches, or one batch. A batch is a tensor, a tuple of arguments, or a mapping of keyword
            arguments (as tokenizers return). For anything else, such as (inputs, labels), say `forward`.
        sparsity: share of inputs to leave out, in [0, 1). With "greedy" the share of bytes, over each block.
        allocation: "uniform" gives every linear the same sparsity. "greedy" divides each transformer block's among
            its linears, 5 % (`step`) of the block's bytes at a time to the one after which the block's output moves
            least, and keeps that where it moves less than with "uniform". It runs each block
            linears * sparsity / step times on the data, so give it little.
        layers: names or patterns ("*.mlp.*") of linears, or a function (name, module) -> bool. None is all but the
            model's output layer as transformers define it.
        prefill: what calls with more than 8 rows do, see `ThresholdLinear`.
        reorder: store the weights by input channel, see `ThresholdLinear`: the same Parameters with other strides. For
            models that only decode from now on; `report.undo()` stores them as they were.
        passes: over the data. The first sees the dense model; each later one sees it with the thresholds of the one
            before, and corrects them for what left-out inputs change further up.
        step: of "greedy", a share of a block's bytes in (0, 1].
        forward: how to call the model on a batch.

    Returns:
        a `ThresholdReport`: per place its threshold, expected sparsity and bytes; what stays dense and why;
        `.thresholds` to save, `.stats()` of what decoding did since, `.undo()`.

    Raises:
        ValueError: sparsity outside [0, 1); empty data; a batch that the model does not take; NaN in an activation; no
        linear to convert. TypeError: naming the argument. The model is then what it was.

    Source: Liu et al., "Training-free activation sparsity in large language models" (TEAL), ICLR 2025, section 4 and
    algorithm 1; thresholds on gates: Lee et al., "CATS", 2024.

    >>> model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))
    >>> report = threshold(model, torch.randn(512, 64), 0.5)
    >>> [round(row.sparsity, 2) for row in report.rows]
    [0.5, 0.5]
    >>> model(torch.randn(1, 64)).shape, round(report.sparsity, 2)
    (torch.Size([1, 64]), 0.5)
    """
    check_sparsity(sparsity)
    check_prefill(prefill)
    check_reorder(reorder)
    if allocation not in get_args(Allocation):
        raise ValueError(f"allocation must be one of {list(get_args(Allocation))}, got {allocation!r}")
    if passes < 1:
        raise ValueError(f"passes must be at least 1, got {passes}")
    if not 0 < step <= 1:
        raise ValueError(f"step must be in (0, 1], got {step}")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    model = unwrap(model)
    close = open_experts(model, lambda name: True)
    try:
        values, seen, left = _calibrated(model, data, sparsity, allocation, layers, passes, step, forward)
        report = apply_thresholds(model, values, prefill=prefill, reorder=reorder)
    except Exception:
        close()
        raise
    close_experts(model, lambda name: not any(f"{name}.{point}" in values for point in POINTS))
    report.rows = tuple(replace(row, sparsity=seen[row.name].share(row.threshold)) for row in report.rows)
    report.left = left
    report.undo_last(close)
    return report


def _calibrated(
    model: nn.Module, data: Any, sparsity: float, allocation: Allocation, layers: Layers, passes: int, step: float,
    forward: Forward | None,
) -> tuple[dict[str, float], dict[str, Magnitudes], dict[str, str]]:  # fmt: skip
    """The threshold of each place, what was seen there, and what stays dense."""
    layers = checked(model, layers)
    places, left = places_of(model, layers)
    batches = _batches(data)
    blocks = blocks_of(model, places) if allocation == "greedy" else []
    with evaluating(model), seen_through(model), _dense(places):
        seen = _observe(model, batches, places, forward, blocks=blocks)
        for place in places:
            if not seen[place.name].total:
                left[place.name] = "the data never reached it"
        places = [place for place in places if seen[place.name].total]
        if not places:
            raise ValueError("data never reached an nn.Linear of the model")
        share = {place.name: float(sparsity) for place in places}
        for block in blocks:
            block.places = [place for place in block.places if place.name in share]
            share |= greedy(block, seen, sparsity, step)
        values = _values(seen, share)
        for _ in range(passes - 1):
            seen = _observe(model, batches, places, forward, values=values)
            values = _values(seen, share)
    return values, seen, left


def _batches(data: Any) -> list[Any]:
    if isinstance(data, (Tensor, Mapping)):
        return [data]
    if isinstance(data, str) or not isinstance(data, Iterable):
        raise TypeError(f"data must be a batch or an iterable of batches, got {type(data).__name__}")
    batches = list(data)
    if not batches:
        raise ValueError("data is empty")
    return batches


def _run(model: nn.Module, batch: Any, at: int, forward: Forward | None) -> None:
    try:
        if forward is not None:
            forward(model, batch)
        elif isinstance(batch, Tensor):
            model(batch)
        elif isinstance(batch, Mapping):
            model(**batch)
        elif isinstance(batch, (tuple, list)):
            model(*batch)
        else:
            raise TypeError(f"data must hold tensors, tuples or mappings, got {type(batch).__name__}; or give forward")
    except _NaN as error:
        raise ValueError(f"data: {error} in batch {at}") from None
    except Exception as error:
        if isinstance(error, TypeError) and str(error).startswith("data must"):
            raise
        raise ValueError(
            f"data: the model does not take batch {at}, a {_kind(batch)} ({type(error).__name__}: {error}); "
            f"give forward=(model, batch) -> ... to call it otherwise"
        ) from error


def _kind(batch: Any) -> str:
    if isinstance(batch, Tensor):
        return f"tensor {tuple(batch.shape)} of {batch.dtype}"
    if isinstance(batch, Mapping):
        return f"mapping with {list(batch)}"
    return f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, (tuple, list)) else type(batch).__name__


class _NaN(Exception):
    """Found in an activation while the model runs."""


def _observe(
    model: nn.Module,
    batches: list[Any],
    places: list[Place],
    forward: Forward | None,
    *,
    values: Mapping[str, float] | None = None,
    blocks: Iterable[Block] = (),
) -> dict[str, Magnitudes]:
    """Run the data, with these thresholds in force; the magnitudes at each place, and the calls of each block."""
    seen = {place.name: Magnitudes() for place in places}

    def watch(place: Place) -> Callable[[Tensor], Tensor | None]:
        def change(x: Tensor) -> Tensor | None:
            try:
                seen[place.name].add(x)
            except ValueError as error:
                raise _NaN(f"{place.name!r}: {error}") from None
            return shrink(x, values[place.name]) if values is not None else None

        return change

    with ExitStack() as hooks:
        for place in places:
            hooks.callback(place.hook(watch(place)).remove)
        for block in blocks:
            hooks.callback(block.module.register_forward_pre_hook(_recorder(block), with_kwargs=True).remove)
        for at, batch in enumerate(batches):
            _run(model, batch, at, forward)
    return seen


def _recorder(block: Block) -> Callable[..., None]:
    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        block.calls.append((kept(args), kept(kwargs)))

    return record


def _values(seen: Mapping[str, Magnitudes], share: Mapping[str, float]) -> dict[str, float]:
    return {name: seen[name].threshold(part) if part else 0.0 for name, part in share.items()}


@contextmanager
def _dense(places: list[Place]) -> Any:
    """Thresholds that are in the model already, switched off."""
    modules = [place.module for place in places if isinstance(place.module, Thresholded)]
    values = [module.threshold for module in modules]
    for module in modules:
        module.threshold = 0.0
    try:
        yield
    finally:
        for module, value in zip(modules, values, strict=True):
            module.threshold = value
