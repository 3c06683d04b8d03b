"""What a layer offers so that training methods can move its weights: a protocol, not a base class."""

from __future__ import annotations

from typing import ClassVar, Literal, Protocol, runtime_checkable

from torch import Tensor
from torch.optim import Optimizer

from gossamer.pattern import Pattern


@runtime_checkable
class Rewirable(Protocol):
    """A module that has memory for the present tiles of a weight [out, in] only, and can be given other tiles.

    `gossamer.training` finds such modules by themselves, scores their tiles and moves them. `BlockSparseLinear` is one.
    """

    rewired: ClassVar[str]
    """Name of the parameter that holds the tiles: [capacity, bm, bn], or [rows, row_tiles] of single elements."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight."""

    @property
    def tile(self) -> tuple[int, int]:
        """(rows, columns) of a tile."""

    @property
    def pattern(self) -> Pattern:
        """Which tiles are present, in the order of their slots: to be read."""

    @property
    def capacity(self) -> int:
        """Number of tiles there is memory for."""

    @property
    def row_tiles(self) -> int | None:
        """Tiles that every row has, where that number is one for all of them: then a pattern must be such, too."""

    @property
    def bound(self) -> float:
        """First values of a tile are uniform in +-bound."""

    def why_fixed(self) -> str | None:
        """Why its tiles cannot change at present; None if they can."""

    def update_pattern(
        self, pattern: Pattern, *, optimizer: Optimizer | None = None, overflow: Literal["error", "grow"] | None = None
    ) -> Tensor:
        """Take over other tiles; kept ones keep values, gradients and optimizer state, new ones start at zero.

        Returns:
            int64[capacity]: the old slot of each new slot's tile, -1 for new tiles and slack.
        """

    def capture_gradient(self, handle: Tensor | None) -> None:
        """Hand the factors (dy, x) of the weight's gradient to the `GradientCapture` with this handle; None: stop."""
