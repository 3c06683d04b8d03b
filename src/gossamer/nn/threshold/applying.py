"""Put known thresholds into a model: a user's own, or those that its config was saved with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from gossamer.nn.skip.memory_order import reorder_
from gossamer.nn.threshold.experts import (
    POINTS,
    ThresholdExperts,
    ThresholdPoint,
    close_experts,
    open_experts,
)
from gossamer.nn.threshold.gated_feed_forward import GatedFeedForward
from gossamer.nn.threshold.linear import (
    Prefill,
    ThresholdLinear,
    check_prefill,
    check_reorder,
    store_by_input,
)
from gossamer.nn.threshold.places import Place, checked, places_of
from gossamer.nn.threshold.record import entries_of, erase, place_of, why_not_saved, write
from gossamer.nn.threshold.report import Row, ThresholdReport
from gossamer.nn.threshold.thresholded import check_threshold
from gossamer.wrappers import unwrap

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setting:
    """What a place gets."""

    threshold: float
    prefill: Prefill = "dense"
    reorder: bool = False


def apply_thresholds(
    model: nn.Module, thresholds: Mapping[str, float], *, prefill: Prefill = "dense", reorder: bool = False
) -> ThresholdReport:
    """Put thresholds, such as `report.thresholds` of an earlier run, into a model without data. In place.

    Args:
        model: with these linears, or GatedFeedForward blocks.
        thresholds: name of the module -> threshold, at least 0.
        prefill, reorder: as in `threshold`.

    Returns:
        a `ThresholdReport` whose expected sparsity is unknown (NaN).

    A model of transformers saves them in its config, as after `threshold`.

    Raises:
        ValueError, TypeError: naming the module; the model is then what it was.

    >>> model = nn.Sequential(nn.Linear(4, 4))
    >>> apply_thresholds(model, {"0": 0.5}).thresholds
    {'0': 0.5}
    """
    check_prefill(prefill)
    check_reorder(reorder)
    if not isinstance(thresholds, Mapping):
        raise TypeError(f"thresholds must be a mapping, got {type(thresholds).__name__}")
    if not thresholds:
        raise ValueError("thresholds is empty")
    for name, value in thresholds.items():
        check_threshold(f"thresholds[{name!r}]", value)
    model = unwrap(model)
    close = open_experts(model, lambda name: any(f"{name}.{point}" in thresholds for point in POINTS))
    try:
        checked(model, thresholds)
        places, left = places_of(model, lambda name, module: name in thresholds)
        for name, why in left.items():
            raise ValueError(f"thresholds names {name!r}, which stays dense: {why}")
    except Exception:
        close()
        raise
    settings = {name: Setting(float(value), prefill, reorder) for name, value in thresholds.items()}
    return _put(model, places, settings, close)


def restore_thresholds(model: nn.Module) -> ThresholdReport:
    """Put the thresholds into a model of transformers that its config was saved with. In place.

    `from_pretrained` does this by itself where gossamer was imported before; call it for a model that was loaded
    without, when transformers warned of an unknown method "gossamer_thresholds".

    Args:
        model: from `from_pretrained`, with a head or without one.

    Returns:
        a `ThresholdReport` whose expected sparsity is unknown (NaN); `left` names what was saved and is not in this
        model.

    Raises:
        ValueError: the config has no thresholds, or none of what it names is in the model.
    """
    model = unwrap(model)
    entries = entries_of(model)
    if not entries:
        raise ValueError(
            f"model ({type(model).__name__}) has no config with thresholds: it was saved without, or is no model of "
            "transformers; give saved numbers to gs.nn.apply_thresholds"
        )
    saved = [place_of(model, name.rpartition(".")[0]) for name in entries if name.rpartition(".")[2] in POINTS]
    close = open_experts(model, lambda name: name in saved)
    names = {name: place_of(model, name) for name in entries}
    left = {name: "it is not in this model" for name, here in names.items() if here is None}
    found = {here: entries[name] for name, here in names.items() if here is not None}
    if not found:
        raise ValueError(f"model ({type(model).__name__}) has none of the modules with thresholds: {list(entries)}")
    for name, entry in found.items():
        if entry.get("gated") and not isinstance(block := model.get_submodule(name), GatedFeedForward):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, GatedFeedForward.from_dense(block))
    settings = {
        name: Setting(float(entry["threshold"]), entry.get("prefill", "dense"), bool(entry.get("reorder", False)))
        for name, entry in found.items()
    }
    places, dense = places_of(model, lambda name, module: name in settings)
    report = _put(model, places, settings, close)
    report.left = left | dense
    for name, why in report.left.items():
        _log.warning("%s has lost its threshold: %s", name, why)
    return report


def remove_thresholds(model: nn.Module) -> tuple[str, ...]:
    """Take all thresholds out of a model, whoever put them there, and out of its config. In place.

    A `GatedFeedForward` stays one, with a threshold of 0.

    Returns:
        the names of the modules that had one.

    >>> model = nn.Sequential(nn.Linear(4, 4))
    >>> _ = apply_thresholds(model, {"0": 0.5})
    >>> remove_thresholds(model), type(model[0]).__name__
    (('0',), 'Linear')
    """
    names = []
    model = unwrap(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, ThresholdExperts):
            for stack, strides in zip(module.stacks(), module.strides, strict=True):
                reorder_(stack, strides)
            continue
        if isinstance(module, ThresholdLinear):
            module.revert()
        elif isinstance(module, ThresholdPoint):
            pass
        elif isinstance(module, GatedFeedForward) and module.threshold:
            module.threshold = 0.0
        else:
            continue
        names.append(name)
    close_experts(model)
    erase(model)
    return tuple(names)


def _put(
    model: nn.Module, places: list[Place], settings: Mapping[str, Setting], close: Callable[[], None]
) -> ThresholdReport:
    undo: list[Callable[[], object]] = [close]
    undo += [
        experts.store_by_input()
        for experts in {place.experts for place in places if settings[place.name].reorder}
        if experts is not None
    ]
    entries: dict[str, dict[str, Any]] = {}
    for place in places:
        setting = settings[place.name]
        undo.append(_set(place.module, setting.threshold, setting.prefill, setting.reorder))
        entries[place.name] = asdict(setting) | {"gated": isinstance(place.module, GatedFeedForward)}
        module: Any = place.module
        module.saved_as = entries[place.name]
    undo.append(write(model, entries))
    rows = tuple(
        Row(place.name, settings[place.name].threshold, float("nan"), place.bytes, place.skippable) for place in places
    )
    report = ThresholdReport(rows, {}, {place.name: place.module for place in places}, undo)
    report.unsaved = why_not_saved(model)
    if report.unsaved is not None:
        _log.warning("%s", report.unsaved)
    return report


def _set(module: nn.Module, value: float, prefill: Prefill, reorder: bool) -> Callable[[], object]:
    """Give a module its threshold and count anew; return what takes it away."""
    if not isinstance(module, (GatedFeedForward, ThresholdLinear, ThresholdPoint)):
        assert isinstance(module, nn.Linear)
        return ThresholdLinear.convert(module, value, prefill, reorder=reorder).revert
    module.start_counting(module._kept.device)
    changed: dict[str, Any] = {"threshold": value}
    if not isinstance(module, GatedFeedForward):
        changed["prefill"] = prefill
    # The matrices of experts are stored by input together, and not here.
    stored: Any = module.down_proj if isinstance(module, GatedFeedForward) else module
    linear = not isinstance(module, ThresholdPoint)
    before = {name: getattr(module, name) for name in (*changed, *(("reorder",) if linear else ()))}
    strides = stored.weight.stride() if linear else None
    saved_as, module.saved_as = module.saved_as, None  # what was saved so far stays as it is, for the way back
    for name, new in changed.items():
        setattr(module, name, new)
    if reorder and not isinstance(module, ThresholdPoint):
        module.reorder = True
        store_by_input(stored)

    def undo() -> None:
        module.saved_as = None
        for name, old in before.items():
            setattr(module, name, old)
        module.saved_as = saved_as
        if strides is not None:
            reorder_(stored.weight, strides)

    return undo
