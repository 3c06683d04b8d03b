"""Linear layers of a model, while it decodes: few rows, so reading a weight takes the time.

    with turns_of(model), few_rows(model):
        model(...)

torch's own products of few rows take longer than that. For as long as the model is ours, the layers run
`gossamer.ops.few_rows` where that is faster, and their own product where it is not. A row's result is then the same
whatever the other rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.borrowed import Borrowed
from gossamer.ops.few_rows import FEW, FewRows

LEAST = 1 << 16
"""Elements of a weight from which on it is worth the call."""


@contextmanager
def few_rows(model: nn.Module) -> Iterator[None]:
    """Inside it they do; for one thread at a time, which has the model to itself.

    Subclasses of nn.Linear and layers whose `forward` somebody has replaced are left alone; hooks run as before.
    """
    modules = list(model.modules())
    if not _plain() or any(each._compiled_call_impl is not None for each in modules):  # a graph would be made anew
        yield
        return
    layers = [each for each in modules if type(each) is nn.Linear and _is_taken(each)]
    try:
        for layer in layers:
            layer.__dict__["forward"] = _Forward(layer)  # nn.Module's own assignment takes ten times as long
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _plain() -> bool:
    """Is nobody to see or to change the products?"""
    return not (
        torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._is_torch_function_mode_enabled()
    )


def _is_taken(layer: nn.Linear) -> bool:
    weight = layer._parameters.get("weight")
    return (
        "forward" not in layer.__dict__
        and type(weight) is nn.Parameter
        and weight.is_cpu
        and weight.dtype in FEW
        and weight.numel() >= LEAST
        and weight.is_contiguous()
    )


class _Forward(Borrowed):
    """What a layer does meanwhile."""

    def __call__(self, input: Tensor) -> Tensor:
        parameters = self.layer._parameters
        weight, bias = parameters["weight"], parameters["bias"]
        assert weight is not None
        outputs, inputs = weight.shape
        # Another thread may share the layer, and want a gradient.
        if (
            not 0 < input.numel() <= FEW.get(weight.dtype, 0) * inputs
            or input.dtype is not weight.dtype
            or input.shape[-1] != inputs
            or torch.is_grad_enabled()
        ):
            return F.linear(input, weight, bias)
        return FewRows.compute(input.reshape(-1, inputs), weight, bias).view(*input.shape[:-1], outputs)
