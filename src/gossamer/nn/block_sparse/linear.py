"""A linear layer whose weight has values only in the tiles of a pattern; the pattern may change while it trains.

    W[out, in] = tiles of (bm, bn), `density` of them present      y = x W^T + bias

Forward and both gradients cost time and memory in proportion to the tiles present. Parameters are numbers
(`values[capacity, bm, bn]`, `bias`), buffers are structure (`offsets`, `indices` and the index of W^T): a new pattern
is new contents of tensors whose shapes stay, so nothing is compiled or allocated again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gossamer import ops
from gossamer.nn.block_sparse.first_pattern import best_tiles, generator_of, random_tiles
from gossamer.nn.block_sparse.gradient_capture import Captured
from gossamer.nn.block_sparse.quantization import Storage, check_storage, dequantize, quantize
from gossamer.nn.block_sparse.slot_remapping import remap_, slot_sources, states_of
from gossamer.nn.block_sparse.tiled import Tiled, check_fits
from gossamer.ops.arguments import STORED
from gossamer.ops.autograd import wants_gradient
from gossamer.ops.registration import HALF
from gossamer.ops.transforms import check_transforms
from gossamer.pattern import Pattern
from gossamer.pattern.build import tile_means
from gossamer.reshaping import set_data

Mode = Literal["dynamic", "static"]


class BlockSparseLinear(Tiled):
    """y = x W^T + bias with W[out_features, in_features] stored as the tiles of a pattern.

    Args:
        in_features, out_features: sizes of the last axis of input and output.
        bias: add a learned vector.
        block: tile side, or (rows of W, columns of W) of a tile. Sizes need not be multiples: tiles at the lower and
            right edge are then ragged, and what their padding holds is zero.
        density: share of the tiles that are present at first, in (0, 1]: round(density * tiles) of them, at random.
            Not used with `pattern`.
        pattern: which tiles are present at first, of shape (out_features, in_features) and tile `block`.
        mode: "dynamic": the pattern may change (`update_pattern`). "static": it never does, and its work
            is partitioned once where that gains (`gossamer.planner.static_work`); values are trained as usual.
        capacity: number of tiles there is memory for; None for those present at first.
        overflow: what `update_pattern` does with more tiles than `capacity`: "error", or "grow" (takes new memory, and
            compiled code is compiled again).
        storage: how values are kept: "float32" (that is, `dtype`; trainable), "bfloat16" or "int8" with one scale per
            tile (inference; converted inside the product). See `store`.
        seed: of the first pattern and values; None draws from torch's global generator.

    Attributes:
        values: Parameter [capacity, bm, bn]. Slots past the tiles present, and padding, are zero.
        bias: Parameter [out_features] or None.
        offsets, indices: the pattern (`pattern` has it as a `gossamer.Pattern`); see
            `gossamer.nn.block_sparse.tiled.Tiled`.

    Raises:
        ValueError: sizes, block, density, capacity, mode or pattern that do not fit, naming the value.

    The result has the dtype of the values, of the bias where they are stored shorter; under autocast too. In bfloat16
    and float16 sums run in float32: the product is rounded once, and once more when the bias is added.

    Values are drawn as in nn.Linear with the fan-in that is really there: uniform in +-1 / sqrt(in_features * density).

    Source: Li et al., "PopSparse: accelerated block sparse matrix multiplication on IPU", 2023.

    >>> layer = BlockSparseLinear(64, 128, block=16, density=0.25)
    >>> layer(torch.randn(3, 64)).shape, tuple(layer.values.shape)
    (torch.Size([3, 128]), (8, 16, 16))
    """

    rewired: ClassVar[str] = "values"

    values: nn.Parameter
    bias: nn.Parameter | None
    scale: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        block: int | tuple[int, int] = 16,
        density: float = 0.1,
        pattern: Pattern | None = None,
        mode: Mode = "dynamic",
        capacity: int | None = None,
        overflow: Literal["error", "grow"] = "error",
        storage: Storage = "float32",
        seed: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        tile = _tile(block)
        _check_sizes(in_features, out_features)
        if mode not in ("dynamic", "static"):
            raise ValueError(f"mode must be 'dynamic' or 'static', got {mode!r}")
        if overflow not in ("error", "grow"):
            raise ValueError(f"overflow must be 'error' or 'grow', got {overflow!r}")
        check_storage(storage)
        generator = generator_of(seed)
        shape = (out_features, in_features)
        if pattern is None:
            pattern = random_tiles(shape, tile, density, generator)
        check_fits(pattern, shape, tile)
        pattern.validate()
        capacity = pattern.nnz if capacity is None else capacity
        if capacity < pattern.nnz:
            raise ValueError(f"capacity={capacity} is too small: {pattern.nnz} tiles are present")
        device = torch.get_default_device() if device is None else device
        super().__init__(pattern.with_capacity(capacity).to(device), static=mode == "static")
        self.in_features, self.out_features = in_features, out_features
        self.mode, self.overflow = mode, overflow
        self.storage: Storage = "float32"
        self._capture_handle: Tensor | None = None
        self.values = nn.Parameter(torch.empty(capacity, *tile, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        self.register_buffer("scale", None)
        self.reset_parameters(generator)
        self.store(storage)

    # ------------------------------------------------------------------ structure

    @property
    def capacity(self) -> int:
        """Number of tiles there is memory for."""
        return self.values.shape[0]

    @property
    def row_tiles(self) -> int | None:
        """Rows may have any number of tiles."""
        return None

    def extra_repr(self) -> str:
        present = "?" if self.offsets.is_meta else int(self.offsets[-1])
        tiles = math.prod(self.pattern.grid)
        storage = "" if self.storage == "float32" else f", storage={self.storage}"
        return (
            f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, block={self.tile}, "
            f"tiles={present} of {tiles}, capacity={self.capacity}, {self.mode}{storage}"
        )

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw values and bias anew; drawn on the CPU, so that every device gets the same."""
        bound = self.bound
        for parameter in (self.values, self.bias):
            if parameter is not None and not parameter.is_meta:
                parameter.copy_(
                    torch.empty(parameter.shape, dtype=torch.float32, device="cpu").uniform_(
                        -bound, bound, generator=generator
                    )
                )
        if not self.values.is_meta:
            self.values.masked_fill_(~self.pattern.value_mask(), 0)

    @property
    def bound(self) -> float:
        """First values are uniform in +-bound: 1 / sqrt(in_features * density), nn.Linear's with the fan-in present."""
        share = 1.0 if self.offsets.is_meta else self.density
        return 1.0 / math.sqrt(max(self.in_features * share, 1.0))

    def why_fixed(self) -> str | None:
        """Why the pattern cannot be changed; None if it can."""
        if self.mode == "static":
            return "a static layer keeps its pattern: build it with mode='dynamic' to change it"
        if self.storage != "float32":
            return f"storage={self.storage!r} is for inference: update the pattern first, then store"
        return None

    @torch.inference_mode(False)
    @torch.no_grad()
    def update_pattern(
        self,
        pattern: Pattern,
        *,
        values: Tensor | Literal["keep", "zeros"] = "keep",
        optimizer: Optimizer | None = None,
        overflow: Literal["error", "grow"] | None = None,
    ) -> Tensor:
        """Take over another pattern, in place: same tensors, same shapes, nothing compiled or allocated again.

        Args:
            pattern: of this layer's shape, tile and device, with any capacity. It is checked on the CPU; elsewhere,
                where that would be a sync, its indices are trusted unless GOSSAMER_CHECK=1.
            values: "keep": tiles in both patterns keep their values, new ones start at zero; "zeros": all start at
                zero; or a tensor [capacity, bm, bn] in the slots of the new pattern.
            optimizer: whose state of `values` follows: that of kept tiles moves with them (and so does `values.grad`),
                that of new tiles is zero.
            overflow: in place of the layer's own.

        Returns:
            int64[capacity]: the old slot of each new slot's tile, -1 for new tiles and slack. `gossamer.nn.remapped(x,
            source)` brings any tensor [capacity, ...] of yours along.

        Raises:
            RuntimeError: a static layer; more tiles than `capacity` with overflow="error". ValueError: a pattern of
            another shape, tile or device, with an index out of range or a tile named twice. Nothing is changed then.

        >>> layer = BlockSparseLinear(4, 4, block=2, pattern=Pattern.from_mask(torch.eye(4).bool(), (2, 2)))
        >>> layer.update_pattern(Pattern.from_mask(torch.tensor([[1, 0, 0, 1]] * 4).bool(), (2, 2)), overflow="grow")
        tensor([ 0, -1, -1,  1])
        """
        if (reason := self.why_fixed()) is not None:
            raise RuntimeError(reason)
        self._check_pattern(pattern)
        if overflow not in (None, "error", "grow"):
            raise ValueError(f"overflow must be 'error', 'grow' or None, got {overflow!r}")
        if not isinstance(values, Tensor) and values not in ("keep", "zeros"):
            raise ValueError(f"values must be 'keep', 'zeros' or a tensor, got {values!r}")
        grows = (overflow or self.overflow) == "grow"
        capacity = max(self.capacity, pattern.nnz) if grows else self.capacity
        if isinstance(values, Tensor) and tuple(values.shape) != (capacity, *self.tile):
            raise ValueError(f"values must have shape {(capacity, *self.tile)}, got {tuple(values.shape)}")
        new = pattern.with_capacity(capacity)
        source = slot_sources(self.pattern.keys(), new.keys(), math.prod(new.grid))
        followers = [] if optimizer is None else states_of(optimizer, self.values)
        for tensor in (*followers, self.values.grad, self.values):
            if tensor is not None:
                remap_(tensor, source)
        if isinstance(values, Tensor):
            self.values.copy_(values.masked_fill(~new.value_mask(), 0))
        elif values == "zeros":
            self.values.zero_()
        self._set_index(new)
        return source

    # ------------------------------------------------------------------ numbers

    def forward(self, x: Tensor) -> Tensor:
        """x[..., in_features] -> [..., out_features]."""
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a tensor, got {type(x).__name__}")
        check_transforms("gossamer.nn.BlockSparseLinear", x)
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"x must have {self.in_features} features, got shape {tuple(x.shape)}")
        if x.device != self.values.device:
            raise ValueError(f"x must be on the layer's device {self.values.device}, got {x.device}")
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(self._own_dtype())
        self._check_dtype(x)
        flat = x.reshape(-1, self.in_features)
        transposed, work = self._index_for(wants_gradient(x))
        y = ops.dsd(
            self.values, self.pattern, flat.t(),
            transposed=transposed, work=work, scale=self.scale, column_major=True,
        ).t()  # fmt: skip
        if self._capture_handle is not None and wants_gradient(y):
            y = Captured.apply(y, flat, self._capture_handle)
        if self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], self.out_features)

    def to_dense(self) -> Tensor:
        """W[out_features, in_features] with zeros in absent tiles. Differentiable."""
        values = self.values if self.storage == "float32" else dequantize(self.values, self.scale)
        return ops.scatter(values, self.pattern)

    @torch.inference_mode(False)
    def to_linear(self) -> nn.Linear:
        """A dense nn.Linear that computes the same."""
        weight = self.to_dense().detach()
        linear = nn.Linear(*self.shape[::-1], bias=self.bias is not None, device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            linear.weight.copy_(weight)
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        return linear

    @classmethod
    @torch.inference_mode(False)  # a network that is converted there can train
    def from_dense(
        cls,
        linear: nn.Linear,
        *,
        density: float | None = None,
        pattern: Pattern | None = None,
        block: int | tuple[int, int] = 16,
        **options: Any,
    ) -> BlockSparseLinear:
        """The tiles of an nn.Linear with the largest mean |w|, round(density * tiles) of them; or those of `pattern`.

        Without `density` and `pattern`: the tiles that hold a nonzero. Ties go to the lower index.

        >>> layer = BlockSparseLinear.from_dense(torch.nn.Linear(64, 32), density=0.5, block=8)
        >>> layer.pattern.nnz
        16
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear must be a torch.nn.Linear, got {type(linear).__name__}")
        if density is not None and pattern is not None:
            raise ValueError(f"give density or pattern, not both: got density={density}")
        tile = _tile(block)
        weight = linear.weight.detach()
        if pattern is None and density is None:
            pattern = ops.detect(weight, tile)
        elif pattern is None:
            assert density is not None
            pattern = best_tiles(tile_means(weight.abs(), tile), (weight.shape[0], weight.shape[1]), tile, density)
        else:
            tile = pattern.tile
        storage = options.pop("storage", "float32")
        layer = cls(
            linear.in_features, linear.out_features, linear.bias is not None, block=tile, pattern=pattern,
            device=weight.device, dtype=weight.dtype, **options,
        )  # fmt: skip
        with torch.no_grad():
            layer.values.copy_(layer.pattern.pack(weight))
            if layer.bias is not None:
                layer.bias.copy_(linear.bias)
        return layer.store(storage)

    @torch.inference_mode(False)
    def store(self, storage: Storage) -> BlockSparseLinear:
        """Keep the values as "bfloat16" or "int8" (one scale per tile) from now on, for inference; returns self.

        >>> layer = BlockSparseLinear(64, 64, density=0.5).store("int8")
        >>> layer.values.dtype, layer.values.requires_grad
        (torch.int8, False)
        """
        check_storage(storage)
        if self.storage != "float32":
            raise RuntimeError(f"the values are already stored as {self.storage}")
        if storage != "float32":
            values, self.scale = quantize(self.values.detach(), storage)
            self.values, self.storage = nn.Parameter(values, requires_grad=False), storage
        return self

    def capture_gradient(self, handle: Tensor | None) -> None:
        """Hand the factors of the weight's gradient to the `GradientCapture` with this handle; None: to nobody."""
        self._capture_handle = handle

    # ------------------------------------------------------------------ inside

    def _own_dtype(self) -> torch.dtype:
        """What the layer computes in, and returns under autocast."""
        if self.bias is not None:
            return self.bias.dtype
        return self.values.dtype if self.storage == "float32" else torch.float32

    def _check_dtype(self, x: Tensor) -> None:
        own, stored = self.values.dtype, self.storage != "float32"
        if (x.dtype in (torch.float32, *HALF) and own in STORED) if stored else x.dtype == own:
            return
        wanted = f"float32, bfloat16 or float16 beside values stored as {self.storage}" if stored else str(own)
        raise TypeError(f"x must have the layer's dtype {wanted}, got {x.dtype}: convert x or the layer")

    def _apply(self, *args: Any, **options: Any) -> BlockSparseLinear:
        scale = self.scale
        super()._apply(*args, **options)
        if scale is not None and self.scale is not None and self.scale.dtype != scale.dtype:
            self.scale = scale.to(self.scale.device)  # `bfloat16()` and the like are not for the steps of int8
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_capture_handle": None}  # nobody captures a copy's gradient

    @torch.inference_mode(False)
    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        missing, errors = args[-3], args[-1]
        names = [prefix + name for name in ("values", "offsets", "indices")]
        if not all(name in state_dict for name in names):
            missing.extend(name for name in names if name not in state_dict)
            return
        values, offsets, indices = (state_dict[name] for name in names)
        if values.is_floating_point() != self.values.is_floating_point():
            errors.append(
                f"{prefix}values: stored as {values.dtype}, this layer's are {self.values.dtype}: store alike"
            )
            return
        try:
            Pattern(offsets, indices.view(self._index_dtype(1)), self.shape, self.tile).validate()
        except (TypeError, ValueError, RuntimeError) as error:
            errors.append(f"{prefix}indices: not a pattern of shape {self.shape} and tile {self.tile}: {error}")
            return
        if values.shape[1:] == self.values.shape[1:] and values.shape[0] != self.capacity:
            # the state of a layer that had more or fewer tiles: this one takes its capacity, in the same Parameter
            set_data(self.values, self.values.new_zeros(values.shape))
            self.indices = self.indices.new_zeros(indices.shape)
            self.scale = None if self.scale is None else self.scale.new_zeros(len(values))
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._index_changed()


def _tile(block: int | tuple[int, int]) -> tuple[int, int]:
    sides = (block, block) if isinstance(block, int) else block
    pair = isinstance(sides, Sequence) and len(sides) == 2
    if not pair or not all(isinstance(side, int) and not isinstance(side, bool) and side >= 1 for side in sides):
        raise ValueError(f"block must be an integer or a pair of integers of at least 1, got {block!r}")
    return sides[0], sides[1]


def _check_sizes(in_features: int, out_features: int) -> None:
    for name, size in (("in_features", in_features), ("out_features", out_features)):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {size!r}")
