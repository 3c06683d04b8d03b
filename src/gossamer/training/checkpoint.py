"""A method's state as plain data: safe for torch.load(weights_only=True), one bit per weight for each mask."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gossamer.training import fields, shrinking
from gossamer.training.statistics import pack, unpack
from gossamer.training.weights import Masked

if TYPE_CHECKING:
    from gossamer.training.engine import Method

FORMAT = 1
# arguments that say where a run happens, not what it computes; the masks of a state replace the first ones
_NOT_CONFIG = ("model", "optimizer", "distributed", "example_inputs", "init")


def config(method: Method) -> dict[str, Any]:
    """The arguments that decide what the method computes, as plain data."""
    found = {f.name: getattr(method, f.name) for f in dataclasses.fields(method) if f.name not in _NOT_CONFIG}
    return {"density": method.target_density, **{name: _plain(value) for name, value in found.items()}}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def save(method: Method) -> dict[str, Any]:
    """See `Method.state_dict`."""
    return {
        "format": FORMAT,
        "method": method.name,
        "config": config(method),
        "step": method.step,
        "shapes": {name: list(shape) for name, shape in method.shapes.items()},
        "masks": {name: _packed(tensor) for name, tensor in method.tensors.items()},
        "channels": method.removed.state_dict() if method.removed else method.saved_channels,
        "ever_active": method.ever_active.state_dict(),
        "churn": dict(method.churn),
        "pending": list(method.pending),
        **method.gradients.state_dict(),
        "warmup": {name: left.clone() for name, left in method.warmup.left.items()},
        "history": [dict(entry) for entry in method.history],
        "extra": method.extra_state(),
    }


def check(method: Method, state: Mapping[str, Any]) -> None:
    """Raise ValueError when `state` was not saved by such a method with these arguments on such a network."""
    if not isinstance(state, Mapping) or state.get("format") != FORMAT:
        raise ValueError(f"not the state of a training method of format {FORMAT}")
    fields.check(state, save(method))
    if state["method"] != method.name:
        raise ValueError(f"the state belongs to method {fields.shown(state['method'])}, expected {method.name!r}")
    if state["shapes"] != method.shapes:
        every = state["shapes"].keys() | method.shapes.keys()
        names = sorted(name for name in every if state["shapes"].get(name) != method.shapes.get(name))
        raise ValueError(f"the state belongs to another network: {names} differ in name or shape")
    mine = config(method)
    for key in (mine.keys() | state["config"].keys()) - set(_NOT_CONFIG):
        if not fields.equal(mine.get(key), state["config"].get(key)):
            raise ValueError(
                f"the state was saved with {key}={fields.shown(state['config'].get(key))}, expected {mine.get(key)!r}"
            )


def load(method: Method, state: Mapping[str, Any]) -> None:
    """See `Method.load_state_dict`."""
    check(method, state)
    channels = state["channels"]
    _check_channels(method, channels)
    masks = {name: _unpacked(entry) for name, entry in state["masks"].items()}
    if channels is not None and method.removed is not None:
        cut = any(len(entry["here"]) < len(method.removed.origin[name]) for name, entry in channels.items())
        if not cut:
            fields.check_sizes(state, method)
        method.removed.set_alive({name: entry["here"] for name, entry in channels.items()})
        shrinking.shrink(method)  # a run that was compacted goes on in the network it had become
        if cut:  # only now has the network the sizes of the state
            fields.check_sizes(state, method)
        method.removed.set_alive({name: entry["alive"] for name, entry in channels.items()})
    else:
        fields.check_sizes(state, method)
        method.saved_channels = channels
    method.tensors = {name: tensor for name, tensor in method.tensors.items() if tensor.prunable}
    for name, (mask, axes) in masks.items():
        tensor = method.track(name)
        tensor.mask.copy_(mask)
        tensor.axes = {axis: vector.to(tensor.mask.device) for axis, vector in axes.items()}
    method.load_extra_state(state["extra"])
    method.ever_active.load_state_dict(state["ever_active"])
    method.step = state["step"]
    method.churn = dict(state["churn"])
    method.pending = list(state["pending"])
    method.gradients.load_state_dict(state, method.tensors)
    method.warmup.left = {n: left.to(method.tensors[n].mask.device).clone() for n, left in state["warmup"].items()}
    method.history = [dict(entry) for entry in state["history"]]
    method._reloaded = True
    method.apply()
    method.listen()


def _check_channels(method: Method, channels: dict[str, Any] | None) -> None:
    if channels is None:
        if method.removed and not all(bool(alive.all()) for alive in method.channels().values()):
            raise ValueError("the state has all channels, the network has lost some: use a fresh network")
    elif method.removed is not None:
        method.removed.check_state_dict(channels)
    elif any(len(entry["here"]) != 1 + int(entry["here"].max()) for entry in channels.values()):
        raise ValueError("the state is of a compacted network: pass example_inputs to the method to resume it")


def _packed(tensor: Masked) -> dict[str, Any]:
    axes = {str(axis): {"size": len(vector), "bits": pack(vector)} for axis, vector in tensor.axes.items()}
    return {"shape": list(tensor.mask.shape), "bits": pack(tensor.mask), "axes": axes}


def _unpacked(entry: Mapping[str, Any]) -> tuple[Tensor, dict[int, Tensor]]:
    axes = {int(axis): unpack(vector["bits"], (vector["size"],)) for axis, vector in entry["axes"].items()}
    return unpack(entry["bits"], tuple(entry["shape"])), axes
