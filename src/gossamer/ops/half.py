"""Half floats on a CPU: which of them torch multiplies by instructions of their own, and dense products of the others.

Where it does not, torch's product with a weight that is stored by input channel goes from element to element of it, and
takes ten to twenty times as long as with one stored by output channel. Ours read it as it lies.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.ops.autograd import wants_gradient
from gossamer.ops.gemv import ZERO, skip_on
from gossamer.ops.registration import HALF

READ_AGAIN = 24
"""Rows up to which reading the weight once for every eight of them costs less than to widen it."""


@cache
def multiplies(dtype: torch.dtype) -> bool:
    """Whether the CPU has instructions for products of this type, and torch uses them."""
    name = f"_is_mkldnn_{'bf16' if dtype == torch.bfloat16 else 'fp16'}_supported"
    found = getattr(torch.ops.mkldnn, name, None)
    return found is not None and bool(found())


def goes_by_elements(weight: Tensor) -> bool:
    """Whether torch's product with this weight [out, in] would read it element by element."""
    return (
        weight.dtype in HALF and weight.is_cpu and not multiplies(weight.dtype)
        and not weight.is_contiguous() and weight.t().is_contiguous()
    )  # fmt: skip


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """torch.nn.functional.linear, but for weights that torch would read element by element. Differentiable.

    Args:
        x: [..., k]. weight: [n, k], in any strides. bias: [n].

    Returns:
        [..., n]; of half floats summed in float32 and rounded once.

    >>> linear(torch.ones(1, 2), torch.ones(3, 2))
    tensor([[2., 2., 2.]])
    """
    if not goes_by_elements(weight) or x.dtype != weight.dtype or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    rows = x.numel() // max(x.shape[-1], 1)
    if rows <= READ_AGAIN and not wants_gradient(x, weight, bias):
        y: Tensor = skip_on(None)(x.reshape(rows, x.shape[-1]).contiguous(), weight.t(), bias, ZERO)[0]
        return y.view(*x.shape[:-1], weight.shape[0])
    return F.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)
