"""torch's Linear, leaving out the multiplications by zeros where that is faster."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer import ops
from gossamer.nn.skip.conv2d import Skip, adopt, is_bypassed, options
from gossamer.nn.traced import leaves_process
from gossamer.ops import dense
from gossamer.planner import Site


class Linear(nn.Linear):
    """torch.nn.Linear with the same parameters and state dict, computed by `gossamer.ops.linear`.

    Args:
        in_features ... dtype: as in torch.nn.Linear.
        skip, relu, keep_packed: as in `gossamer.nn.Conv2d`.

    Attributes:
        site: as in `gossamer.nn.Conv2d`.

    What torch.export, torch.jit.trace and torch.fx make of it is torch's linear layer.

    >>> layer = Linear(64, 10, skip="input", relu=True)
    >>> x = torch.randn(4, 64).relu()
    >>> torch.allclose(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias).relu(), atol=1e-6)
    True
    """

    skip: Skip
    relu: bool
    keep_packed: bool
    site: Site

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        skip: Skip = "auto",
        relu: bool = False,
        keep_packed: bool = False,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        adopt(self, skip, relu, keep_packed)

    def forward(self, input: Tensor) -> Tensor:
        """x[..., in_features] -> [..., out_features]."""
        if is_bypassed(self, input):
            if self.site.torchs_own:
                y = super().forward(input)
            else:
                y = dense.linear(input, self.weight, self.bias, self.keep_packed)
            return y.relu_() if self.relu else y
        if not isinstance(input, Tensor) or leaves_process():  # no tensor: a proxy of torch.fx
            y = super().forward(input)
            return F.relu(y) if self.relu else y
        return ops.linear(
            input, self.weight, self.bias,
            skip=self.skip, relu=self.relu, site=self.site, keep_packed=self.keep_packed,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return super().extra_repr() + options(self)
