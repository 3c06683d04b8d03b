"""What follows a tile when the pattern changes: its slot moves, and with it its values, gradient and optimizer state.

    old tiles  a c d      new tiles  a b d       source = [0, none, 2]: a and d keep their numbers, b starts at zero

Plain torch over `capacity` numbers; no shape depends on the data, and the host waits for nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from gossamer.reshaping import set_data


def slot_sources(old: Tensor, new: Tensor, absent: int) -> Tensor:
    """For each slot of the new index the slot of the same tile in the old one, -1 for tiles that were not there.

    Args:
        old, new: int64 tile numbers in slot order (`Pattern.keys`), `absent` in slack slots.

    >>> slot_sources(torch.tensor([5, 0, 7, 9]), torch.tensor([0, 3, 7, 9]), 9).tolist()
    [1, -1, 2, -1]
    """
    if old.numel() == 0:
        return torch.full_like(new, -1)
    # Patterns made from masks name their tiles in order. To ask a device whether this one does would be a sync.
    in_order = old.device.type == "cpu" and bool((old[1:] >= old[:-1]).all())
    ordered, slot = (old, None) if in_order else old.sort()
    place = torch.searchsorted(ordered, new).clamp_(max=old.numel() - 1)
    return torch.where((ordered[place] == new) & (new < absent), place if slot is None else slot[place], -1)


def remapped(x: Tensor, source: Tensor) -> Tensor:
    """x[capacity, ...] in the order of the new slots, zero where a tile is new.

    >>> remapped(torch.tensor([1.0, 2.0]), torch.tensor([1, -1, 0])).tolist()
    [2.0, 0.0, 1.0]
    """
    if x.shape[0] == 0:
        return x.new_zeros(source.numel(), *x.shape[1:])
    gone = (source < 0).view(-1, *[1] * (x.dim() - 1))
    return x.index_select(0, source.clamp(min=0)).masked_fill_(gone, 0)


@torch.no_grad()
def remap_(x: Tensor, source: Tensor) -> Tensor:
    """`remapped` in place; a tensor of another capacity takes new memory."""
    return put_(x, remapped(x, source))


@torch.no_grad()
def put_(x: Tensor, new: Tensor) -> Tensor:
    """Write `new` into x; where its shape is another, x takes new memory and keeps only a gradient of that shape."""
    if new.shape == x.shape:
        return x.copy_(new)
    grad = x.grad if x.is_leaf else None
    set_data(x, new, grad if grad is not None and grad.shape == new.shape else None)
    return x


def states_of(optimizer: Optimizer, parameter: Tensor) -> list[Tensor]:
    """The optimizer's tensors that hold one number per weight of `parameter`: momentum, second moments, ..."""
    states = optimizer.state.get(parameter, {}).values()
    return [state for state in states if torch.is_tensor(state) and state.shape == parameter.shape]
