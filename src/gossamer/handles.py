"""Objects behind opaque ops: a graph cannot hold them, so an op finds them by an integer that rides in a tensor.

A layer's call site changes from call to call, and so does what listens to a gradient. A compiled graph gets such an
object as its handle, an int64[] on the CPU: an input like any other, so that no graph guards on the object and layers
that are alike share one graph.

    capture.handle                      the argument of an op
    owner_of(handle, GradientCapture)   inside the op: the object again

May import torch only: the planner's call sites, ops and modules all have handles.
"""

from __future__ import annotations

from itertools import count
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

T = TypeVar("T", bound="Handled")
Self = TypeVar("Self", bound="Handled")

_numbers = count(1)
_living: WeakValueDictionary[int, Handled] = WeakValueDictionary()


def graph_input(number: int | float) -> Tensor:
    """A number of one object, such as its threshold, as a tensor; as an int or float it would be a guard of the graph.

    Returns:
        int64[] or float64[] on the CPU: an ordinary tensor, whatever mode or default device it is made under.

    >>> graph_input(3), graph_input(0.5)
    (tensor(3), tensor(0.5000, dtype=torch.float64))
    """
    dtype = torch.int64 if isinstance(number, int) else torch.float64
    with torch.inference_mode(False), unset_fake_temporarily():
        return torch.tensor(number, dtype=dtype, device="cpu")


class Handled:
    """Gives each object a handle for life. A copy gets its own, and so does one that was pickled.

    >>> import copy
    >>> first = Handled()
    >>> second = copy.copy(first)
    >>> owner_of(first.handle, Handled) is first, owner_of(second.handle, Handled) is second
    (True, True)
    """

    handle: Tensor

    def __new__(cls: type[Self], *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        number = next(_numbers)
        self.handle = graph_input(number)
        _living[number] = self
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "handle"}


def living_owner_of(handle: Tensor | int, kind: type[T]) -> T | None:
    """The object of this handle, or None if it is gone."""
    owner = _living.get(int(handle))
    return owner if isinstance(owner, kind) else None


def owner_of(handle: Tensor | int, kind: type[T], name: str = "handle") -> T:
    """The object of this handle, the argument called `name`.

    Raises:
        ValueError: it is gone, or it is of another kind.
    """
    owner = living_owner_of(handle, kind)
    if owner is None:
        raise ValueError(
            f"{name} must be that of a living {kind.__name__}, got {int(handle)}: it is gone, or of another kind"
        )
    return owner
