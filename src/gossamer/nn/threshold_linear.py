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

from gossamer.nn.traced import leaves_process
from gossamer.ops._mv import skip_on

Prefill = Literal["dense", "threshold"]

_TAKEN = {"cpu": (torch.float32, torch.bfloat16), "cuda": (torch.float32, torch.bfloat16, torch.float16)}

FEW_ROWS = 8
"""Rows up to which a product waits for its weight, and which skip_mv takes together."""


class ThresholdLinear(nn.Linear):
    """nn.Linear whose small inputs are left out: y = W shrink(x) + b, shrink(x) = x where |x| > threshold, else 0.

    Parameters and state_dict are those of nn.Linear. The weight keeps its shape [out, in] and is stored by input
    channel (`weight.t()` is contiguous): one copy, the same Parameter. With at most 8 rows `gs.ops.skip_mv` reads only
    the weights of the inputs that stay. The threshold is a plain number, not part of the state_dict, so that
    checkpoints go both ways between this and nn.Linear.

    Args:
        in_features, out_features, bias: as nn.Linear.
        threshold: at least 0, in units of the input. 0 leaves out zeros only and equals nn.Linear.
        prefill: what more than 8 rows do. "dense" multiplies everything: nothing is to be gained there, and quality is
            that of the dense layer. "threshold" drops the same inputs as decoding does, in a dense product: use it to
            measure a model's quality as it will decode.

    Differentiable: the gradient by x is zero where x was left out. What is exported, jitted or traced is what many rows
    do, in torch's own operators.

    >>> layer = ThresholdLinear(4, 2, bias=False, threshold=1.0)
    >>> x = torch.tensor([[0.5, -2.0, 0.0, 1.0]])
    >>> torch.equal(layer(x), layer(torch.tensor([[0.0, -2.0, 0.0, 0.0]])))
    True
    """

    threshold: float
    prefill: Prefill
    _kept: Tensor
    _seen: int

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        threshold: float = 0.0,
        prefill: Prefill = "dense",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_threshold("threshold", threshold)
        check_prefill(prefill)
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self._adopt(threshold, prefill)

    @staticmethod
    def convert(linear: nn.Linear, threshold: float, prefill: Prefill = "dense") -> ThresholdLinear:
        """Turn this very nn.Linear into a ThresholdLinear: the object, its Parameters and its hooks stay."""
        check_threshold("threshold", threshold)
        check_prefill(prefill)
        if type(linear) is not nn.Linear:
            raise TypeError(f"linear must be exactly nn.Linear, got {type(linear).__name__}")
        linear.__class__ = ThresholdLinear
        assert isinstance(linear, ThresholdLinear)
        linear._adopt(threshold, prefill)
        return linear

    def revert(self) -> nn.Linear:
        """Turn it back into an nn.Linear whose weight is stored by output channel."""
        del self._kept
        del self.threshold, self.prefill, self._seen
        linear: nn.Linear = self
        linear.__class__ = nn.Linear
        linear.weight.data = linear.weight.data.contiguous()
        return linear

    def _adopt(self, threshold: float, prefill: Prefill) -> None:
        self.threshold, self.prefill = float(threshold), prefill
        start_counting(self, self.weight.device)
        store_by_input(self)

    def forward(self, x: Tensor) -> Tensor:
        """x[..., in] -> [..., out]."""
        few = is_few(x)
        if few and skips(x, self):
            rows = x.reshape(-1, x.shape[-1])
            y, kept = skip_few(self, rows, self.threshold)
            if not torch.compiler.is_compiling():
                self._kept += kept
                self._seen += rows.numel()
            return y.view(*x.shape[:-1], self.out_features)
        if few or self.prefill == "threshold":
            x = shrink(x, self.threshold)
        return F.linear(x, self.weight, self.bias)

    def density(self) -> float:
        """The share of inputs that stayed, over calls with few rows outside torch.compile; NaN before any."""
        return int(self._kept) / self._seen if self._seen else math.nan

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, threshold={self.threshold:.4g}, prefill={self.prefill!r}"


def start_counting(module: nn.Module, device: torch.device) -> None:
    """Count from here: `_kept` of `_seen` elements. Neither is part of the state_dict."""
    module._seen = 0  # type: ignore[assignment]
    module.register_buffer("_kept", torch.zeros(1, dtype=torch.int64, device=device), persistent=False)


def store_by_input(linear: nn.Linear) -> None:
    """Store the weight [out, in] by input channel, in place: the same Parameter, another order in memory."""
    if not linear.weight.t().is_contiguous():
        linear.weight.data = linear.weight.data.t().contiguous().t()


def is_few(x: Tensor) -> bool:
    """So few rows that the product waits for its weight? Never in a graph for elsewhere."""
    if not isinstance(x, Tensor) or leaves_process():  # no tensor: a proxy of torch.fx
        return False
    return 0 < math.prod(x.shape[:-1]) <= FEW_ROWS


def skips(x: Tensor, *linears: nn.Linear) -> bool:
    """Is there a kernel that skips for these? If not, the dense product of shrunken inputs gives the same numbers."""
    if torch.is_autocast_enabled(x.device.type) or forward_ad._current_level >= 0:
        return False
    weights = [linear.weight for linear in linears]
    if any(weight.dtype != x.dtype for weight in weights):
        return False
    if torch.is_grad_enabled() and (x.requires_grad or any(weight.requires_grad for weight in weights)):
        return False  # the gradients are those of the dense form
    return x.dtype in _TAKEN.get(x.device.type, ())


def skip_few(linear: nn.Linear, x: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """x[B, in] -> (y[B, out], int64[1]: how many elements of x were used)."""
    store_by_input(linear)  # load_state_dict(assign=True) brings another order
    return skip_on(None)(x, linear.weight.t(), linear.bias, threshold)


def shrink(x: Tensor, threshold: float) -> Tensor:
    """x where |x| > threshold, NaN included, else 0; x itself, with its whole gradient, if the threshold is 0."""
    if not threshold:
        return x
    if isinstance(x, Tensor) and x.dtype in (
        torch.float16,
        torch.bfloat16,
    ):  # hardshrink would round the threshold to the type of x
        return x.masked_fill(x.float().abs() <= threshold, 0)
    return F.hardshrink(x, threshold)


def check_threshold(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be finite and at least 0, got {value}")


def check_prefill(prefill: str) -> None:
    if prefill not in get_args(Prefill):
        raise ValueError(f"prefill must be one of {list(get_args(Prefill))}, got {prefill!r}")
