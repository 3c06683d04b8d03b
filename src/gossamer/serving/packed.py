"""The engine's cache: the new tokens of many requests lie one after the other in the one row that a model sees."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.serving.geometry import Geometry
from gossamer.serving.paged_cache import PagedCache, PagedLayer
from gossamer.serving.paging.requests import Step
from gossamer.serving.paging.store import Store
from gossamer.serving.sparsity import Sparsity


class PackedCache(PagedCache):
    """Keys of all requests in one store; `begin` says what the next pass through the model works on."""

    def __init__(self, geometry: Geometry, sparsity: Sparsity, store: Store) -> None:
        super().__init__(geometry, sparsity)
        self._store = store
        self._step: Step | None = None

    @property
    def pages(self) -> Store:
        return self._store

    def begin(self, step: Step) -> None:
        """The pass that comes works on this."""
        self._step = step

    def arrive(self, layer: PagedLayer, keys: Tensor, values: Tensor) -> None:
        if self._step is None or (keys.shape[0], keys.shape[2]) != (1, self._step.tokens):
            raise ValueError(f"keys must be of one row with the tokens of the step, got {list(keys.shape)}")

    def spoil(self) -> None:
        """Nothing: who had a part in the pass starts again."""

    def columns_before(self, layer: PagedLayer) -> int:
        return 0  # places of tokens are always given, and there is no padding

    def enter_routed(
        self, batch: int, new: int, mask: Tensor | None, device: torch.device | str, dtype: torch.dtype
    ) -> tuple[Step, Tensor | None]:
        if self._step is None or (batch, new) != (1, self._step.tokens):
            raise ValueError(f"batch and new must be one row with the tokens of the step, got {batch} and {new}")
        return self.enter(mask)

    def enter(self, mask: Tensor | None) -> tuple[Step, Tensor | None]:
        if self._step is None or mask is not None:
            raise ValueError("mask must be None for packed tokens, in a pass that has begun")
        return self._step, None
