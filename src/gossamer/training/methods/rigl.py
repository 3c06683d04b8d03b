"""RigL: drop the smallest weights of each layer, grow where the dense gradient is largest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gossamer.training.methods.set import SET
from gossamer.training.settings import count
from gossamer.training.tiles import TileValues


@dataclass(eq=False, repr=False)
class RigL(SET):
    """Evci et al., "Rigging the lottery: making all tickets winners", 2020, algorithm 1.

    At step t every layer replaces k = floor(f(t) * nnz) weights, f(t) = drop_fraction / 2 * (1 + cos(pi t / T_end)):
    the k smallest |w| go, the k largest |dense gradient| among the rest come, starting at zero. The published code
    updates the mask in place of the optimizer step (`replace_step=True`); the default updates after it.

    Args (beyond `SET`):
        candidates: each row of a `gossamer.nn.FanInLinear` is scored at so many inputs that it does not read, drawn
            anew for each update, in place of all: no dense gradient of such a layer is computed. A row that lost more
            than it was shown gets back the largest of what it lost. 0: all are scored.

    The paper updates every 100 steps of batch 4096 until T_end = 0.75 of the training.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(20, 10)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> method = RigL(model, optimizer, density=0.25, total_steps=10, update_every=4)
        >>> for _ in range(4):
        ...     optimizer.zero_grad(); model(torch.randn(3, 20)).square().sum().backward(); optimizer.step()
        >>> method.nnz(), [event["step"] for event in method.history]
        (50, [4])
    """

    drop_schedule: str = "cosine"
    grow: str = "gradient"
    stop: float = 0.75
    candidates: int = 0
    name: ClassVar[str] = "rigl"

    def validate(self) -> None:
        super().validate()
        count("candidates", self.candidates, low=0)
        if self.candidates and self.grad_window > 1:
            raise ValueError(f"candidates are others in each step, expected grad_window=1, got {self.grad_window}")

    def prepare(self) -> None:
        super().prepare()
        rows = [layer.tensor for layer in self.layers if layer.row_units is not None]
        if self.candidates and not rows:
            raise ValueError(f"candidates={self.candidates} is for FanInLinear layers, of which there are none")
        for tensor in rows:
            assert isinstance(tensor, TileValues)
            tensor.candidates, tensor.seed = self.candidates, self.seed
