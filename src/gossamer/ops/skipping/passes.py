"""The three passes of a layer that may skip zeros: which algorithm, run it, report it. One pair of opaque ops.

    forward   y  = x * w      skip zeros of x
    input     dx = dy * w^T   skip zeros of dy
    weight    dw = dy * x     skip zeros of either

A choice depends on what earlier calls saw, so it is made where torch.compile does not look: inside the ops
gossamer::skip_zeros and gossamer::skip_zeros_backward, which carry a site's handle. Eager calls on plain tensors run
the same functions directly, for the microseconds.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from gossamer.measure import clock
from gossamer.ops.packs import KEPT
from gossamer.ops.registration import load_kernel
from gossamer.ops.skipping.geometry import Layer, Linear, layer_of
from gossamer.ops.skipping.memory_format import LAST, in_format, owned
from gossamer.planner import Site

DENSE, SKIP, SKIP_X, SKIP_DY = "dense", "skip", "skip_x", "skip_dy"
FEW_ROWS = 8
"""Rows up to which a linear layer whose weight is stored by input channel reads only the rows of it that it needs."""

_PIECES, _PIECE = 11, 2048  # of a sample; 11 divides few sizes, so that not every piece starts at an image's corner
UNKNOWN = -1

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class Passes:
    """The passes of one layer: by the kernels of one backend, as one site chooses or, with mode "input", skipping."""

    def __init__(self, geometry: Sequence[int], mode: str, site: Site, keep_packed: bool, backend: str | None) -> None:
        self.layer: Layer = layer_of(geometry)
        self.site, self.backend, self.chooses = site, backend or "cpu", mode != "input"
        self.keep_packed = keep_packed

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> tuple[Tensor, Tensor, int]:
        """y; the bits of the relu (no element without one); how many nonzeros x has, or -1 if nobody counted."""
        x, order = self.layer.packed(x), self.layer.order(x, weight)
        if x.numel() == 0 or weight.numel() == 0:
            return *self._rectified(self.layer.dense(x, weight, bias, self.keep_packed), relu, order), UNKNOWN
        algorithm = self._algorithm("forward", (DENSE, SKIP), x, weight, {"x": x}) if self.chooses else SKIP
        begin = clock.now()
        if algorithm == SKIP:
            y, bits, nonzeros, density = self._skip_forward(x, weight, bias, relu, order)
            self.site.observe("forward", algorithm, clock.now() - begin, {"x": density})
            return y, bits, nonzeros
        y, bits = self._rectified(self.layer.dense(x, weight, bias, self.keep_packed), relu, order)
        seconds = clock.now() - begin
        self.site.observe("forward", algorithm, seconds, {"x": sampled(x)} if self.site.samples("forward") else {})
        return y, bits, UNKNOWN

    def backward(
        self, dy: Tensor, x: Tensor, weight: Tensor, bits: Tensor | None, of_x: int, want: Sequence[bool]
    ) -> Gradients:
        """Gradients by x, weight and bias, as far as wanted; `of_x` is forward's count of nonzeros."""
        dy, x, order = self.layer.packed(dy), self.layer.packed(x), self.layer.order(x, weight)
        if dy.numel() == 0 or x.numel() == 0 or weight.numel() == 0:
            return self.layer.dense_gradients(self._kept(dy, bits), x, weight, want)
        if bits is not None and (want[2] or torch.are_deterministic_algorithms_enabled()):
            dy, bits = self._kept(dy, bits), None  # every element of it will be asked for
        dx = dw = db = None
        of_dy = UNKNOWN
        if want[0]:
            algorithm = self._algorithm("input", (DENSE, SKIP), x, weight, {"dy": dy}) if self.chooses else SKIP
            begin = clock.now()
            if algorithm == SKIP:
                dy = self.layer.laid_out(dy)
                dx, of_dy = self._skip_input(dy, x, weight, bits, order)
                seconds, seen = clock.now() - begin, {"dy": of_dy / dy.numel()}
            else:
                dy, bits = self._kept(dy, bits), None
                dx = in_format(self._dense(dy, x, weight, 0), order)
                seconds = clock.now() - begin
                seen = {"dy": sampled(dy)} if self.site.samples("input") else {}
            self.site.observe("input", algorithm, seconds, seen)
        if want[1]:
            if self.chooses:
                algorithm = self._algorithm("weight", (DENSE, SKIP_X, SKIP_DY), x, weight, {"x": x, "dy": dy})
            else:
                algorithm = self._sparser(dy, x, bits, of_dy, of_x)
            begin = clock.now()
            if algorithm == DENSE:
                dy, bits = self._kept(dy, bits), None
                dw, db = self.layer.dense_gradients(dy, x, weight, (False, True, want[2]))[1:]
                dw = laid_out_as(dw, weight)
                seconds = clock.now() - begin
                seen = {"x": sampled(x), "dy": sampled(dy)} if self.site.samples("weight") else {}
            else:
                side = "x" if algorithm == SKIP_X else "dy"
                dw, density = self._skip_weight(dy, x, weight, bits, side)
                db = self._sum(dy) if want[2] else None  # dense makes it in passing
                seconds, seen = clock.now() - begin, {side: density}
            self.site.observe("weight", algorithm, seconds, seen)
        if want[2] and db is None:
            db = self._sum(dy)
        return dx, dw, db

    def key(self, x: Tensor, weight: Tensor) -> Hashable:
        """What decides the cost of a call."""
        return x.shape, weight.shape, self.layer

    def asks(self, x: Tensor, weight: Tensor) -> bool:
        """Whether forward has to choose at all. Not in the course of a bypass. Nor where few rows wait for a weight
        that is stored by output channel and may not be copied: they read all of it."""
        if not self.chooses:
            return True
        if isinstance(self.layer, Linear) and x.shape[0] <= FEW_ROWS and not (self.keep_packed or by_input(weight)):
            self.site.refuse(
                f"up to {FEW_ROWS} rows read the whole of a weight stored by output channel; keep_packed=True keeps a "
                "copy by input channel"
            )
            return False
        return not self.site.bypass(("forward",), self.key(x, weight), x.shape)

    def _sum(self, dy: Tensor) -> Tensor:
        return self.layer.pixels(dy).sum((0, 1, 2))

    def _algorithm(
        self, pass_: Literal["forward", "input", "weight"], candidates: tuple[str, ...], x: Tensor, weight: Tensor,
        operands: dict[str, Tensor],
    ) -> str:  # fmt: skip
        key = self.key(x, weight)
        if not torch.are_deterministic_algorithms_enabled():
            return self.site.choose(pass_, candidates, key)
        known = {name: int(torch.count_nonzero(operand)) / operand.numel() for name, operand in operands.items()}
        return self.site.choose(pass_, candidates, key, known)

    def _sparser(self, dy: Tensor, x: Tensor, bits: Tensor | None, of_dy: int, of_x: int) -> str:
        """Whose zeros to skip where one must be skipped: of the operand with the smaller share of nonzeros."""
        if of_x == UNKNOWN:
            of_x = int(torch.count_nonzero(x))
        if of_dy == UNKNOWN:
            of_dy = int(torch.count_nonzero(self._kept(dy, bits)))
        return SKIP_X if of_x * dy.numel() < of_dy * x.numel() else SKIP_DY

    def _kernel(self, module: str, name: str) -> Any:
        return load_kernel(self.backend, module, name)

    def _skip_forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, order: torch.memory_format
    ) -> tuple[Tensor, Tensor, int, float]:
        bias = None if bias is None else bias.contiguous()
        if isinstance(self.layer, Linear) and x.shape[0] <= FEW_ROWS and (self.keep_packed or by_input(weight)):
            rows = weight.t() if by_input(weight) else KEPT.get(weight, "by input", _by_input)
            y, counts = self._kernel("skip_mv", "skip_mv")(x, rows, bias, 0.0)
            return *self._rectified(y, relu, order), UNKNOWN, int(counts[0]) / x.shape[1]
        size = self.layer.out_size(x, weight)
        y, bits, counts = self._skip(self.layer.laid_out(x), weight, bias, None, False, size, relu, order)
        nonzeros = counts.tolist()[0]
        return y, bits, nonzeros, nonzeros / x.numel()

    def _skip_input(
        self, dy: Tensor, x: Tensor, weight: Tensor, bits: Tensor | None, order: torch.memory_format
    ) -> tuple[Tensor, int]:
        dx, _, counts = self._skip(dy, weight, None, bits, True, self.layer.pixels(x).shape[1:3], False, order)
        return dx, counts.tolist()[0]

    def _skip(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, bits: Tensor | None, transposed: bool,
        size: Sequence[int], relu: bool, order: torch.memory_format,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        layer, pack = self.layer, self._kernel("skip_conv", "skip_pack")

        def packed(weight: Tensor) -> Tensor:
            filters = layer.filters(weight)
            return pack(filters.transpose(0, 1) if transposed else filters)

        if self.keep_packed:
            isa = self._kernel("_call", "native").isa() if self.backend == "cpu" else ""
            ready = KEPT.get(weight, f"{self.backend} {isa} {'transposed' if transposed else 'forward'}", packed)
        else:
            ready = packed(weight.detach())
        y, ybits, counts = self._kernel("skip_conv", "skip_conv")(
            layer.pixels(x), ready, bias, bits, weight.shape[1 if transposed else 0],
            layer.kernel(weight), layer.stride, layer.padding, layer.dilation, transposed, tuple(size), relu,
        )  # fmt: skip
        return in_format(owned(y, layer.from_pixels(y)), order), ybits, counts

    def _skip_weight(
        self, dy: Tensor, x: Tensor, weight: Tensor, bits: Tensor | None, skip: str
    ) -> tuple[Tensor, float]:
        """dw, and the share of nonzeros among the elements of the skipped operand that were read."""
        layer = self.layer
        last = not weight.is_contiguous() and weight.is_contiguous(memory_format=LAST)
        pixels, gradients = layer.pixels(layer.laid_out(x)), layer.pixels(layer.laid_out(dy))
        dw, counts = self._kernel("skip_conv_weight", "skip_conv_weight")(
            pixels, gradients, bits, layer.kernel(weight), layer.stride, layer.padding, layer.dilation, skip, last
        )
        nonzeros, _, elements = counts.tolist()
        return laid_out_as(dw.view(weight.shape), weight), nonzeros / max(elements, 1)

    def _dense(self, dy: Tensor, x: Tensor, weight: Tensor, which: int) -> Tensor:
        gradient = self.layer.dense_gradients(dy, x, weight, [at == which for at in range(3)])[which]
        assert gradient is not None
        return gradient

    def _rectified(self, y: Tensor, relu: bool, order: torch.memory_format) -> tuple[Tensor, Tensor]:
        if not relu:
            return in_format(y, order), torch.empty(0, dtype=torch.int32, device=y.device)
        pixels, bits = self._kernel("relu_bits", "relu_bits")(self.layer.pixels(self.layer.laid_out(y)))
        return in_format(owned(pixels, self.layer.from_pixels(pixels)), order), bits

    def _kept(self, dy: Tensor, bits: Tensor | None) -> Tensor:
        """dy with zeros where the relu was off."""
        if bits is None:
            return dy
        pixels = self.layer.pixels(self.layer.laid_out(dy))
        return self.layer.from_pixels(self._kernel("relu_bits", "keep_bits")(pixels, bits))


def by_input(weight: Tensor) -> bool:
    """Is weight[K, C] stored by input channel?"""
    return weight.t().is_contiguous()


def _by_input(weight: Tensor) -> Tensor:
    return weight.t().contiguous()


def sampled(x: Tensor) -> float:
    """The share of nonzeros in a few pieces of a tensor's memory."""
    count = x.numel()
    if count > _PIECES * _PIECE:
        x = x.as_strided((_PIECES, _PIECE), (count // _PIECES, 1))
        count = _PIECES * _PIECE
    return int(torch.count_nonzero(x)) / count


def laid_out_as(gradient: Tensor | None, weight: Tensor) -> Tensor:
    """The gradient with the strides of a new tensor like the weight: autograd would copy any other."""
    assert gradient is not None
    strides = torch.empty_like(weight, device="meta").stride()
    if gradient.stride() == strides:
        return gradient
    steps = zip(gradient.shape, gradient.stride(), strides, strict=True)
    if all(mine == its for size, mine, its in steps if size > 1):
        return gradient.as_strided(gradient.shape, strides)
    return torch.empty_like(weight).copy_(gradient)
