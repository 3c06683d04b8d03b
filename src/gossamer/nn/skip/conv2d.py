"""torch's Conv2d, leaving out the multiplications by zeros where that is faster."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer import ops
from gossamer.nn.traced import leaves_process
from gossamer.ops.autograd import saving_is_watched
from gossamer.ops.skipping.refusals import check_options
from gossamer.planner import Site

Skip = Literal["auto", "input", "never"]
Ints = int | tuple[int, int]


class Conv2d(nn.Conv2d):
    """torch.nn.Conv2d with the same parameters and state dict, computed by `gossamer.ops.conv2d`.

    Args:
        in_channels ... dtype: as in torch.nn.Conv2d.
        skip: "auto" decides for each pass from what it measures on the data it sees; "input" always skips; "never" is
            torch's own operator.
        relu: y = max(conv(x), 0), in one pass.
        keep_packed: as in `gossamer.ops.conv2d`: True keeps the kernels' form of the weight between calls, for
            inference; a write through `weight.data` or numpy is then not seen.

    Attributes:
        site: the `gossamer.planner.Site` that decides. A copy of the module has its own, and learns anew.

    What torch.export, torch.jit.trace and torch.fx make of it is torch's convolution.

    >>> layer = Conv2d(16, 32, 3, padding=1)
    >>> layer(torch.randn(2, 16, 8, 8).relu()).shape
    torch.Size([2, 32, 8, 8])
    >>> layer
    Conv2d(16, 32, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), skip='auto')
    """

    skip: Skip
    relu: bool
    keep_packed: bool
    site: Site

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Ints | str = 0,
        dilation: Ints = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        skip: Skip = "auto",
        relu: bool = False,
        keep_packed: bool = False,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        adopt(self, skip, relu, keep_packed)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # Here, not in forward: torch's own wrappers call it with weights of their making.
        if is_bypassed(self, input):
            y = super()._conv_forward(input, weight, bias)
            return y.relu_() if self.relu else y
        if not isinstance(input, Tensor) or leaves_process():  # no tensor: a proxy of torch.fx
            y = super()._conv_forward(input, weight, bias)
            return F.relu(y) if self.relu else y
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0, 0)
        return ops.conv2d(
            input, weight, bias, self.stride, padding, self.dilation, self.groups,
            skip=self.skip, relu=self.relu, site=self.site, keep_packed=self.keep_packed,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return super().extra_repr() + options(self)


def adopt(module: nn.Module, skip: Skip, relu: bool = False, keep_packed: bool = False, name: str = "") -> None:
    """Give a module what `Conv2d` and `Linear` have beyond torch's.

    Raises:
        ValueError, TypeError: naming the argument.
    """
    check_options(skip, relu=relu, keep_packed=keep_packed)
    vars(module).update(skip=skip, relu=relu, keep_packed=keep_packed, site=Site(name))


def disown(module: nn.Module) -> None:
    """Take away what `adopt` gave."""
    for attribute in ("skip", "relu", "keep_packed", "site"):
        delattr(module, attribute)


def is_bypassed(module: Conv2d | nn.Linear, input: Tensor) -> bool:
    """Whether a call may be torch's own at once. In few steps: after a layer's work all Python comes from far away."""
    site: Any = module.site
    return (
        not torch.compiler.is_compiling()
        and isinstance(input, Tensor)
        and module.skip == "auto"
        and not saving_is_watched()
        and site.bypassed(input.shape) is not None
    )


def options(module: Conv2d | nn.Linear) -> str:
    """What their repr says beyond torch's."""
    flags = [name for name in ("relu", "keep_packed") if getattr(module, name)]
    return f", skip={module.skip!r}" + "".join(f", {name}=True" for name in flags)
