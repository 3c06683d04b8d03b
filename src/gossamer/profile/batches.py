"""What a model is run on: checked before it runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.routing.profiling.profiling import cheap


@dataclass(frozen=True, eq=False)
class Batch:
    """One call of a model.

    Attributes:
        given: what the user gave: a tensor or a mapping of keyword arguments.
        args, kwargs: of the call; no caches, and no logits but the last, where the model can be asked for that.
    """

    given: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, model: nn.Module) -> Any:
        return model(*self.args, **self.kwargs)

    @property
    def inputs(self) -> Any:
        """What `gs.measure` and `gs.compaction` take as an example."""
        return self.args[0] if self.args else {name: v for name, v in self.kwargs.items() if isinstance(v, Tensor)}

    @property
    def mask(self) -> Tensor | None:
        """attention_mask[batch, tokens], if there is one."""
        found = self.kwargs.get("attention_mask")
        return found if isinstance(found, Tensor) and found.dim() == 2 else None

    @property
    def ids(self) -> Tensor | None:
        """Token ids [batch, tokens], if it has such."""
        found = self.kwargs.get("input_ids", self.args[0] if self.args else None)
        return found if isinstance(found, Tensor) and found.dim() == 2 and not found.is_floating_point() else None

    @property
    def examples(self) -> int:
        return len(next(value for value in (*self.args, *self.kwargs.values()) if isinstance(value, Tensor)))

    def __str__(self) -> str:
        first = next(value for value in (*self.args, *self.kwargs.values()) if isinstance(value, Tensor))
        if self.ids is not None:
            return f"{len(first)} text{'s' * (len(first) > 1)} of {first.shape[1]} tokens"
        return f"{len(first)} example{'s' * (len(first) > 1)}"


def batches_of(model: nn.Module, data: Any) -> list[Batch]:
    """The batches of `data`, on the model's device.

    Raises:
        TypeError, ValueError: naming the batch and what is wrong with it.
    """
    if isinstance(data, Tensor | Mapping):
        data = [data]
    if isinstance(data, str) or not isinstance(data, Iterable):
        raise TypeError(f"batches must be an iterable of batches, or one batch, got {type(data).__name__}")
    device = next((each.device for each in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    found = [_batch(model, at, each, device) for at, each in enumerate(data)]
    if not found:
        raise ValueError("batches is empty; expected at least one batch")
    return found


def _batch(model: nn.Module, at: int, given: Any, device: torch.device) -> Batch:
    if isinstance(given, tuple | list) and given:
        given = given[0]  # with its labels, as data loaders return it
    if isinstance(given, Tensor):
        _check(f"batch {at}", given)
        return Batch(given, (given.to(device),), cheap(model))
    if not isinstance(given, Mapping):
        kind = type(given).__name__
        raise TypeError(
            f"batch {at} must be a tensor, a mapping of keyword arguments, or a tuple that begins with one, got {kind}"
        )
    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"batch {at} must hold a tensor, got a mapping with {', '.join(map(str, given)) or 'nothing'}")
    for name, value in tensors.items():
        _check(f"{name} of batch {at}", value)
    mask, ids = given.get("attention_mask"), given.get("input_ids")
    if isinstance(mask, Tensor) and isinstance(ids, Tensor) and mask.dim() == 2 and mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask of batch {at} must have the shape {list(ids.shape)} of input_ids, got {list(mask.shape)}"
        )
    if isinstance(mask, Tensor) and mask.dim() == 2 and not bool((mask != 0).any()):
        raise ValueError(f"attention_mask of batch {at} is 0 everywhere; expected 1 for tokens that are no padding")
    moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in given.items()}
    return Batch(dict(given), (), cheap(model, moved) | moved)


def _check(name: str, tensor: Tensor) -> None:
    if tensor.dim() == 0 or tensor.numel() == 0:
        raise ValueError(f"{name} must have examples, got a tensor of shape {list(tensor.shape)}")
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} must be finite, got NaN or infinity in {list(tensor.shape)}")
