"""A cache of transformers' whose keys lie in pages: what `SparseCache` and the engine's own have in common.

`update` writes nothing yet: which tokens are padding is known to the attention function alone, which the model calls
next. What `update` returns is therefore a ticket for it; any other function that touches a ticket is told so.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from gossamer.serving.attending.attend import LayerAttention
from gossamer.serving.attending.routed import RoutedPass
from gossamer.serving.attending.ticket import Ticket
from gossamer.serving.geometry import Geometry
from gossamer.serving.paging.requests import Step
from gossamer.serving.paging.store import Store
from gossamer.serving.sparsity import Sparsity
from gossamer.serving.tally import Tally


class PagedLayer(CacheLayerMixin):
    """One layer of a `SparseCache`, as transformers asks for it."""

    is_compileable = False
    supports_early_init = False

    def __init__(self, cache: PagedCache, index: int, window: int | None) -> None:
        super().__init__()
        self.cache, self.index, self.window = cache, index, window
        self.is_sliding = window is not None
        self.passes = 0  # how many passes through the model this layer has taken part in
        self.attention: LayerAttention | None = None
        self.is_initialized = True

    @property
    def is_croppable(self) -> bool:  # type: ignore[override]
        return self.cache.is_croppable

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: pages come with the first update."""

    @torch.compiler.disable
    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Tickets for new states [batch, key heads, new tokens, width]."""
        self.cache.check(self.index, key_states, value_states)
        self.cache.arrive(self, key_states, value_states)
        return Ticket(key_states, self), Ticket(value_states, self)  # type: ignore[return-value]

    def enter(self, mask: Tensor | None) -> tuple[Step, Tensor | None]:
        """The step of the present pass, of which this layer takes all tokens; see `PagedCache.enter`."""
        step, places = self.cache.enter(mask)
        return self.cache.pages.narrow(step, self.index) if step.uneven else step, places

    def attending(self, scale: float | None, cap: float) -> LayerAttention:
        return self.cache.attention(self.index, scale, cap)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + int(query_length), 0

    def get_seq_length(self) -> int:
        """Tokens of a row, padding too, that this layer has."""
        return self.cache.columns_before(self)

    def get_max_length(self) -> int:
        return -1

    def offload(self) -> None:
        raise NotImplementedError("keys in pages are not offloaded; choose a smaller stored= or token_budget")

    prefetch = offload


class PagedCache(Cache):
    """Layers of keys in the pages of a store.

    Attributes:
        geometry, sparsity: of the model, and what is skipped.
        tally: what was read of what could have been.
        stack: the layers, of their own type.
    """

    def __init__(self, geometry: Geometry, sparsity: Sparsity) -> None:
        self.geometry, self.sparsity, self.tally = geometry, sparsity, Tally()
        self.stack = [PagedLayer(self, at, shape.window) for at, shape in enumerate(geometry.layers)]
        super().__init__(layers=list(self.stack))

    @abstractmethod
    def arrive(self, layer: PagedLayer, keys: Tensor, values: Tensor) -> None:
        """New states [batch, key heads, tokens, width] come to a layer."""

    @abstractmethod
    def columns_before(self, layer: PagedLayer) -> int:
        """Tokens of a row that a layer has."""

    @abstractmethod
    def enter(self, mask: Tensor | None) -> tuple[Step, Tensor | None]:
        """The step of the present pass through the model.

        Args:
            mask: bool[rows, columns], False for padding; None: no padding.

        Returns:
            The step, and int64[tokens]: which of the new tokens of all rows, row after row, each of its tokens is;
            None: all of them in order.
        """

    @abstractmethod
    def spoil(self) -> None:
        """A routed pass ended in its middle: which tokens skipped slots, and which came to none, cannot be told."""

    @property
    @abstractmethod
    def pages(self) -> Store:
        """Where keys and values lie."""

    @abstractmethod
    def enter_routed(
        self, batch: int, new: int, mask: Tensor | None, device: torch.device | str, dtype: torch.dtype
    ) -> tuple[Step, Tensor | None]:
        """Begin a pass before there are keys; see `route` and `enter`."""

    def route(
        self, batch: int, new: int, mask: Tensor | None = None, *, device: torch.device | str, dtype: torch.dtype
    ) -> RoutedPass:
        """Begin a pass in which each slot takes only some of the tokens.

        Args:
            batch, new: rows, and new tokens of each, padding too. mask: [batch, tokens of the cache and new ones], 1
                for tokens and 0 for padding; None: no padding among the new ones.
            device, dtype: of the keys to come.

        Raises:
            ValueError: naming the argument. OutOfPages: there is no room. RuntimeError: another pass is not through.

        >>> from gossamer.serving import SparseCache
        >>> from transformers import LlamaConfig
        >>> config = LlamaConfig(num_hidden_layers=2, hidden_size=64, num_attention_heads=4)
        >>> routed = SparseCache(config).route(1, 3, device="cpu", dtype=torch.float32)
        >>> past = routed.at(1, torch.tensor([0, 2]))     # past_key_values of layer 1, which two of the tokens run
        >>> routed.position.tolist()
        [0, 1, 2]
        """
        step, places = self.enter_routed(batch, new, mask, device, dtype)
        self.pages.separate(step)
        return RoutedPass(self.pages, step, places, self.attention, self.check)

    def attention(self, index: int, scale: float | None, cap: float) -> LayerAttention:
        """What attends in a layer, or slot; scale and cap are those of its first call."""
        layer = self.stack[index]
        if layer.attention is None or layer.attention.store is not self.pages:
            layer.attention = LayerAttention(self.pages, index, self.tally, scale, cap)
        return layer.attention

    def check(self, index: int, keys: Tensor, values: Tensor) -> None:
        """Refuse states that are not those of the layer."""
        shape = self.geometry.layers[index]
        expected = (shape.key_heads, shape.width)
        if (keys.shape[1], keys.shape[3]) != expected or values.shape != keys.shape:
            raise ValueError(
                f"keys and values of layer {index} must be [batch, {expected[0]}, tokens, {expected[1]}], got "
                f"{list(keys.shape)} and {list(values.shape)}"
            )
        if keys.requires_grad or values.requires_grad:
            raise RuntimeError("keys in pages are for inference: run the model under torch.no_grad()")
