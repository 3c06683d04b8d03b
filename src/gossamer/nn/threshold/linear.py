"""A linear layer that leaves out small inputs, and their columns of the weight, where few rows make it wait for memory.

A token that is decoded reads every weight once, so time is bytes. An input below the threshold does not need its
column; with the weight stored by input channel such a column is a piece of memory that is never touched.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from gossamer.nn.skip.memory_order import reorder_
from gossamer.nn.threshold.thresholded import Thresholded, check_threshold
from gossamer.nn.traced import leaves_process
from gossamer.ops import half
from gossamer.ops.autograd import wants_gradient
from gossamer.ops.decoding import decode
from gossamer.ops.transforms import is_transformed

Prefill = Literal["dense", "threshold"]

_TAKEN = (torch.float32, torch.bfloat16, torch.float16)

FEW_ROWS = 8
"""Rows up to which a product waits for its weight, and which skip_mv takes together."""


class ThresholdLinear(Thresholded, nn.Linear):
    """nn.Linear whose small inputs are left out: y = W shrink(x) + b, shrink(x) = x where |x| > threshold, else 0.

    Parameters and state_dict are those of nn.Linear. Where the weight is stored by input channel (`weight.t()` is
    contiguous; see `reorder`), calls with at most 8 rows read only the weights of the inputs that stay, by
    `gs.ops.skip_mv`; else they are a dense product of the inputs that stay. The threshold is a plain number, not part
    of the state_dict, so that checkpoints go both ways between this and nn.Linear. On a CPU a tuner lets these two take
    turns on the first calls and keeps the faster one, for each dtype and number of rows; the two differ by rounding.
    Half floats that the CPU has no instructions for are multiplied by gossamer's kernels in both. Below 2^18 weights
    nothing is tried, and under `torch.use_deterministic_algorithms` no clock decides.

    Args:
        in_features, out_features, bias: as nn.Linear.
        threshold: at least 0, in units of the input. 0 leaves out zeros only and equals nn.Linear.
        prefill: what more than 8 rows do. "dense" multiplies everything: nothing is to be gained there, and quality is
            that of the dense layer. "threshold" drops the same inputs as decoding does, in a dense product: use it to
            measure a model's quality as it will decode.
        reorder: store the weight [out, in] by input channel: one copy, the same Parameter, whose strides change. What
            remembers the old ones must be made afterwards (a fused optimizer's state), and `weight.view(...)` and
            safetensors ask for `.contiguous()`. What `load_state_dict` brings is stored likewise.

    Attributes:
        tuner: the `gossamer.planner.Tuner` that decides; `tuner.explain()` says why. A copy of the layer has its own.

    Differentiable: the gradient by x is zero where x was left out. What is exported, jitted or traced is what many rows
    do, in torch's own operators.

    >>> layer = ThresholdLinear(4, 2, bias=False, threshold=1.0)
    >>> x = torch.tensor([[0.5, -2.0, 0.0, 1.0]])
    >>> torch.equal(layer(x), layer(torch.tensor([[0.0, -2.0, 0.0, 0.0]])))
    True
    """

    prefill: Prefill
    reorder: bool
    _strides: tuple[int, ...]

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        threshold: float = 0.0,
        prefill: Prefill = "dense",
        reorder: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_threshold("threshold", threshold)
        check_prefill(prefill)
        check_reorder(reorder)
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self._adopt(threshold, prefill, reorder)

    @staticmethod
    def convert(
        linear: nn.Linear, threshold: float, prefill: Prefill = "dense", *, reorder: bool = False
    ) -> ThresholdLinear:
        """Turn this very nn.Linear into a ThresholdLinear: the object, its Parameters and its hooks stay."""
        check_threshold("threshold", threshold)
        check_prefill(prefill)
        check_reorder(reorder)
        if type(linear) is not nn.Linear:
            raise TypeError(f"linear must be exactly nn.Linear, got {type(linear).__name__}")
        linear.__class__ = ThresholdLinear
        assert isinstance(linear, ThresholdLinear)
        linear._adopt(threshold, prefill, reorder)
        return linear

    def revert(self) -> nn.Linear:
        """Turn it back into an nn.Linear whose weight is stored as it was."""
        reorder_(self.weight, self._strides)
        vars(self).pop("saved_as", None)
        del self._kept, self.tuner
        del self.prefill, self.reorder, self._threshold, self._level, self._strides, self._seen
        linear: nn.Linear = self
        linear.__class__ = nn.Linear
        return linear

    def _adopt(self, threshold: float, prefill: Prefill, reorder: bool) -> None:
        self.threshold, self.prefill, self.reorder = threshold, prefill, reorder
        self._strides = self.weight.stride()
        self.start_counting(self.weight.device)
        if reorder:
            store_by_input(self)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        if self.reorder:
            store_by_input(self)  # assign=True brings another order

    def forward(self, x: Tensor) -> Tensor:
        """x[..., in] -> [..., out]."""
        few = is_few(x)
        if few and by_input(self) and skips(x, self):
            rows = x.reshape(-1, x.shape[-1])
            y, kept = decode(rows, self.weight, self.bias, self._level, self.tuner)
            self.count(kept, rows.numel())
            return y.view(*x.shape[:-1], self.out_features)
        if few or self.prefill == "threshold":
            x = self.shrunk(x)
        return dense_linear(self, x)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, threshold={self.threshold:.4g}, prefill={self.prefill!r}"


def store_by_input(linear: nn.Linear) -> None:
    """Store the weight [out, in] by input channel: the same Parameter, another order in memory."""
    if not by_input(linear):
        reorder_(linear.weight, (1, linear.weight.shape[0]))


def by_input(linear: nn.Linear) -> bool:
    """Is the weight stored by input channel?"""
    return linear.weight.t().is_contiguous()


def dense_linear(linear: nn.Linear, x: Tensor) -> Tensor:
    """The dense product, of torch's own operators in a graph for elsewhere."""
    multiply = F.linear if not isinstance(x, Tensor) or leaves_process() else half.linear
    return multiply(x, linear.weight, linear.bias)


def is_few(x: Tensor) -> bool:
    """So few rows that the product waits for its weight? Never in a graph for elsewhere."""
    if not isinstance(x, Tensor) or leaves_process():  # no tensor: a proxy of torch.fx
        return False
    return 0 < math.prod(x.shape[:-1]) <= FEW_ROWS


def skips(x: Tensor, *linears: nn.Linear) -> bool:
    """Is there a kernel that skips for these? If not, the dense product of shrunken inputs gives the same numbers."""
    return takes(x, *(linear.weight for linear in linears))


def takes(x: Tensor, *weights: Tensor) -> bool:
    """The same, asked of the weights."""
    if torch.is_autocast_enabled(x.device.type) or forward_ad._current_level >= 0 or is_transformed(x):
        return False
    if any(weight.dtype != x.dtype for weight in weights):
        return False
    if wants_gradient(x, *weights):
        return False  # the gradients are those of the dense form
    return x.dtype in _TAKEN and x.device.type in ("cpu", "cuda")


def check_reorder(reorder: bool) -> None:
    if not isinstance(reorder, bool):
        raise TypeError(f"reorder must be a bool, got {reorder!r}")


def check_prefill(prefill: str) -> None:
    if prefill not in get_args(Prefill):
        raise ValueError(f"prefill must be one of {list(get_args(Prefill))}, got {prefill!r}")
