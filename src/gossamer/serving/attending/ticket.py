"""What a paged cache returns for new keys and values: tickets for the attention function, which is called next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor

from gossamer.serving.paging.requests import Step

Attends = Callable[[Tensor, Tensor, Tensor, Step], Tensor]
"""Attention of packed queries, keys and values [tokens, heads, width]; see `LayerAttention`."""


class Keys(Protocol):
    """Where new keys are going.

    Attributes:
        index: of the layer, or slot. window: of the model's own, or None.
    """

    @property
    def index(self) -> int: ...

    @property
    def window(self) -> int | None: ...

    def enter(self, mask: Tensor | None) -> tuple[Step, Tensor | None]:
        """The step of the present pass, and which of the new tokens of all rows are in it; see `PagedCache.enter`."""

    def attending(self, scale: float | None, cap: float) -> Attends:
        """What attends there."""


class Ticket:
    """New keys or values on their way from the cache to attention. Only their shape can be read."""

    def __init__(self, states: Tensor, keys: Keys) -> None:
        self.states, self.keys = states, keys

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
