"""A cache of transformers' whose keys lie in pages: what `SparseCache` and the engine's own have in common.

`update` writes nothing yet: which tokens are padding is known to the attention function alone, which the model calls
next. What `update` returns is therefore a ticket for it; any other function that touches a ticket is told so.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from gossamer.serving.attend import LayerAttention
from gossamer.serving.geometry import Geometry
from gossamer.serving.sparsity import Sparsity
from gossamer.serving.store import Step, Store
from gossamer.serving.tally import Tally


class Ticket:
    """New keys or values on their way from the cache to attention. Only their shape can be read."""

    def __init__(self, states: Tensor, layer: PagedLayer) -> None:
        self.states, self.layer = states, layer

    @property
    def shape(self) -> torch.Size:
        return self.states.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.states.dtype

    @property
    def device(self) -> torch.device:
        return self.states.device

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise _cannot(name)

    def __getitem__(self, index: Any) -> NoReturn:
        raise _cannot("an index")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        raise _cannot(getattr(func, "__name__", str(func)))


def _cannot(what: str) -> RuntimeError:
    return RuntimeError(
        f"keys of a paged cache lie in pages, and {what} cannot read them: load the model with "
        'attn_implementation="gossamer"'
    )


class PagedLayer(CacheLayerMixin):
    """One layer of a `SparseCache`, as transformers asks for it."""

    is_compileable = False
    supports_early_init = False

    def __init__(self, cache: PagedCache, index: int, window: int | None) -> None:
        super().__init__()
        self.cache, self.index = cache, index
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
        self.cache.arrive(self, key_states, value_states)
        return Ticket(key_states, self), Ticket(value_states, self)  # type: ignore[return-value]

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

    @property
    @abstractmethod
    def pages(self) -> Store:
        """Where keys and values lie."""

    def attention(self, layer: PagedLayer, scale: float | None, cap: float) -> LayerAttention:
        """What attends in a layer; scale and cap are those of its first call."""
        if layer.attention is None or layer.attention.store is not self.pages:
            layer.attention = LayerAttention(self.pages, layer.index, self.tally, scale, cap)
        return layer.attention

    def check(self, layer: PagedLayer, keys: Tensor, values: Tensor) -> None:
        """Refuse states that are not those of the layer."""
        shape = self.geometry.layers[layer.index]
        expected = (shape.key_heads, shape.width)
        if (keys.shape[1], keys.shape[3]) != expected or values.shape != keys.shape:
            raise ValueError(
                f"keys and values of layer {layer.index} must be [batch, {expected[0]}, tokens, {expected[1]}], got "
                f"{list(keys.shape)} and {list(values.shape)}"
            )
        if keys.requires_grad or values.requires_grad:
            raise RuntimeError("keys in pages are for inference: run the model under torch.no_grad()")
