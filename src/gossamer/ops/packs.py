"""Weights in the layout that the skipping kernels read, kept from call to call where the user asks for that.

A call uses what a weight holds, whoever wrote it and how. torch counts optimizer steps, `load_state_dict` and other
operators, but not writes through `.data`, numpy or shared memory, and to find those out is to read the whole weight,
which takes as long as packing it. So a weight is packed at every call, and a pack is kept only on request.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

from torch import Tensor


class _Kept:
    """The packs of one weight in the state in which they were made."""

    __slots__ = ("packs", "state", "weight")

    def __init__(self, weight: weakref.ref[Tensor]) -> None:
        self.weight = weight
        self.state: tuple[int, int, tuple[int, ...]] | None = None
        self.packs: dict[str, Tensor] = {}


class KeptPacks:
    """Packed forms of weights, by role, each made for one version, place and layout of the tensor.

    A write that torch does not count is not seen. An inference tensor has no version: it is packed at every use.

    >>> import torch
    >>> kept, weight = KeptPacks(), torch.ones(2, 2)
    >>> first = kept.get(weight, "forward", torch.clone)
    >>> first is kept.get(weight, "forward", torch.clone)
    True
    >>> weight += 1
    >>> kept.get(weight, "forward", torch.clone)[0, 0].item()
    2.0
    >>> del weight
    >>> len(kept)
    0
    """

    def __init__(self) -> None:
        self._kept: dict[int, _Kept] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, weight: Tensor, role: str, pack: Callable[[Tensor], Tensor]) -> Tensor:
        """`pack(weight)`, or what an earlier call made of this version for this role."""
        if weight.is_inference():
            return pack(weight.detach())
        # Before the numbers are read: a write in another thread meanwhile makes this pack old, not wrong.
        state = weight._version, weight.data_ptr(), weight.stride()
        kept = self._kept.get(id(weight))
        if kept is None or kept.weight() is not weight:
            kept = self._kept[id(weight)] = _Kept(weakref.ref(weight, self._forget(id(weight))))
        if kept.state != state:
            kept.state, kept.packs = state, {}
        packs = kept.packs  # of this state, whatever another thread finds meanwhile
        packed = packs.get(role)
        if packed is None:
            packed = packs[role] = pack(weight.detach())
        return packed

    def drop(self, weight: Tensor) -> None:
        """Free the packs of a weight that nobody will ask for soon."""
        self._kept.pop(id(weight), None)

    def _forget(self, key: int) -> Callable[[weakref.ref[Tensor]], None]:
        def forget(gone: weakref.ref[Tensor]) -> None:
            kept = self._kept.get(key)
            if kept is not None and kept.weight is gone:
                del self._kept[key]

        return forget


KEPT = KeptPacks()
"""Shared by all layers: a weight used in two places is packed once."""
