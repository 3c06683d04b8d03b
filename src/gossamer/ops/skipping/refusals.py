"""What both layers refuse, and where they leave the work to torch: the reason, or an error if a backend was named."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from gossamer.handles import owner_of
from gossamer.ops.arguments import FLOATS
from gossamer.ops.checks import check_flag
from gossamer.ops.registration import Backend, check_backend, constant_in_graphs
from gossamer.ops.transforms import is_transformed
from gossamer.planner import Site

Skip = Literal["auto", "input", "never"]

FEW_CHANNELS = 8
"""With fewer input channels, as images have, there is little to sum per output and hardly a zero."""

_PLAIN = (Tensor, torch.nn.Parameter, FakeTensor, FunctionalTensor)


def check_shapes(x: torch.Size, weight: torch.Size, bias: torch.Size | None, dims: tuple[int, int] | None) -> None:
    """Dimensions of the shapes of conv2d (`dims`: those that x may have) or linear."""
    if dims is not None and len(x) not in dims:
        raise ValueError(f"x must have shape [N, C, H, W] or [C, H, W], got {tuple(x)}")
    if dims is None and len(x) < 1:
        raise ValueError("x must have shape [..., C], got a scalar")
    if len(weight) != (2 if dims is None else 4):
        expected = "[K, C]" if dims is None else "[K, C // groups, R, S]"
        raise ValueError(f"weight must have shape {expected}, got {tuple(weight)}")
    if bias is not None and tuple(bias) != (weight[0],):
        raise ValueError(f"bias must have shape [{weight[0]}], weight's filters, got {tuple(bias)}")


def check_options(skip: str, **flags: bool) -> None:
    """What a layer may be told: how to skip, and flags by their names."""
    if skip not in ("auto", "input", "never"):
        raise ValueError(f"skip must be 'auto', 'input' or 'never', got {skip!r}")
    for flag, value in flags.items():
        check_flag(flag, value)


def check_types(
    name: str, x: Tensor, weight: Tensor, bias: Tensor | None, skip: str, relu: bool, site: Site | Tensor | None,
    keep_packed: bool, backend: Backend | None,
) -> None:  # fmt: skip
    """Types and options of conv2d or linear."""
    for what, tensor in (("x", x), ("weight", weight), ("bias", bias)):
        if not isinstance(tensor, Tensor) and not (tensor is None and what == "bias"):
            raise TypeError(f"{what} must be a tensor, got {type(tensor).__name__}")
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{what} must be on x's device {x.device}, got {tensor.device}")
    check_options(skip, relu=relu, keep_packed=keep_packed)
    if site is not None and not isinstance(site, (Site, Tensor)):
        raise TypeError(f"site must be a gossamer.planner.Site, its handle or None, got {type(site).__name__}")
    if backend is not None:
        check_backend(backend, "x", x)
        if skip == "never":
            raise ValueError(f"backend must be None with skip='never', which is torch's own operator, got {backend!r}")


def torchs_own(
    name: str, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, skip: str, site: Site | Tensor | None,
    backend: Backend | None,
) -> bool:  # fmt: skip
    """Must torch's own operator do it? The site is told why; with a backend named that is an error."""
    if skip == "never":
        return True
    if backend is not None:
        _check_backend_can(name, x, weight, bias, groups, backend)
        return False
    reason = why_dense(x, weight, bias, groups, skip)
    if reason is None:
        return False
    if isinstance(site, Site):  # a handle is that of a graph, whose maker asks `why_dense` itself
        _refuse(site.handle, reason)
    return True


def why_dense(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, skip: str) -> str | None:
    """Why the CPU's kernels cannot or, with "auto", need not look for zeros; None if they may."""
    if groups != 1:
        return f"groups={groups}"
    if skip == "auto" and weight.shape[1] < FEW_CHANNELS:
        return f"{weight.shape[1]} input channels, fewer than {FEW_CHANNELS}"
    if skip == "auto" and is_transformed(x, weight, bias):
        return "a transform of torch.func, or forward-mode differentiation"
    for tensor in (x, weight, bias):
        if tensor is None:
            continue
        if not tensor.is_cpu:
            return f"device {tensor.device.type}"
        if tensor.dtype is not torch.float32:
            return f"dtype {tensor.dtype}"
        if tensor.layout is not torch.strided:
            return f"layout {tensor.layout}"
        if type(tensor) not in _PLAIN:
            return f"tensor subclass {type(tensor).__name__}"
    return "autocast" if torch.is_autocast_enabled("cpu") else None


def refuse_transforms(name: str, *tensors: Tensor | None) -> None:
    """Refuse what the kernels would get wrong."""
    if is_transformed(*tensors):
        raise RuntimeError(
            f"gossamer.ops.{name} with skip='input' has no forward-mode derivative and no rule for transforms of "
            f"torch.func (vmap, grad, ...): differentiate backward, or let skip be 'auto' or 'never'"
        )


def _check_backend_can(
    name: str, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, backend: Backend
) -> None:
    if backend == "triton":
        raise ValueError(f"backend must be 'cpu' or 'reference' for {name}, got 'triton'")
    if groups != 1:
        raise ValueError(f"groups must be 1 with backend={backend!r}, got {groups}")
    for what, tensor in (("x", x), ("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if tensor.layout is not torch.strided:
            raise TypeError(f"{what} must be strided with backend={backend!r}, got {tensor.layout}")
        if backend == "cpu" and tensor.dtype is not torch.float32:
            raise TypeError(f"{what} must be float32 with backend='cpu', got {tensor.dtype}")
        if tensor.dtype not in FLOATS or tensor.dtype != x.dtype:
            raise TypeError(f"{what} must be a float of x's dtype {x.dtype}, got {tensor.dtype}")
    if torch.is_autocast_enabled(x.device.type):
        raise RuntimeError(f"backend={backend!r} computes in x's dtype: leave autocast for this call")


@constant_in_graphs
def _refuse(handle: Tensor, reason: str) -> bool:
    """Tell the site, also while a graph is being made: a reason is one of shapes, dtypes and options. Of layers that
    share a graph only the one from which it is made hears of it."""
    owner_of(handle, Site).refuse(reason)
    return True
