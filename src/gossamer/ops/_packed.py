"""Weights in the layout that the skipping kernels read: made once, kept until the weight changes or is gone."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor

PROBED_WHOLE, PROBES = 16384, 64
"""Elements compared at each use, because `.data` can be written without a new version: all of so many, of more some."""


class _Kept:
    """The packs of one weight as it was when they were made."""

    __slots__ = ("packs", "probe", "state", "weight")

    def __init__(self, weight: weakref.ref[Tensor]) -> None:
        self.weight = weight
        self.state: tuple[int, int, tuple[int, ...]] | None = None
        self.probe: Tensor | None = None
        self.packs: dict[str, Tensor] = {}


class PackedWeights:
    """Packed forms of weights, by role, each made for one version of the tensor.

    Optimizer steps, `load_state_dict` and any other write that torch counts give a tensor a new version. Writes through
    `weight.data` are not counted; such a write is noticed if it moves the tensor, if the tensor is small, or if it
    changes one of some elements spread over it, as a step of training does: what remains unseen is `.data` edits of
    single elements of large weights. An inference tensor has no version: it is packed at every use.

    >>> weights, weight = PackedWeights(), torch.ones(2, 2)
    >>> first = weights.get(weight, "forward", torch.clone)
    >>> first is weights.get(weight, "forward", torch.clone)
    True
    >>> weight += 1
    >>> weights.get(weight, "forward", torch.clone)[0, 0].item()
    2.0
    >>> del weight
    >>> len(weights)
    0
    """

    def __init__(self) -> None:
        self._kept: dict[int, _Kept] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, weight: Tensor, role: str, pack: Callable[[Tensor], Tensor]) -> Tensor:
        """`pack(weight)`, or what an earlier call made of the same numbers for this role."""
        numbers = weight.detach()
        if weight.is_inference():
            return pack(numbers)
        # Before the numbers are read: a write in another thread meanwhile makes this pack old, not wrong.
        state, probe = (weight._version, weight.data_ptr(), weight.stride()), _probe(numbers)
        kept = self._kept.get(id(weight))
        if kept is None or kept.weight() is not weight:
            kept = self._kept[id(weight)] = _Kept(weakref.ref(weight, self._forget(id(weight))))
        if kept.state != state or kept.probe is None or not torch.equal(kept.probe, probe):
            kept.state, kept.probe, kept.packs = state, probe.clone(), {}
        packs = kept.packs  # of this state, whatever another thread finds meanwhile
        packed = packs.get(role)
        if packed is None:
            packed = packs[role] = pack(numbers)
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


def _probe(weight: Tensor) -> Tensor:
    """All elements, or some spread over the memory; the step is odd, so that they are not all of one tap or channel."""
    if weight.numel() <= PROBED_WHOLE:
        return weight
    reach = sum((size - 1) * stride for size, stride in zip(weight.shape, weight.stride(), strict=True)) + 1
    return weight.as_strided((PROBES,), ((reach // PROBES - 1) | 1,))


PACKED = PackedWeights()
"""Shared by all layers: a weight used in two places is packed once."""
