"""Training on the tiles of a `Rewirable` module: the engine's questions, answered by a layer that stores nothing else.

A unit is a tile and the mask is the grid of tiles. What a masked dense weight does with zeros, this does by moving:
a new choice of tiles is `update_pattern` at constant capacity, which takes values, gradient and optimizer state along.

Growth needs the mean |dense gradient| of absent tiles. The layer hands over the factors of the gradient during the
backward pass of an update's step (`GradientCapture`), and the product dy^T x is formed a band of tile rows at a time,
summed over the backward passes of the step and over ranks, and reduced to one number per tile.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from gossamer.nn.block_sparse.gradient_capture import GradientCapture
from gossamer.nn.rewirable import Rewirable
from gossamer.ops.fan_in.product import FanInSdd
from gossamer.ops.fan_in.rewire import fan_in_candidates
from gossamer.pattern import Pattern
from gossamer.pattern.build import tile_areas, tile_means
from gossamer.training import distributed, optimizer_state
from gossamer.training.fan_in import fill_rows
from gossamer.training.random import uniform
from gossamer.training.select import mask_, topk
from gossamer.training.weights import Layer, Masked

# Rows of the dense gradient formed at once hold about this many numbers: 1 MiB, so that a band stays in a cache.
_BAND = 1 << 18


@dataclass(eq=False)
class TileValues(Masked):
    """The values of a `Rewirable` module; `mask` is bool[tile_rows, tile_cols].

    Attributes:
        module: the layer.
        fixed: whether the shape of the values stays (DistributedDataParallel keeps the first ones).
        reduce: whether gradients are those of a mean over ranks.
        candidates: rows of single elements are scored at so many inputs that they do not read, drawn by `seed` and the
            step, and nowhere else; 0: everywhere.
    """

    module: Rewirable = field(kw_only=True)
    fixed: bool = False
    reduce: bool = False
    candidates: int = 0
    seed: int = 0
    step: int = 0

    def __post_init__(self) -> None:
        self.capture = GradientCapture(self.parameter)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.module.shape

    def weights(self, mask: Tensor) -> int:
        areas = tile_areas(self.module.shape, self.module.tile, mask.device)
        return int(torch.count_nonzero(mask) * areas if areas.numel() == 1 else (areas * mask).sum())

    def spread(self, mask: Tensor) -> Tensor:
        padded = torch.cat([mask.reshape(-1), mask.new_zeros(1)])  # the last stands for slack
        kept = padded[self.module.pattern.keys()]
        return kept.view(self.parameter.shape) if self.parameter.dim() == 2 else kept.view(-1, 1, 1)

    def pattern(self, tile: tuple[int, int]) -> Pattern:
        return Pattern.from_tile_mask(self.mask, self.module.tile, shape=self.module.shape)

    def want_gradient(self, wanted: bool, step: int) -> None:
        wanted, self.step = wanted and not self.frozen, step
        if wanted == self.capture.is_open:
            return
        if wanted:
            self.capture.open()
        else:
            self.capture.close()
        self.module.capture_gradient(self.capture.handle if wanted else None)

    def gradient(self) -> Tensor | None:
        """float[tile_rows, tile_cols]: the mean |dense gradient| of each tile; with `candidates` zero at the others."""
        if not self.capture.pairs:
            return None
        if self.candidates:
            drawn = self._drawn()
            scores = sampled_scores(self.capture.pairs, drawn, reduce=self.reduce)
            return scores.new_zeros(self.shape).scatter_(1, drawn.long(), scores)
        return candidate_scores(self.capture.pairs, self.module.tile, reduce=self.reduce)

    def _drawn(self) -> Tensor:
        """[rows, n]: inputs that each row does not read, other ones in each step."""
        columns, cols = self.module.pattern.indices, self.shape[1]
        number = int.from_bytes(hashlib.sha256(f"{self.seed}\0{self.name}".encode()).digest()[:7], "little")
        n = min(self.candidates, cols - columns.shape[1])
        return fan_in_candidates(columns, cols, n, seed=number, step=self.step)

    def hide(self) -> None:
        """There is nothing outside: the gradient of the values is zero in slack and padding."""

    def keep(self) -> None:
        """There is nothing outside: what is written to slack and padding is not read."""

    def check(self, step: int) -> None:
        if not torch.equal(self.module.pattern.to_tile_mask(), self.mask):
            raise RuntimeError(
                f"{self.name} has other tiles than the method gave it, before step {step}: load the states of network "
                "and method together, and leave update_pattern to the method"
            )

    def apply(self, optimizer: Optimizer) -> None:
        states = optimizer_state.tensors(optimizer, self.parameter, self.name)
        if optimizer_state.keeps_zeros(optimizer) and self.module.pattern.nnz == self.module.capacity:
            return  # no slack, and padding began at zero
        if not torch.equal(self.module.pattern.to_tile_mask(), self.mask):
            return  # a state was loaded, that of the network is still to come (`check` sees to it)
        tiles = self.module.pattern.value_mask()
        for tensor in (self.parameter.data, *states):
            mask_(tensor, tiles.view(tensor.shape))

    def check_copy(self, copy: nn.Module) -> None:
        try:
            found = copy.get_submodule(self.name.rpartition(".")[0])
        except AttributeError:
            found = None
        same = isinstance(found, Rewirable) and (found.shape, found.tile) == (self.shape, self.module.tile)
        if not same:
            raise ValueError(f"copy has {found} at {self.name}, expected {self.module}")

    def apply_to(self, copy: nn.Module) -> None:
        """Bring the tiles of a copy to where this layer's are; a tile the copy did not have is zero there."""
        found = copy.get_submodule(self.name.rpartition(".")[0])
        assert isinstance(found, Rewirable)
        found.update_pattern(self.module.pattern.to(found.pattern.device), overflow="grow")


@dataclass(eq=False)
class TileLayer(Layer):
    """A `Rewirable` module as what a method rewires.

    >>> from gossamer.nn import BlockSparseLinear
    >>> module = BlockSparseLinear(64, 32, block=16, density=0.5)
    >>> layer = TileLayer.of("fc.values", module, module.values)
    >>> layer.shape, layer.grid, int(layer.active().sum())
    ((32, 64), (2, 4), 4)
    """

    tensor: TileValues

    @classmethod
    def of(cls, name: str, module: Rewirable, parameter: nn.Parameter) -> TileLayer:
        values = TileValues(name, parameter, module.pattern.to_tile_mask(), module=module)
        return cls(name, values, 0, module.shape[0], module.tile)

    @property
    def is_masked(self) -> bool:
        return False

    @property
    def shape(self) -> tuple[int, int]:
        return self.tensor.module.shape

    @property
    def full_shape(self) -> tuple[int, ...]:
        return self.tensor.module.shape

    def scores(self, x: Tensor) -> Tensor:
        """Mean of x, shaped as the values, over each tile: float32[units] (float64 for float64), zero where absent."""
        pattern = self.tensor.module.pattern
        x = (x if x.dtype == torch.float64 else x.float()).reshape(-1, *self.tile)
        total = x.new_zeros(self.units + 1).index_copy_(0, pattern.keys(), x.sum((1, 2)))[:-1]
        return total.div_(tile_areas(self.shape, self.tile, x.device).view(-1))  # one area, or one for each tile

    def growth(self, gradient: Tensor) -> Tensor:
        return gradient.reshape(-1)

    def any(self, x: Tensor) -> Tensor:
        return x.reshape(-1)

    @property
    def row_units(self) -> int | None:
        return self.tensor.module.row_tiles

    @property
    def sampled(self) -> bool:
        return bool(self.tensor.candidates)

    def initial(self, scores: Tensor, count: int) -> Tensor:
        """Tiles that are present stay first: they have values."""
        present = self.active()
        if self.row_units is not None:
            return self._even(present, scores - scores.min(), count)
        kept = topk(scores, min(count, int(torch.count_nonzero(present))), allowed=present)
        return kept | topk(scores, count - int(torch.count_nonzero(kept)), allowed=~present)

    def check_room(self, count: int) -> None:
        """Rows of one length have memory for that length and no other; other layers may leave some of it unused."""
        module, rows = self.tensor.module, self.grid[0]
        if not self.tensor.fixed:
            return
        if self.row_units is not None:
            k = self._row_length(count)
            if k != self.row_units:
                raise RuntimeError(
                    f"{self.name} needs {k} inputs in each of {rows} rows and has {self.row_units}, which cannot "
                    f"change inside DistributedDataParallel: build the layer with fan_in={k}, or give it a density of "
                    f"{self.row_units / self.grid[1]:g}"
                )
        elif count > module.capacity:
            raise RuntimeError(
                f"{self.name} needs {count} tiles and has a capacity of {module.capacity}, which cannot grow inside "
                f"DistributedDataParallel: build the layer with capacity={count} or more"
            )

    def _row_length(self, count: int) -> int:
        """Units of each row where a layer of rows of one length is to have `count`."""
        return min(max(count // self.grid[0], 1), self.grid[1])

    def start(self, units: Tensor, optimizer: Optimizer, *, seed: int, fresh: bool) -> None:
        module, values = self.tensor.module, self.tensor.parameter
        new = (self._rewire(units, optimizer) < 0).view(-1, 1, 1) & module.pattern.value_mask()
        new = new.view(values.shape)
        if fresh and bool(new.any()):
            n, device = values.numel(), values.device
            noise = uniform(n, seed=seed, name=self.name, step=0, purpose="value", device=device).view_as(new)
            drawn = ((2 * noise - 1) * module.bound).to(values.dtype)
            values.data.copy_(torch.where(new, drawn, values.data))

    def take(self, units: Tensor, optimizer: Optimizer, value: Tensor | None = None) -> int:
        before = self.tensor.mask.clone()
        self._rewire(units, optimizer)
        return self.tensor.weights(self.tensor.mask & ~before)

    def _even(self, units: Tensor, growth: Tensor, count: int) -> Tensor:
        """Units with count // rows in each row, at least one: the largest of a row, then those of largest growth."""
        k = self._row_length(count)
        magnitude = self.scores(self.tensor.parameter.detach().abs()).view(self.grid)
        return fill_rows(units.view(self.grid), magnitude, growth.view(self.grid), k).view(-1)

    def _evened(self, units: Tensor) -> Tensor:
        """A choice that was made over the whole layer, for rows of one length.

        Where a row got too many, the largest of what it had stay, then newcomers of largest gradient (without one,
        any); where it got too few, what it lost comes back.
        """
        counts = units.view(self.grid).sum(1)
        if bool((counts == counts[0]).all()) and int(counts[0]) > 0:
            return units
        active, gradient = self.active(), self.tensor.gradient()
        if gradient is None:
            state = int((active.nonzero().squeeze(1) % 65521).sum())  # another draw for each state of the layer
            rank = uniform(self.units, seed=0, name=self.name, step=state, purpose="even", device=active.device)
        else:
            rank = self.growth(gradient)
        had = self.scores(self.tensor.parameter.detach().abs())
        growth = torch.where(
            units & ~active, 2 + rank / rank.max().clamp(min=1e-30), active * (1 + had / had.max().clamp(min=1e-30))
        )
        return self._even(units & active, growth, int(torch.count_nonzero(units)))

    def _rewire(self, units: Tensor, optimizer: Optimizer) -> Tensor:
        if self.row_units is not None:
            units = self._evened(units)
        module, count = self.tensor.module, int(torch.count_nonzero(units))
        self.check_room(count)
        pattern = Pattern.from_tile_mask(units.view(self.grid), module.tile, shape=module.shape, capacity=count)
        source = module.update_pattern(pattern, optimizer=optimizer, overflow="grow")
        self.tensor.mask.copy_(units.view(self.grid))
        return source


def sampled_scores(pairs: list[tuple[Tensor, Tensor]], columns: Tensor, *, reduce: bool = False) -> Tensor:
    """|sum of dy^T x| at columns[rows, n], from pairs (dy[tokens, rows], x[tokens, in]): float[rows, n].

    >>> dy, x = torch.tensor([[1.0, -2.0]]), torch.tensor([[1.0, 2.0, 3.0]])
    >>> sampled_scores([(dy, x)], torch.tensor([[0], [2]], dtype=torch.int32)).tolist()
    [[1.0], [6.0]]
    """
    total = torch.stack([FanInSdd.call(dy, x, columns, None) for dy, x in pairs]).sum(0)
    if reduce:
        dist.all_reduce(total)
        total /= distributed.ranks()
    return total.abs_()


def candidate_scores(pairs: list[tuple[Tensor, Tensor]], tile: tuple[int, int], *, reduce: bool = False) -> Tensor:
    """Mean |sum of dy^T x| per tile, from pairs (dy[tokens, out], x[tokens, in]): float[tile_rows, tile_cols].

    Args:
        reduce: average the product over the ranks first (the mean of |g| is not |mean of g|).

    >>> candidate_scores([(torch.tensor([[1.0, -2.0]]), torch.tensor([[1.0, 1.0, 3.0, 3.0]]))], (1, 2)).tolist()
    [[1.0, 3.0], [2.0, 6.0]]
    """
    columns, rows = pairs[0][1].shape[1], pairs[0][0].shape[1]
    band = max(_BAND // max(columns * tile[0], 1), 1) * tile[0]
    scores: Tensor | None = None
    for first in range(0, rows, band):
        product: Tensor | None = None
        for dy, x in pairs:
            part = dy[:, first : first + band].t() @ x
            product = part if product is None else product.add_(part)
        assert product is not None
        if reduce:
            dist.all_reduce(product)
            product /= distributed.ranks()
        means = tile_means(product.abs_(), tile)
        if scores is None:  # of the dtype of a product
            scores = means.new_empty(-(-rows // tile[0]), means.shape[1])
        scores[first // tile[0] :][: len(means)] = means
    assert scores is not None
    return scores
