"""The two objects a method works on: a parameter with its mask, and what is rewired as one.

`Masked` is one parameter with its mask, in the parameter's own shape and memory layout. `Layer` is what a method
rewires as one unit: the 2-D view [rows, cols] = [out, in * kernel] of a parameter (or of a block of its rows: the
q, k and v parts of a packed attention projection), cut in tiles. With the default tile (1, 1) a unit is one weight.

What these classes can do is all that the engine and the methods ask for. `gossamer.training.tiles` answers the same
questions for layers that have memory for their tiles only.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gossamer.pattern import Pattern
from gossamer.pattern.build import any_in_tile, tile_means
from gossamer.pattern.convert import widened
from gossamer.training import optimizer_state
from gossamer.training.select import mask_, topk


@dataclass(eq=False)
class Masked:
    """One parameter and which of its elements live.

    `axes` holds, per axis, which positions belong to channels that are alive (empty: all of them). `prunable` is False
    for biases and norm weights: they lose elements with their channels and are never rewired.
    """

    name: str
    parameter: nn.Parameter
    mask: Tensor
    prunable: bool = True
    axes: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def full(cls, name: str, parameter: nn.Parameter, *, prunable: bool = True) -> Masked:
        """A mask of ones that shares the parameter's shape, device and memory layout."""
        return cls(name, parameter, torch.ones_like(parameter, dtype=torch.bool, requires_grad=False), prunable)

    @property
    def frozen(self) -> bool:
        """Parameters without gradients keep the mask they started with."""
        return not self.parameter.requires_grad

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the dense weight."""
        return tuple(self.parameter.shape)

    def weights(self, mask: Tensor) -> int:
        """How many weights a mask of this tensor keeps."""
        return int(torch.count_nonzero(mask))

    def spread(self, mask: Tensor) -> Tensor:
        """A mask of this tensor as bool that broadcasts to the parameter's shape."""
        return mask

    def pattern(self, tile: tuple[int, int]) -> Pattern:
        """The mask as a pattern of the 2-D view."""
        return Pattern.from_mask(self.mask.reshape(len(self.mask), -1), tile)

    def want_gradient(self, wanted: bool, step: int) -> None:
        """Say whether the next optimizer step, number `step`, reads `gradient`."""

    def gradient(self) -> Tensor | None:
        """What growth is scored by: the dense gradient, in the parameter's shape. None: there is none.

        Raises:
            TypeError: a gradient in a sparse layout.
        """
        gradient = self.parameter.grad
        if gradient is not None and gradient.layout != torch.strided:
            raise TypeError(f"{self.name} has a sparse gradient; scores need dense ones (Embedding(sparse=False))")
        return gradient

    def hide(self) -> None:
        """Zero the gradient outside the mask."""
        if self.parameter.grad is not None:
            mask_(self.parameter.grad, self.mask)

    def keep(self) -> None:
        """Zero the weight outside the mask, whoever wrote there: a pass costs less than to ask whether it is needed."""
        mask_(self.parameter.data, self.mask)

    def check(self, step: int) -> None:
        """Raise RuntimeError when the network disagrees with the mask in a way that `apply` cannot mend."""

    def apply(self, optimizer: Optimizer) -> None:
        """Zero the weight and its optimizer states outside the mask, exactly."""
        mask_(self.parameter.data, self.mask)
        for state in optimizer_state.tensors(optimizer, self.parameter, self.name):
            mask_(state, self.mask)

    def check_copy(self, copy: nn.Module) -> None:
        """Raise ValueError unless this tensor exists in a copy of the network."""
        parameter = dict(copy.named_parameters(remove_duplicate=False)).get(self.name)
        if parameter is None or parameter.shape != self.mask.shape:
            found = "nothing" if parameter is None else tuple(parameter.shape)
            raise ValueError(f"copy has {found} at {self.name}, expected shape {tuple(self.mask.shape)}")

    def apply_to(self, copy: nn.Module) -> None:
        """Zero this tensor outside the mask in a copy of the network."""
        parameter = copy.get_parameter(self.name)
        mask_(parameter.data, self.mask.to(parameter.device))

    def alive(self) -> Tensor | None:
        """Elements in living channels: the outer product of `axes`, bool in the parameter's shape. None: all."""
        result = None
        for axis, vector in self.axes.items():
            shape = [1] * self.parameter.ndim
            shape[axis] = -1
            result = vector.view(shape) if result is None else result & vector.view(shape)
        return None if result is None else result.expand(self.parameter.shape)


@dataclass(eq=False)
class Layer:
    """Rows [first, last) of the 2-D view of one parameter, in tiles; the unit of per-layer budgets and scores.

    Example:
        >>> conv = nn.Conv2d(3, 8, 3)
        >>> layer = Layer("weight", Masked.full("weight", conv.weight), 0, 8, (4, 3))
        >>> layer.shape, layer.grid, layer.units
        ((8, 27), (2, 9), 18)
    """

    name: str
    tensor: Masked
    first: int
    last: int
    tile: tuple[int, int] = (1, 1)

    @property
    def is_masked(self) -> bool:
        """Whether absent weights are zeros in memory, rather than not there at all."""
        return True

    @property
    def row_units(self) -> int | None:
        """Units that every row has, where that number is one for all of them."""
        return None

    @property
    def sampled(self) -> bool:
        """Whether growth is scored at a few units of each row only."""
        return False

    @property
    def shape(self) -> tuple[int, int]:
        parameter = self.tensor.parameter
        return self.last - self.first, parameter.numel() // parameter.shape[0]

    @property
    def full_shape(self) -> tuple[int, ...]:
        """(out, in, *kernel) of this block of rows."""
        return (self.last - self.first, *self.tensor.parameter.shape[1:])

    def living_shape(self) -> list[int]:
        """`full_shape` without dead channels."""
        shape = list(self.full_shape)
        for axis, vector in self.tensor.axes.items():
            shape[axis] = int((vector[self.first : self.last] if axis == 0 else vector).sum())
        return shape

    @property
    def grid(self) -> tuple[int, int]:
        return -(-self.shape[0] // self.tile[0]), -(-self.shape[1] // self.tile[1])

    @property
    def units(self) -> int:
        return self.grid[0] * self.grid[1]

    def view(self, x: Tensor) -> Tensor:
        """The block [rows, cols] of a tensor of the parameter's shape (a copy when the layout is not row-major)."""
        return x.reshape(x.shape[0], -1)[self.first : self.last]

    def scores(self, x: Tensor) -> Tensor:
        """Mean of a [parameter shape] tensor over each unit: float32[units], float64 when the parameter is float64."""
        block = self.view(x)
        block = block if block.dtype == torch.float64 else block.float()
        return tile_means(block, self.tile).reshape(-1)

    def growth(self, gradient: Tensor) -> Tensor:
        """Grow score per unit from what `Masked.gradient` gave: the mean |gradient|."""
        return self.scores(gradient.abs())

    def any(self, x: Tensor) -> Tensor:
        """Whether a unit has any True element: bool[units]."""
        return any_in_tile(self.view(x), self.tile).reshape(-1)

    def active(self) -> Tensor:
        """bool[units]: which units are present now."""
        return self.any(self.tensor.mask)

    def allowed(self) -> Tensor | None:
        """bool[units]: units with an element in a living channel. None: all of them."""
        alive = self.tensor.alive()
        return None if alive is None else self.any(alive)

    def assign(self, x: Tensor, block: Tensor) -> None:
        """Write [rows, cols] into this layer's part of a tensor of the parameter's shape."""
        if x.is_contiguous():
            x.view(x.shape[0], -1)[self.first : self.last] = block
        else:
            x[self.first : self.last] = block.view(self.full_shape)

    def elements(self, units: Tensor) -> Tensor:
        """The element mask [rows, cols] of a choice of units, dead channels left out."""
        block = units.view(self.shape) if self.tile == (1, 1) else widened(units.view(self.grid), self.shape, self.tile)
        alive = self.tensor.alive()
        return block if alive is None else block & self.view(alive)

    def initial(self, scores: Tensor, count: int) -> Tensor:
        """bool[units]: the `count` units to begin with."""
        return topk(scores, count)

    def check_room(self, count: int) -> None:
        """Raise RuntimeError where there is no memory for so many units, and none may be taken."""

    def start(self, units: Tensor, optimizer: Optimizer, *, seed: int, fresh: bool) -> None:
        """Begin with these units. `fresh`: units that never had a value are drawn at random (only tiles are such)."""
        self.assign(self.tensor.mask, self.elements(units))

    def take(self, units: Tensor, optimizer: Optimizer, value: Tensor | None = None) -> int:
        """Have these units from now on; returns how many weights are new.

        What was dropped is zeroed by `Masked.apply`. `value` [rows, cols] is what new weights are worth; None: zero.
        """
        tensor = self.tensor
        new = self.elements(units)
        fresh = new & ~self.view(tensor.mask)
        gains = int(torch.count_nonzero(fresh))
        if value is not None and gains:
            self.assign(tensor.parameter.data, torch.where(fresh, value, self.view(tensor.parameter)))
        self.assign(tensor.mask, new)
        return gains
