"""Do two models compute the same outputs? Relative to the largest output, in the precision the model itself uses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.wrappers import full_precision, seen_through

from .borrow import HALVES, duplicate, evaluating, is_half, ordinary, single, undisturbed
from .capture import call_arguments
from .captured import Capture, tensor_leaves
from .watchers import quiet

# Sums in another order differ by about eps * sqrt(terms); measured 1.5e-7 (float32) and 2.8e-16 (float64) on
# convolution networks. The bounds leave two to three decimal digits for depth.
_TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}

# Who rounds float32 operands if told to.
_FLOAT32 = [(vendor, operator) for vendor in ("cuda", "mkldnn") for operator in ("matmul", "conv", "rnn")]


class InexactError(RuntimeError):
    """The shrunk model computes something else."""


def default_tolerance(capture: Capture) -> float:
    """The bound for the least precise arithmetic of the graph; half-precision models are compared in float32."""
    dtypes = {node.meta["val"].dtype for node in capture.calls if isinstance(node.meta.get("val"), Tensor)}
    casts = {node.kwargs.get("dtype") for node in capture.calls}
    rounded = [dtype for dtype in HALVES if dtype in casts]
    if rounded:
        return 2 * max(torch.finfo(dtype).eps for dtype in rounded)
    single = torch.float32 in dtypes or not dtypes.isdisjoint(HALVES)
    return _TOLERANCE[torch.float32 if single else torch.float64]


@contextlib.contextmanager
def _exact_arithmetic() -> Iterator[None]:
    """TensorFloat-32 rounds to 10 bits and bfloat16 to 7, which would hide real differences.

    Set operator by operator: once somebody has, torch refuses to say what its older names for all of them hold.
    """
    before = [torch._C._get_fp32_precision_getter(*each) for each in _FLOAT32]
    for each in _FLOAT32:
        torch._C._set_fp32_precision_setter(*each, "ieee")
    try:
        yield
    finally:
        for each, precision in zip(_FLOAT32, before, strict=True):
            torch._C._set_fp32_precision_setter(*each, precision)


def outputs(model: nn.Module, example_inputs: Any, watches: Mapping[int, bool]) -> list[Tensor]:
    """Every output tensor of one forward in eval mode without gradients; half-precision models run as float32, and so
    does what autocast would cast. Hooks that only watch, by `watches` of the capture, see none of it."""
    return runs(model, example_inputs, watches, 1)[0]


def runs(model: nn.Module, example_inputs: Any, watches: Mapping[int, bool], times: int) -> list[list[Tensor]]:
    """`outputs` of several forwards in a row, each after the state that the one before has left."""
    args, kwargs = single(ordinary(call_arguments(example_inputs)))
    if is_half(model):
        model = duplicate(model).float()
    found = []
    with (
        undisturbed(model), evaluating(model), seen_through(model), full_precision(), torch.no_grad(),
        _exact_arithmetic(), quiet(model, watches),
    ):  # fmt: skip
        for _ in range(times):
            torch.manual_seed(0)
            found.append([leaf.detach().clone() for leaf in tensor_leaves(model(*args, **kwargs))])
    return found


def difference(expected: list[Tensor], found: list[Tensor]) -> float:
    """The largest error of any output relative to that output's largest magnitude; inf where anything else differs."""
    if len(expected) != len(found):
        return float("inf")
    worst = 0.0
    for a, b in zip(expected, found, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return float("inf")
        if a.numel() == 0 or torch.equal(a, b):
            continue
        finite = a.isfinite()
        special = torch.where(finite, torch.zeros_like(a), a)  # NaN and infinities must be the same ones
        if not a.is_floating_point() or not torch.equal(finite, b.isfinite()):
            return float("inf")
        if not torch.equal(special.nan_to_num(), torch.where(finite, torch.zeros_like(b), b).nan_to_num()):
            return float("inf")
        if not bool(finite.any()):
            continue
        a, b = a[finite].detach().double(), b[finite].detach().double()
        worst = max(worst, float((a - b).abs().max() / a.abs().max().clamp_min(torch.finfo(torch.float64).tiny)))
    return worst
