"""Cut the dead channels out of a network while a method trains it: parameters, optimizer state, masks, records."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from gossamer.compaction import shrink_
from gossamer.compaction.optimizer import sliced
from gossamer.compaction.rounding import rounded
from gossamer.compaction.structure import culprits
from gossamer.training import followers
from gossamer.training.channels import Channels
from gossamer.training.distributed import ranks
from gossamer.training.state import State
from gossamer.training.weights import Masked

logger = logging.getLogger(__name__)


def refuse(state: State) -> None:
    """Raise ValueError where parameters cannot change their shape during training."""
    distributed = {type(module).__name__ for module in state.model.modules()} & {"DistributedDataParallel"}
    if ranks() > 1 or distributed:
        refuse_wrapped()
    if tuple(state.tile) != (1, 1):
        raise ValueError(f"compact_every needs tile (1, 1), got {state.tile}: removed channels would move the tiles")


def refuse_wrapped() -> None:
    """Raise ValueError for a network inside DistributedDataParallel."""
    raise ValueError("compact_every does not work with DistributedDataParallel: its buckets keep the first shapes")


@torch.no_grad()
def shrink(state: State, steps: dict[str, int] | None = None) -> None:
    """Remove the dead channels of `state.removed` from everything that has them. Parameters stay the same objects.

    With `steps` a group keeps so many dead channels that its width is a multiple of its step; where nothing else would
    go, nothing is done. Groups whose removal the model's code does not follow keep theirs, and `channels.stuck` says
    why; without `steps` they raise StructureError.
    """
    channels = state.removed
    assert channels is not None
    stay = {name: alive for name, alive in channels.alive.items() if not bool(alive.all())}
    if steps is not None:
        network = state.network
        stay = {name: rounded(channels.groups[name], alive, steps[name], network) for name, alive in stay.items()}
        stay = {name: mask for name, mask in stay.items() if not bool(mask.all())}
    if not stay:
        return
    for name in stay:  # before shapes change: a method that has just been made tracks prunable weights only
        for member in channels.groups[name].members:
            if member.role != "stat":
                state.track(member.tensor)
    if steps is None:  # a resumed run, which must become the network it was
        stuck = {}
        _cut(state, channels, stay)
    else:
        stuck = culprits(list(stay), lambda names: _cut(state, channels, {name: stay[name] for name in names}))
    for name, reason in stuck.items():
        if channels.stuck.get(name) != reason:
            logger.warning("step %d: dead channels of %s stay, masked: %s", state.step, name, reason)
    channels.stuck = stuck
    followers.bring(state)
    logger.info("step %d: compacted to %s channels", state.step, {n: len(a) for n, a in channels.alive.items()})


def _cut(state: State, channels: Channels, stay: dict[str, Tensor]) -> None:
    """Cut all but the channels `stay` out of the groups it names; a cut that fails leaves everything as it was."""
    keep = {channels.groups[name].name: mask for name, mask in stay.items()}
    kept = shrink_(state.network, channels.graph, keep, optimizer=state.optimizer)
    parameters = dict(state.network.named_parameters())
    for name, positions in kept.items():
        if name in parameters:
            _slice(state, state.track(name), positions)
    assert kept.graph is not None
    channels.slice(kept.graph, stay)


def _slice(state: State, tensor: Masked, positions: Mapping[int, Tensor]) -> None:
    if tensor.name in state.ever_active.bits:
        kept = torch.ones(tensor.mask.shape, dtype=torch.bool, device="cpu")
        for axis, index in positions.items():
            on_axis = torch.zeros(kept.shape[axis], dtype=torch.bool, device="cpu").index_fill_(0, index.cpu(), True)
            kept &= on_axis.view([-1 if a == axis else 1 for a in range(kept.ndim)])
        state.ever_active.slice(tensor, kept)
    mask = sliced(tensor.mask, positions)
    tensor.mask = torch.ones_like(tensor.parameter, dtype=torch.bool, requires_grad=False).copy_(mask)
    for axis, index in positions.items():
        if axis in tensor.axes:
            tensor.axes[axis] = tensor.axes[axis][index.to(tensor.axes[axis].device)]
    for records in (state.gradients.window, state.gradients.kept, state.warmup.left):
        if tensor.name in records:
            records[tensor.name] = sliced(records[tensor.name], positions)
    for layer in state.layers:
        if layer.tensor is tensor and 0 in positions:
            layer.last = tensor.parameter.shape[0]
