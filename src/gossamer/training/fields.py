"""What a saved state must look like before anything of it is used: each field by its name, value and expectation."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from gossamer.training.state import State


def check(saved: Mapping[str, Any], names: Mapping[str, Any]) -> None:
    """Raise ValueError for a field of `saved` that is missing or of another kind than the methods write.

    Args:
        saved: of any content.
        names: a state of the method that it is for, which has the fields.
    """
    for field in names:
        expect(field in saved or field in _LATER, field, "missing", "a field of every state")
    for field, (kind, expected) in _KINDS.items():
        if field in saved:
            expect(kind(saved[field]), field, saved[field], expected)
    for name, entry in saved["masks"].items():
        _check_bits(entry, f"masks[{name!r}]", entry.get("shape"))
        expect(isinstance(entry.get("axes"), Mapping), f"masks[{name!r}].axes", entry.get("axes"), "a dict")
        for axis, vector in entry["axes"].items():
            place = f"masks[{name!r}].axes[{axis!r}]"
            known = isinstance(axis, str) and axis.isdecimal() and int(axis) < len(entry["shape"])
            expect(known and isinstance(vector, Mapping), place, vector, "an axis of the mask")
            expect(vector.get("size") == entry["shape"][int(axis)], f"{place}.size", vector.get("size"), "its length")
            _check_bits(vector, place, [vector["size"]])
    for name, entry in (saved["channels"] or {}).items():
        for part in ("alive", "here"):
            numbers = entry.get(part)
            fits = isinstance(numbers, Tensor) and numbers.dtype == torch.int64 and numbers.dim() == 1
            fits = fits and bool((numbers >= 0).all()) and (part == "alive" or len(numbers) > 0)
            expect(fits, f"channels[{name!r}].{part}", numbers, "numbers of channels")
        cost = entry.get("cost", 1.0)
        expect(is_finite(cost) and cost > 0, f"channels[{name!r}].cost", cost, "a positive number")


def check_sizes(saved: Mapping[str, Any], state: State, extra: Mapping[str, Any]) -> None:
    """Raise ValueError unless every tensor of `saved` is of a parameter of the run's network, in its size."""
    masks = {name: _shape_of_mask(state, name) for name in saved["masks"]}
    for name, entry in saved["masks"].items():
        expect(entry["shape"] == masks[name], f"masks[{name!r}].shape", entry["shape"], str(masks[name]))
    for field, name, value in _by_parameter(saved):
        place = f"{field}[{name!r}]"
        expect(name in masks, place, value, "a parameter that has a mask")
        if field == "ever_active.bits":
            _check_bits({"bits": value}, place, masks[name])
        elif isinstance(value, Tensor):
            own = list(state.network.get_parameter(name).shape)
            sizes = own, masks[name], list(state.tensors[name].shape) if name in state.tensors else own
            expect(value.layout == torch.strided and list(value.shape) in sizes, place, value, f"a tensor {own}")
    prunable = {name for name, tensor in state.tensors.items() if tensor.prunable}
    every = {"masks": saved["masks"], "ever_active.bits": saved["ever_active"]["bits"], "churn": saved["churn"]}
    for field, entries in every.items():
        expect(prunable <= entries.keys(), field, sorted(entries), f"all of {sorted(prunable)}")
    for field, mine in extra.items():
        kind, expected = (is_whole, "a whole number") if type(mine) is int else (_tensors, "tensors by name")
        expect(kind(saved["extra"].get(field)), f"extra.{field}", saved["extra"].get(field), expected)


def _shape_of_mask(state: State, name: str) -> list[int] | None:
    """Of the parameter with this name; None if there is none."""
    try:
        parameter = state.network.get_parameter(name)
    except AttributeError:
        return None
    found = [tensor.mask.shape for tensor in state.tensors.values() if tensor.parameter is parameter]
    return list(found[0] if found else parameter.shape)


def _by_parameter(saved: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    fields = {"window": saved["window"], "warmup": saved["warmup"], "churn": saved["churn"]}
    fields |= {"kept": saved.get("kept", {}), "owed": dict.fromkeys(saved.get("owed", ()))}
    fields |= {f"ever_active.{part}": saved["ever_active"][part] for part in ("bits", "removed")}
    fields |= {f"extra.{name}": value for name, value in saved["extra"].items() if isinstance(value, Mapping)}
    for field, entries in fields.items():
        for name, value in entries.items():
            yield field, name, value


def _check_bits(entry: Any, place: str, shape: Any) -> None:
    whole = isinstance(shape, list) and all(is_whole(size) for size in shape)
    expect(whole, f"{place}.shape", shape, "a list of sizes")
    bits, count = entry.get("bits"), -(-math.prod(shape) // 8)
    fits = isinstance(bits, Tensor) and bits.dtype == torch.uint8 and bits.shape == (count,)
    expect(fits, f"{place}.bits", bits, f"{count} bytes for a mask of shape {shape}")


def is_whole(value: object) -> bool:
    return type(value) is int and value >= 0


def is_finite(value: object) -> bool:
    """A number that a float can hold: a file may also have an int of a thousand digits."""
    return isinstance(value, (int, float)) and type(value) is not bool and abs(value) <= sys.float_info.max


def _dict(of: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, dict) and all(isinstance(k, str) and of(v) for k, v in value.items())


def _list(of: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(of(each) for each in value)


def _is(kind: type) -> Callable[[object], bool]:
    return lambda value: isinstance(value, kind)


_LATER = ("owed", "kept")  # not in the first states of this format
_tensors = _dict(_is(Tensor))
_KINDS: dict[str, tuple[Callable[[object], bool], str]] = {
    "shapes": (_dict(_list(is_whole)), "sizes by name"),
    "config": (_is(dict), "the method's arguments"),
    "step": (is_whole, "a whole number of steps"),
    "masks": (_dict(_is(dict)), "packed masks by name"),
    "channels": (lambda value: value is None or _dict(_is(dict))(value), "None, or numbers of channels by group"),
    "ever_active": (
        lambda value: isinstance(value, dict) and _tensors(value.get("bits")) and _dict(is_whole)(value.get("removed")),
        "bits and removed, each by name",
    ),
    "churn": (_dict(is_finite), "finite numbers by name"),
    "pending": (_list(_is(str)), "names of events"),
    "window": (_tensors, "tensors by name"),
    "window_steps": (is_whole, "a whole number of steps"),
    "owed": (_list(_is(str)), "names of parameters"),
    "kept": (_tensors, "tensors by name"),
    "warmup": (_tensors, "tensors by name"),
    "history": (_list(_dict(lambda value: True)), "a list of events"),
    "extra": (_dict(lambda value: True), "what the method adds"),
}


def expect(right: bool, field: str, value: object, expected: str) -> None:
    """Raise ValueError, naming the field of the state, its value and what was expected, unless it is `right`."""
    if not right:
        raise ValueError(f"the state's {field} is {shown(value)}, expected {expected}")


def equal(mine: object, theirs: object) -> bool:
    """Whether two plain values are; nothing that a file may hold instead of one raises."""
    try:
        return (mine == theirs) is True
    except (RuntimeError, ValueError):  # tensors and arrays compare element by element
        return False


def shown(value: object) -> str:
    """A value of any kind in one short line."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {value.dtype}"
    return " ".join(repr(value).split())[:80]
