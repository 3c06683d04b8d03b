"""Weights in the layout that the skipping kernels read: made once, kept until the weight changes or is gone."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

PROBED_WHOLE, PROBES = 16384, 64
"""Elements compared at each use, because `.data` can be written without a new version: all of so many, of more some."""


class _Kept(NamedTuple):
    """The packs of one weight as it was when they were made."""

    weight: weakref.ref[Tensor]
    version: int
    address: int
    strides: tuple[int, ...]
    probe: Tensor
    packs: dict[str, Tensor]

    def is_of(self, weight: Tensor, version: int, probe: Tensor) -> bool:
        return (
            self.weight() is weight
            and self.version == version
            and self.address == weight.data_ptr()
            and self.strides == weight.stride()
            and torch.equal(self.probe, probe)
        )


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
        with torch.no_grad():
            if weight.is_inference():
                return pack(weight)
            # Before the numbers are read: a write in another thread meanwhile makes this pack old, not wrong.
            version, probe = weight._version, _probe(weight)
            kept = self._kept.get(id(weight))
            if kept is None or not kept.is_of(weight, version, probe):
                held = weakref.ref(weight, self._forget(id(weight)))
                kept = _Kept(held, version, weight.data_ptr(), weight.stride(), probe.clone(), {})
                self._kept[id(weight)] = kept
            packed = kept.packs.get(role)
            if packed is None:
                packed = kept.packs[role] = pack(weight)
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
        return weight.detach()
    reach = sum((size - 1) * stride for size, stride in zip(weight.shape, weight.stride(), strict=True)) + 1
    return weight.detach().as_strided((PROBES,), ((reach // PROBES - 1) | 1,))


PACKED = PackedWeights()
"""Shared by all layers: a weight used in two places is packed once."""
