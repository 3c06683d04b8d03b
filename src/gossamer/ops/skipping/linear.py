"""linear: torch's linear layer, which leaves out the multiplications by zeros of its input where that is faster."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from gossamer.ops.registration import Backend
from gossamer.ops.skipping.operators import skip_zeros
from gossamer.ops.skipping.refusals import Skip, check_shapes, check_types, refuse_transforms, torchs_own
from gossamer.planner import Site


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    skip: Skip = "auto",
    relu: bool = False,
    site: Site | Tensor | None = None,
    keep_packed: bool = False,
    backend: Backend | None = None,
) -> Tensor:
    """torch.nn.functional.linear, skipping zeros that are found at run time; differentiable to any order.

    Args:
        x: [..., C]. float32 on the CPU can skip.
        weight: [K, C] of x's dtype. Up to 8 rows of x read only the rows of `weight.t()` that they need if it is
            contiguous, that is if the weight is stored by input channel, or if `keep_packed` allows a copy that is.
        bias: [K].
        skip, relu, site, keep_packed, backend: as in `conv2d`.

    Returns:
        [..., K], equal to torch's to rounding; about zeros, NaN and infinity see `conv2d`.

    Raises:
        As `conv2d`.

    Source: a 1x1 convolution of SparseTrain (PACT 2020); for few rows the product of TEAL (ICLR 2025).

    >>> import torch
    >>> x = torch.tensor([[0.0, 2.0], [0.0, 0.0]])
    >>> linear(x, torch.ones(1, 2), skip="input", backend="reference")
    tensor([[2.],
            [0.]])
    """
    check_types("linear", x, weight, bias, skip, relu, site, keep_packed, backend)
    check_shapes(x.shape, weight.shape, None if bias is None else bias.shape, None)
    if x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x must have {weight.shape[1]} columns, those of weight, got shape {tuple(x.shape)}")
    if torchs_own("linear", x, weight, bias, 1, skip, site, backend):
        y = F.linear(x, weight, bias)
        return y.relu() if relu else y
    refuse_transforms("linear", x, weight, bias)
    rows = x.flatten(0, -2) if x.dim() > 1 else x.unsqueeze(0)  # reshape(-1, 0) is no shape
    y = skip_zeros(rows.contiguous(), weight, bias, (), skip, relu, site, keep_packed, backend, x.shape)
    return y if x.dim() == 2 else y.view(*x.shape[:-1], weight.shape[0])
