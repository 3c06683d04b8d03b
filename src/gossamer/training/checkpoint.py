"""A method's state as plain data: safe for torch.load(weights_only=True), one bit per weight for each mask."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gossamer.training import fields, shrinking
from gossamer.training.ever_active import pack, unpack
from gossamer.training.state import State
from gossamer.training.weights import Masked

logger = logging.getLogger(__name__)
FORMAT = 1
# arguments that say where a run happens, not what it computes; the masks of a state replace the first ones
_NOT_CONFIG = ("model", "optimizer", "distributed", "example_inputs", "init")


def config(state: State) -> dict[str, Any]:
    """The arguments that decide what the method computes, as plain data."""
    found = {f.name: getattr(state, f.name) for f in dataclasses.fields(state) if f.name not in _NOT_CONFIG}
    return {"density": state.target_density, **{name: _plain(value) for name, value in found.items()}}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def save(state: State, extra: dict[str, Any]) -> dict[str, Any]:
    """See `Method.state_dict`."""
    return {
        "format": FORMAT,
        "method": state.name,
        "config": config(state),
        "step": state.step,
        "shapes": {name: list(shape) for name, shape in state.shapes.items()},
        "masks": {name: _packed(tensor) for name, tensor in state.tensors.items()},
        "channels": state.removed.state_dict() if state.removed else state.saved_channels,
        "ever_active": state.ever_active.state_dict(),
        "churn": dict(state.churn),
        "pending": list(state.pending),
        **state.gradients.state_dict(),
        "warmup": {name: left.clone() for name, left in state.warmup.left.items()},
        "history": [dict(entry) for entry in state.history],
        "extra": extra,
    }


def check(state: State, saved: Mapping[str, Any], extra: dict[str, Any]) -> None:
    """Raise ValueError when `saved` was not saved by such a method with these arguments on such a network."""
    mine = save(state, extra)
    if not isinstance(saved, Mapping) or saved.get("format") != FORMAT:
        raise ValueError(f"not the state of a training method of format {FORMAT}")
    fields.check(saved, mine)
    if saved["method"] != state.name:
        raise ValueError(f"the state belongs to method {fields.shown(saved['method'])}, expected {state.name!r}")
    if saved["shapes"] != state.shapes:
        every = saved["shapes"].keys() | state.shapes.keys()
        names = sorted(name for name in every if saved["shapes"].get(name) != state.shapes.get(name))
        raise ValueError(f"the state belongs to another network: {names} differ in name or shape")
    wanted = mine["config"]
    _check_length(state, saved["config"].get("total_steps"))
    for key in (wanted.keys() | saved["config"].keys()) - {*_NOT_CONFIG, "total_steps"}:
        if not fields.equal(wanted.get(key), saved["config"].get(key)):
            raise ValueError(
                f"the state was saved with {key}={fields.shown(saved['config'].get(key))}, expected {wanted.get(key)!r}"
            )


def _check_length(state: State, planned: object) -> None:
    fields.expect(fields.is_whole(planned), "config.total_steps", planned, "a whole number of steps")
    if planned > state.total_steps:  # type: ignore[operator]
        raise ValueError(
            f"the state was saved with total_steps={planned}: a run can be made longer, but not shorter; expected "
            f"total_steps={planned} or more, got {state.total_steps}"
        )


def load(state: State, saved: Mapping[str, Any], extra: dict[str, Any]) -> None:
    """See `Method.load_state_dict`; what the method adds, `extra`, it takes back itself."""
    check(state, saved, extra)
    channels = saved["channels"]
    _check_channels(state, channels)
    masks = {name: _unpacked(entry) for name, entry in saved["masks"].items()}
    removed = state.removed if channels is not None else None
    cut = removed is not None and any(len(e["here"]) < len(removed.origin[n]) for n, e in channels.items())
    if not cut:
        fields.check_sizes(saved, state, extra)
    if removed is not None:
        removed.set_alive({name: entry["here"] for name, entry in channels.items()})
        shrinking.shrink(state)  # a run that was compacted goes on in the network it had become
        if cut:  # only now has the network the sizes of the state
            fields.check_sizes(saved, state, extra)
        removed.load_state_dict(channels)
    else:
        state.saved_channels = channels
    state.tensors = {name: tensor for name, tensor in state.tensors.items() if tensor.prunable}
    for name, (mask, axes) in masks.items():
        tensor = state.track(name)
        tensor.mask.copy_(mask)
        tensor.axes = {axis: vector.to(tensor.mask.device) for axis, vector in axes.items()}
    state.ever_active.load_state_dict(saved["ever_active"])
    state.step = saved["step"]
    if (planned := saved["config"]["total_steps"]) < state.total_steps:
        logger.info(
            "%s: from step %d on planned for %d steps, not %d", state.name, state.step, state.total_steps, planned
        )
    state.churn = dict(saved["churn"])
    state.pending = list(saved["pending"])
    state.gradients.load_state_dict(saved, state.tensors)
    state.warmup.left = {n: left.to(state.tensors[n].mask.device).clone() for n, left in saved["warmup"].items()}
    state.history = [dict(entry) for entry in saved["history"]]


def _check_channels(state: State, channels: dict[str, Any] | None) -> None:
    if channels is None:
        if state.removed and not all(bool(alive.all()) for alive in state.channels().values()):
            raise ValueError("the state has all channels, the network has lost some: use a fresh network")
    elif state.removed is not None:
        state.removed.check_state_dict(channels)
    elif any(len(entry["here"]) != 1 + int(entry["here"].max()) for entry in channels.values()):
        raise ValueError("the state is of a compacted network: pass example_inputs to the method to resume it")


def _packed(tensor: Masked) -> dict[str, Any]:
    axes = {str(axis): {"size": len(vector), "bits": pack(vector)} for axis, vector in tensor.axes.items()}
    return {"shape": list(tensor.mask.shape), "bits": pack(tensor.mask), "axes": axes}


def _unpacked(entry: Mapping[str, Any]) -> tuple[Tensor, dict[int, Tensor]]:
    axes = {int(axis): unpack(vector["bits"], (vector["size"],)) for axis, vector in entry["axes"].items()}
    return unpack(entry["bits"], tuple(entry["shape"])), axes
