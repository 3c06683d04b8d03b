"""conv2d: torch's convolution, which leaves out the multiplications by zeros of its input where that is faster."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.ops.registration import Backend
from gossamer.ops.skipping.operators import skip_zeros
from gossamer.ops.skipping.refusals import Skip, check_shapes, check_types, refuse_transforms, torchs_own
from gossamer.planner import Site

Ints = int | Sequence[int]


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | Literal["same", "valid"] = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    skip: Skip = "auto",
    relu: bool = False,
    site: Site | Tensor | None = None,
    keep_packed: bool = False,
    backend: Backend | None = None,
) -> Tensor:
    """torch.nn.functional.conv2d, skipping zeros that are found at run time; differentiable to any order.

    Forward looks for zeros of x; the input gradient for zeros of y's gradient, which are many where a ReLU or a
    max-pool follows directly; the weight gradient for those of either. Zeros are found inside the kernel: nothing is
    converted, and the shares of zeros may change from call to call.

    Args:
        x: [N, C, H, W] or [C, H, W]. float32 on the CPU can skip; the memory format channels_last is read as it is, any
            other is converted in each pass that skips.
        weight: [K, C // groups, R, S] of x's dtype.
        bias: [K].
        stride, padding, dilation: an int or a pair (vertical, horizontal); padding also "same" or "valid".
        groups: as in torch; with more than one nothing is skipped.
        skip: "auto" chooses per pass, from times and shares of zeros of earlier calls at this site; "input" always
            skips: the weight gradient then skips zeros of whichever operand has more of them; "never" is
            torch's own operator.
        relu: max(y, 0) in the same pass. Backward keeps one bit per element of y instead of y.
        site: what remembers: a `gossamer.planner.Site`, one per layer, or its handle, for graphs, which hold no object.
            Without it, all calls whose weight shape, stride, padding and dilation agree share one.
        keep_packed: kernels that skip read the weight in a layout of their own. False makes it at every call, from what
            the weight then holds. True keeps it until torch counts a change of the weight (optimizer steps,
            `load_state_dict`, any operator) or the weight is gone; it saves up to half the time where a large weight
            meets few pixels, and is wrong after a write that torch does not count: through `weight.data`, numpy or
            shared memory. For inference, and for weights that several calls use between two steps.
        backend: None for the kernels of x's device where they can do it, else torch's own operator, with the reason
            in `site.refused`; "cpu" or "reference" to insist.

    Returns:
        [N, K, OH, OW] or [K, OH, OW], equal to torch's to rounding and in the same memory format: channels_last if x or
        the weight is.
        What is zero meets no weight: NaN or infinity of a weight reaches y only through elements that are not zero
        (torch: 0 * inf is NaN). NaN in x is no zero, -0.0 is.

    Raises:
        TypeError, ValueError: naming the argument. RuntimeError: kernels that are not installed, an insisted backend
        under autocast; skip="input" under transforms of torch.func or forward-mode differentiation, where "auto" is
        torch's own.

    Source: SparseTrain (PACT 2020), sections on the three passes; the choice per layer and pass is its combined scheme.

    >>> x = torch.tensor([[[[0.0, 2.0], [0.0, 0.0]]]])
    >>> conv2d(x, torch.ones(1, 1, 2, 2), padding=1, skip="input", backend="reference")
    tensor([[[[0., 2., 2.],
              [0., 2., 2.],
              [0., 0., 0.]]]])
    """
    check_types("conv2d", x, weight, bias, skip, relu, site, keep_packed, backend)
    asked = x.shape, weight.shape, None if bias is None else bias.shape, stride, padding, dilation, groups
    try:
        geometry, more = _geometry(*asked) if torch.compiler.is_compiling() else _known_geometry(*asked)
    except TypeError:  # a list cannot be looked up; what is really wrong is said again
        geometry, more = _geometry(*asked)
    if more != (0, 0):
        x = F.pad(x, (0, more[1], 0, more[0]))
    if torchs_own("conv2d", x, weight, bias, groups, skip, site, backend):
        y = F.conv2d(x, weight, bias, geometry[:2], geometry[2:4], geometry[4:], groups)
        return y.relu() if relu else y
    refuse_transforms("conv2d", x, weight, bias)
    batch = x if x.dim() == 4 else x.unsqueeze(0)
    y = skip_zeros(batch, weight, bias, geometry, skip, relu, site, keep_packed, backend, batch.shape)
    return y if x.dim() == 4 else y.squeeze(0)


def _geometry(
    x: torch.Size, weight: torch.Size, bias: torch.Size | None, stride: Ints, padding: Ints | str, dilation: Ints,
    groups: int,
) -> tuple[tuple[int, ...], tuple[int, int]]:  # fmt: skip
    """Stride, padding and dilation of checked shapes, and how many rows and columns of zeros x lacks beyond that."""
    check_shapes(x, weight, bias, (4, 3))
    stride, dilation = _pair("stride", stride, 1), _pair("dilation", dilation, 1)
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1:
        raise ValueError(f"groups must be an int of at least 1, got {groups!r}")
    if x[-3] != weight[1] * groups or weight[0] % groups:
        raise ValueError(
            f"x must have weight.shape[1] * groups = {weight[1] * groups} channels and groups divide the "
            f"{weight[0]} filters, got x {tuple(x)}, weight {tuple(weight)}, groups {groups}"
        )
    more = (0, 0)
    if isinstance(padding, str):
        padding, more = _named_padding(weight, stride, padding, dilation)
    else:
        padding = _pair("padding", padding, 0)
    for axis in (0, 1):
        room, reach = x[axis - 2] + more[axis] + 2 * padding[axis], dilation[axis] * (weight[axis + 2] - 1) + 1
        if reach > room:
            raise ValueError(
                f"weight must fit into the padded input: it reaches over {reach} of {room} "
                f"{('rows', 'columns')[axis]}, got x {tuple(x)}, weight {tuple(weight)}"
            )
    return (*stride, *padding, *dilation), more


_known_geometry = lru_cache(maxsize=1024, typed=True)(_geometry)  # typed: True is no number of groups


def _pair(name: str, value: Ints, least: int) -> tuple[int, int]:
    """An int or a pair as a pair; a sequence of one serves both, as in torch."""
    if isinstance(value, int):
        pair: Sequence[int] = (value, value)
    elif isinstance(value, Sequence) and len(value) in (1, 2) and all(isinstance(one, int) for one in value):
        pair = value if len(value) == 2 else (value[0], value[0])
    else:
        raise TypeError(f"{name} must be an int or a pair of ints, got {value!r}")
    if min(pair) < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return pair[0], pair[1]


def _named_padding(
    weight: torch.Size, stride: tuple[int, int], padding: str, dilation: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """What "same" or "valid" means in numbers. An odd total puts the extra zeros below and to the right, as torch."""
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding != "same":
        raise ValueError(f"padding must be ints, 'same' or 'valid', got {padding!r}")
    if stride != (1, 1):
        raise ValueError(f"padding='same' needs stride 1, got {stride}")
    down, along = (step * (taps - 1) for step, taps in zip(dilation, weight[2:], strict=True))
    return (down // 2, along // 2), (down % 2, along % 2)
