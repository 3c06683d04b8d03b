"""A layer that skips zeros, in autograd and as opaque operators.

gossamer::skip_zeros and gossamer::skip_zeros_backward take a site's handle, so that a compiled graph holds no choice
and layers that are alike share it. Eager calls on plain tensors run the same passes directly.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from gossamer.handles import owner_of
from gossamer.ops.autograd import saving_is_watched, wants_gradient
from gossamer.ops.packs import KEPT
from gossamer.ops.registration import Backend, register_opaque
from gossamer.ops.skipping.geometry import layer_of
from gossamer.ops.skipping.memory_format import in_format
from gossamer.ops.skipping.passes import UNKNOWN, Gradients, Passes
from gossamer.ops.transforms import is_transformed
from gossamer.planner import Site
from gossamer.planner.tuner.site import Pass

_MOST_SITES = 256
_PASSES: dict[tuple[bool, bool], tuple[Pass, ...]] = {
    (False, False): ("forward",),
    (True, False): ("forward", "input"),
    (False, True): ("forward", "weight"),
    (True, True): ("forward", "input", "weight"),
}
_sites: OrderedDict[tuple[Any, ...], Site] = OrderedDict()


def shared_site(weight_shape: Sequence[int], geometry: Sequence[int]) -> Site:
    """The site of all calls without one whose weight and geometry are alike."""
    key = (*weight_shape, *geometry)
    found = _sites.get(key)
    if found is None:
        found = _sites[key] = Site("x".join(map(str, weight_shape)))
        if len(_sites) > _MOST_SITES:
            _sites.popitem(last=False)
    return found


def _passes(
    weight: Tensor, geometry: Sequence[int], mode: str, site: Tensor | None, keep_packed: bool, backend: str | None
) -> Passes:
    place = shared_site(weight.shape, geometry) if site is None else owner_of(site, Site)
    return Passes(tuple(geometry), mode, place, keep_packed, backend)


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Sequence[int], mode: str, relu: bool,
    site: Tensor | None, keep_packed: bool, backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    place = shared_site(weight.shape, geometry) if site is None else owner_of(site, Site)
    plain = mode == "auto" and not relu and place.bypassed(x.shape) is not None  # a short question, for microseconds
    passes = Passes(tuple(geometry), mode, place, keep_packed, backend)
    if plain or (not relu and not passes.asks(x, weight)):
        y = passes.layer.dense(x, weight, bias, keep_packed)
        if geometry:
            y = in_format(y, passes.layer.order(x, weight))
        unknown = torch.full((), UNKNOWN, dtype=torch.int64, device="cpu")
        return y, torch.empty(0, dtype=torch.int32, device="cpu"), unknown
    y, bits, nonzeros = passes.forward(x, weight, bias, relu)
    return y, bits, torch.tensor(nonzeros, device="cpu")


def _fake_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Sequence[int], mode: str, relu: bool,
    site: Tensor | None, keep_packed: bool, backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    layer, out = layer_of(geometry), weight.shape[0]
    rows, cols = layer.out_size(x, weight)
    size = (layer.images(x), rows, cols)
    y = layer.from_pixels(x.new_empty(*size, out)).contiguous(memory_format=layer.order(x, weight))
    bits = x.new_empty((*size, (out + 31) // 32) if relu else (0,), dtype=torch.int32)
    return y, bits, torch.empty((), dtype=torch.int64, device="cpu")


def _backward(
    dy: Tensor, x: Tensor, weight: Tensor, bits: Tensor | None, nonzeros: Tensor, geometry: Sequence[int], mode: str,
    site: Tensor | None, keep_packed: bool, backend: str | None, want: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    passes = _passes(weight, geometry, mode, site, keep_packed, backend)
    found = passes.backward(dy, x, weight, bits, int(nonzeros), want)
    dx, dw, db = (gradient if gradient is not None else dy.new_empty(0) for gradient in found)
    return dx, dw, db


def _fake_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bits: Tensor | None, nonzeros: Tensor, geometry: Sequence[int], mode: str,
    site: Tensor | None, keep_packed: bool, backend: str | None, want: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    layer = layer_of(geometry)
    return (
        x.new_empty(x.shape).contiguous(memory_format=layer.order(x, weight)) if want[0] else dy.new_empty(0),
        torch.empty_like(weight) if want[1] else dy.new_empty(0),
        dy.new_empty(weight.shape[0] if want[2] else 0),
    )


opaque_forward = register_opaque(
    "skip_zeros",
    "(Tensor x, Tensor weight, Tensor? bias, SymInt[] geometry, str mode, bool relu, Tensor? site, bool keep_packed, "
    "str? backend) -> (Tensor, Tensor, Tensor)",
    _forward,
    _fake_forward,
)
opaque_backward = register_opaque(
    "skip_zeros_backward",
    "(Tensor dy, Tensor x, Tensor weight, Tensor? bits, Tensor nonzeros, SymInt[] geometry, str mode, Tensor? site, "
    "bool keep_packed, str? backend, bool[] want) -> (Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)


class SkipZeros(torch.autograd.Function):
    """`site` is a Site, or its handle (None: the one of all such weights) where the operators must be called."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple[int, ...], mode: str, relu: bool,
        site: Site | Tensor | None, keep_packed: bool, backend: Backend | None,
    ) -> Tensor:  # fmt: skip
        counted: Tensor | None = None
        handle: Tensor | None = None
        if isinstance(site, Site):
            ctx.passes = Passes(geometry, mode, site, keep_packed, backend)
            y, bits, ctx.nonzeros = ctx.passes.forward(x, weight, bias, relu)
        else:
            handle = site
            y, bits, counted = opaque_forward(x, weight, bias, geometry, mode, relu, handle, keep_packed, backend)
            ctx.given = mode, keep_packed, backend
        ctx.save_for_backward(x, weight, bits if relu else None, counted, handle)
        ctx.geometry, ctx.opaque = geometry, counted is not None
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bits, nonzeros, handle = ctx.saved_tensors
        want = list(ctx.needs_input_grad[:3])
        if (torch.is_grad_enabled() and not torch.compiler.is_compiling()) or is_transformed(dy):
            found = _differentiable(dy, x, weight, bits, ctx.geometry, want)
        elif ctx.opaque:
            mode, keep_packed, backend = ctx.given
            found = opaque_backward(
                dy, x, weight, bits, nonzeros, ctx.geometry, mode, handle, keep_packed, backend, want
            )
        else:
            found = ctx.passes.backward(dy, x, weight, bits, ctx.nonzeros, want)
        dx, dw, db = (gradient if wanted else None for gradient, wanted in zip(found, want, strict=True))
        return dx, dw, db, *[None] * 6


def _run(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple[int, ...], mode: str, relu: bool,
    site: Site | Tensor | None, keep_packed: bool, backend: Backend | None,
) -> tuple[Tensor, Tensor, Tensor | int]:  # fmt: skip
    if isinstance(site, Site):
        return Passes(geometry, mode, site, keep_packed, backend).forward(x, weight, bias, relu)
    return opaque_forward(x, weight, bias, geometry, mode, relu, site, keep_packed, backend)


def skip_zeros(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple[int, ...], mode: str, relu: bool,
    site: Site | Tensor | None, keep_packed: bool, backend: Backend | None, brief: torch.Size,
) -> Tensor:  # fmt: skip
    """The layer `geometry` of checked arguments, differentiable; a module asks `site.bypassed` about `brief`."""
    place: Site | Tensor | None
    if isinstance(site, Tensor):
        place = site
    elif torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or isinstance(x, FakeTensor):
        place = None if site is None else site.handle
    else:
        place = site if site is not None else shared_site(weight.shape, geometry)
        layer = layer_of(geometry)
        passes = _PASSES[wants_gradient(x), wants_gradient(weight)]
        if mode == "auto" and not saving_is_watched() and place.bypass(passes, (x.shape, weight.shape, layer), brief):
            KEPT.drop(weight)
            y = layer.dense(x, weight, bias, keep_packed)
            place.torchs_own = layer.is_torchs(x, weight, bias, keep_packed)
            return y.relu_() if relu else y
    args = (x, weight, bias, geometry, mode, relu, place, keep_packed, backend)
    if wants_gradient(x, weight, bias):
        return SkipZeros.apply(*args)
    return _run(*args)[0]


def _differentiable(
    dy: Tensor, x: Tensor, weight: Tensor, bits: Tensor | None, geometry: tuple[int, ...], want: Sequence[bool]
) -> Gradients:
    """The gradients by torch's own operators, whose derivatives torch knows."""
    layer = layer_of(geometry)
    if bits is not None:
        shifts = torch.arange(32, dtype=torch.int32, device=bits.device)
        on = ((bits.unsqueeze(-1) >> shifts) & 1).flatten(-2)[..., : weight.shape[0]] != 0
        dy = dy.where(layer.from_pixels(on), 0)
    return layer.dense_gradients(dy, x, weight, want)
