"""The zeros that convolutions and linear layers read, counted on an example: before anything is decided."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.measure.count import call_arguments
from gossamer.nn.evaluating import evaluating
from gossamer.wrappers import seen_through


def zeros_read(model: nn.Module, example_inputs: Any) -> dict[str, float]:
    """Name -> share of exact zeros in the inputs of every Conv2d and Linear that the example reaches.

    Args:
        model: run once in eval mode without gradients, and left in its own mode.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments.

    >>> zeros_read(nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), torch.tensor([[-1.0, 1.0]]))
    {'1': 0.5}
    """
    args, kwargs = call_arguments(example_inputs)
    seen: dict[str, list[int]] = {}

    def watch(name: str) -> Callable[..., None]:
        def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else kwargs.get("input")
            if isinstance(x, Tensor):
                counts = seen.setdefault(name, [0, 0])
                counts[0] += x.numel() - int(torch.count_nonzero(x))
                counts[1] += x.numel()

        return count

    with evaluating(model), seen_through(model), ExitStack() as hooks:
        for name, module in model.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                hooks.callback(module.register_forward_pre_hook(watch(name), with_kwargs=True).remove)
        model(*args, **kwargs)
    return {name: zeros / max(total, 1) for name, (zeros, total) in seen.items()}
