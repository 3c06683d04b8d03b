"""Copies of a network that lose the channels it loses while it trains: averages of its weights, above all.

`torch.optim.swa_utils.AveragedModel` deep-copies a network and knows nothing of it between two updates, so a method
cannot find it; but every update names both. From the first compaction of a process on, `update_parameters` therefore
brings the average to the shapes of the network first. Other copies are named by `Method.follow`.
"""

from __future__ import annotations

import functools

from torch import nn
from torch.optim.swa_utils import AveragedModel

from gossamer.compaction.follow import compacted, follow_
from gossamer.training.discover import unwrap
from gossamer.training.state import State

_update = AveragedModel.update_parameters


@functools.wraps(_update)
def _follow_and_update(self: AveragedModel, model: nn.Module) -> None:
    network = unwrap(model)
    if compacted(network):
        follow_(unwrap(self), network)
    _update(self, model)


def follow_averages() -> None:
    """Let every AveragedModel follow the networks that are compacted."""
    if AveragedModel.update_parameters is _update:
        AveragedModel.update_parameters = _follow_and_update  # type: ignore[method-assign]


def add(state: State, copy: nn.Module) -> nn.Module:
    """See `Method.follow`."""
    found = unwrap(copy)
    follow_(found, state.network)
    for tensor in state.tensors.values():
        tensor.check_copy(found)
    state.followers.add(copy)
    return copy


def bring(state: State) -> None:
    """Bring every copy to the shapes of the network, which has just been compacted."""
    follow_averages()
    for copy in state.followers:
        follow_(unwrap(copy), state.network)


def apply_to(state: State, copy: nn.Module) -> nn.Module:
    """See `Method.apply_to`."""
    found = unwrap(copy)
    follow_(found, state.network)
    for tensor in state.tensors.values():
        tensor.check_copy(found)
    for tensor in state.tensors.values():
        tensor.apply_to(found)
    return copy
