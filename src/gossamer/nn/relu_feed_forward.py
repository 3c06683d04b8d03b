"""A feed-forward block whose second product skips the zeros that ReLU made, wherever they fall this time."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from gossamer import ops
from gossamer.pattern.check import check_pair


class ReLUFeedForward(nn.Module):
    """y = down(relu(up(x))), equal to the dense block; the product of `down` reads the zeros of its input at run time.

    Worth it when whole tiles of the activation are zero. `hidden` features that few tokens use give empty columns in a
    band of tokens; independent zeros do not: 95 % of zeros leave 81 % of the columns of a band of 32 tokens busy. With
    tile="auto" a sample is looked at in every call and the dense product is taken where it is cheaper.

    Args:
        dim, hidden: features outside and inside.
        bias: of both products.
        tile: tile of the activation [tokens, hidden] to skip by, see `gossamer.ops.matmul`; "auto" reads a sample of
            the activation on the host. Inside torch.compile give a tile.

    Attributes:
        up, down: nn.Linear.

    The result has the dtype of the weights, under autocast too (where only `up` computes in autocast's). In bfloat16
    and float16 every product and sum is rounded once, as torch's are; "auto" then takes the dense product on a CPU.

    Raises:
        TypeError, ValueError: a tile that is neither "auto" nor a pair of integers of at least 1. RuntimeError: "auto"
        inside torch.compile.

    Source: Zheng et al., "PIT: optimization of dynamic sparse deep learning models via permutation invariant
    transformation", 2023, section 4.

    >>> block = ReLUFeedForward(8, 32)
    >>> block(torch.randn(2, 5, 8)).shape
    torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        bias: bool = True,
        *,
        tile: tuple[int, int] | Literal["auto"] = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.up = nn.Linear(dim, hidden, bias=bias, device=device, dtype=dtype)
        self.down = nn.Linear(hidden, dim, bias=bias, device=device, dtype=dtype)
        self.tile: tuple[int, int] | Literal["auto"] = "auto" if tile == "auto" else check_pair("tile", tile, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x[..., dim] -> [..., dim]."""
        if self.tile == "auto" and torch.compiler.is_compiling():
            raise RuntimeError(
                "tile='auto' reads a sample of the activation on the host, which torch.compile cannot do: give the "
                "block a tile, such as (32, 1)"
            )
        inner = self.up(x).relu().to(self.down.weight.dtype)  # autocast may have made it narrow
        y = ops.matmul(inner.reshape(-1, inner.shape[-1]), self.down.weight.t(), sparse="a", tile=self.tile)
        if self.down.bias is not None:
            y = y + self.down.bias
        return y.view(x.shape)
