"""One token at a time: weights that need not be read, because they meet zeros or small activations."""

from __future__ import annotations

from collections import defaultdict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer import measure
from gossamer.nn import ThresholdLinear
from gossamer.nn.threshold.places import places_of
from gossamer.profile.findings import Finding, Place, combined, verdict_of
from gossamer.profile.study import Study, patterns
from gossamer.profile.zeros import LEAST

GRID = tuple(tenths / 20 for tenths in range(1, 19))
CACHED = 1 << 26
"""Bytes of weights after which a layer's are not in a cache any more when its turn comes again."""
TURNS = 24
"""Calls after which the tuner of a layer has chosen."""

Layers = dict[str, nn.Linear]


def find_decoding(study: Study) -> Finding:
    """The finding `decoding`: exact zeros that linear layers read; their weights need not be read for a token."""
    layers = _layers(study, "decoding")
    if isinstance(layers, Finding):
        return layers
    inputs = study.seen.inputs
    share = sum(inputs[name].zeros for name in layers) / sum(inputs[name].total for name in layers)
    taken = {name: module for name, module in layers.items() if inputs[name].share >= LEAST}
    if not taken:
        found = f"{share:.1%} of what {len(layers)} linear layers read are zeros"
        return Finding("decoding", "nothing here", found, share)
    found = f"{share:.1%} of what {len(layers)} linear layers read are zeros; {len(taken)} read {LEAST:.0%} or more"
    places = _timed(study, taken, dict.fromkeys(taken, 0.0), {name: inputs[name].share for name in taken})
    how = "these layers were timed with and without the weights behind zeros, one row; results are those of dense"
    gain = combined(places, study.decoding.base, how)
    return Finding("decoding", verdict_of(gain), found, share, gain, tuple(places), _lines(0.0, list(taken), layers))


def find_small(study: Study) -> Finding:
    """The finding `small`: inputs so small that a layer's output hardly moves without them (TEAL)."""
    layers = _layers(study, "small")
    if isinstance(layers, Finding):
        return layers
    limit = study.max_error
    errors = {name: _errors(study.seen.inputs[name].rows, module.weight) for name, module in layers.items()}
    weight = {name: module.weight.numel() for name, module in layers.items()}
    total = sum(weight.values())
    mean = [sum(errors[name][at] * weight[name] for name in layers) / total for at in range(len(GRID))]
    fitting = [share for share, error in zip(GRID, mean, strict=True) if error <= limit]
    if not fitting:
        found = f"without the smallest {GRID[0]:.0%} of their inputs, outputs of layers move by {mean[0]:.0%} already"
        return Finding("small", "nothing here", f"{found}, more than {limit:.0%}", 0.0)
    share = max(fitting)
    found = (
        f"without the smallest {share:.0%} of their inputs the outputs of {len(layers)} linear layers move by "
        f"{mean[GRID.index(share)]:.1%} of their length, in the mean (up to {limit:.0%} was asked for). What that does "
        'to the model\'s answers must be measured (prefill="threshold" does it in a pass)'
    )
    thresholds = {name: _threshold(study.seen.inputs[name].rows, share) for name in layers}
    left = {name: _left(study.seen.inputs[name].rows, thresholds[name]) for name in layers}
    places = _timed(study, layers, thresholds, left)
    gain = combined(places, study.decoding.base, "these layers were timed with and without these inputs, one row")
    return Finding("small", verdict_of(gain), found, share, gain, tuple(places), _lines(share, list(layers), layers))


def _layers(study: Study, kind: str) -> Layers | Finding:
    """The layers that may have thresholds, or why there is nothing to measure."""
    if not study.is_decoder:
        why = f"{type(study.model).__name__} is no causal language model of transformers, which writes token by token"
        return Finding(kind, "not measured because", why)
    if all(batch.ids is None for batch in study.batches):
        return Finding(kind, "not measured because", "no batch has token ids, from which a text could go on")
    try:
        places, _ = places_of(study.model, None)
    except ValueError as error:
        return Finding(kind, "not measured because", str(error))
    found: Layers = {}
    for place in places:
        seen = study.seen.inputs.get(place.name)
        if type(place.module) is nn.Linear and seen is not None and seen.rows is not None:
            found[place.name] = place.module
    if not found:
        return Finding(kind, "not measured because", "no layer that could leave inputs out is a plain nn.Linear")
    return found


def _errors(rows: Tensor | None, weight: Tensor) -> list[float]:
    """How far the output moves without the smallest share of inputs, for each share of `GRID`."""
    assert rows is not None
    x, w = rows.float(), weight.detach().float()
    whole = (x @ w.T).norm().clamp(min=1e-30)
    sizes = x.abs()
    ordered = sizes.flatten().sort().values
    thresholds = [ordered[min(int(share * len(ordered)), len(ordered) - 1)] for share in GRID]
    small = torch.cat([x * (sizes <= threshold) for threshold in thresholds])
    return ((small @ w.T).unflatten(0, (len(GRID), -1)).flatten(1).norm(dim=1) / whole).tolist()


def _threshold(rows: Tensor | None, share: float) -> float:
    assert rows is not None
    ordered = rows.float().abs().flatten().sort().values
    return float(ordered[min(int(share * len(ordered)), len(ordered) - 1)])


def _left(rows: Tensor | None, threshold: float) -> float:
    assert rows is not None
    return float((rows.float().abs() <= threshold).float().mean())


def _timed(study: Study, layers: Layers, thresholds: dict[str, float], share: dict[str, float]) -> list[Place]:
    """What each layer gains, one row at a time; layers of equal sizes take turns, so that weights come from memory."""
    alike: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, module in layers.items():
        alike[(module.in_features, module.out_features, round(10 * share[name]))].append(name)
    ratio: dict[str, float] = {}
    for names in alike.values():
        found = _ratio(study, {name: layers[name] for name in names}, thresholds)
        ratio |= dict.fromkeys(names, found)
    times = study.decoding.times.share
    places = [Place(name, share[name], times[name], ratio[name]) for name in layers]
    return sorted(places, key=lambda place: -(place.time or 0) * (1 - 1 / (place.alone or 1)))


def _ratio(study: Study, layers: Layers, thresholds: dict[str, float]) -> float:
    """How much faster the first of these layers are together; 1 where that is not clear."""
    weights: list[tuple[Tensor, Tensor, Tensor | None]] = []
    twins: list[ThresholdLinear] = []
    held = 0
    for name, module in layers.items():
        rows = study.seen.inputs[name].rows
        assert rows is not None
        weight, bias = module.weight.detach(), None if module.bias is None else module.bias.detach()
        weights.append((rows[len(rows) // 2][None], weight, bias))
        twins.append(_twin(weight, bias, thresholds[name]))
        held += weight.numel() * weight.element_size()
        if held > CACHED:
            break

    def dense() -> None:
        for x, weight, bias in weights:
            F.linear(x, weight, bias)

    def skipping() -> None:
        for (x, _, _), twin in zip(weights, twins, strict=True):
            twin(x)

    for _ in range(TURNS):
        skipping()
    run = measure.interleave({"dense": dense, "skip": skipping}, reps=9, sample=2e-3, seconds=0.5)
    return run["skip"].ratio if run.faster("skip") else 1.0


def _twin(weight: Tensor, bias: Tensor | None, threshold: float) -> ThresholdLinear:
    """A layer with the same numbers, stored by input channel."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.clone(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return ThresholdLinear.convert(linear, threshold, reorder=True)


def _lines(sparsity: float, names: list[str], layers: Layers) -> str:
    only = "" if len(names) == len(layers) else f", layers={patterns(names)}"
    return (
        "import gossamer as gs\n\n"
        f"report = gs.nn.threshold(model, batches, {sparsity:g}{only}, reorder=True)"
    )  # fmt: skip
