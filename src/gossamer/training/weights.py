"""Which parameters of a model can be sparse, and the two objects a method works on.

`Masked` is one parameter with its mask, in the parameter's own shape and memory layout. `Layer` is what a method
rewires as one unit: the 2-D view [rows, cols] = [out, in * kernel] of a parameter (or of a block of its rows: the
q, k and v parts of a packed attention projection), cut in tiles. With the default tile (1, 1) a unit is one weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_PACKED = ("q", "k", "v")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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

    def _tiles(self, block: Tensor) -> Tensor:
        (rows, cols), (bm, bn) = self.grid, self.tile
        block = F.pad(block, (0, cols * bn - block.shape[1], 0, rows * bm - block.shape[0]))
        return block.view(rows, bm, cols, bn)

    def scores(self, x: Tensor) -> Tensor:
        """Mean of a [parameter shape] tensor over each unit: float32[units], float64 when the parameter is float64."""
        block = self.view(x)
        block = block if block.dtype == torch.float64 else block.float()
        if self.tile == (1, 1):
            return block.reshape(-1)
        total = self._tiles(block).sum((1, 3))  # tiles at ragged edges are means over the elements they really have
        rows = block.new_full((self.grid[0],), self.tile[0])
        rows[-1] -= self.grid[0] * self.tile[0] - self.shape[0]
        cols = block.new_full((self.grid[1],), self.tile[1])
        cols[-1] -= self.grid[1] * self.tile[1] - self.shape[1]
        return (total / torch.outer(rows, cols)).reshape(-1)

    def any(self, x: Tensor) -> Tensor:
        """Whether a unit has any True element: bool[units]."""
        block = self.view(x)
        return block.reshape(-1) if self.tile == (1, 1) else self._tiles(block).amax((1, 3)).reshape(-1)

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
        if self.tile == (1, 1):
            block = units.view(self.shape)
        else:
            block = units.view(self.grid).repeat_interleave(self.tile[0], 0).repeat_interleave(self.tile[1], 1)
            block = block[: self.shape[0], : self.shape[1]]
        alive = self.tensor.alive()
        return block if alive is None else block & self.view(alive)


def unwrap(model: nn.Module) -> nn.Module:
    """The module whose names are used: without DistributedDataParallel, torch.compile and AveragedModel around it.

    Raises:
        TypeError: DataParallel (its replicas are thrown away at each step) and FSDP (parameters are flattened).
    """
    wrappers = {"DistributedDataParallel": "module", "OptimizedModule": "_orig_mod", "AveragedModel": "module"}
    while type(model).__module__.startswith("torch.") and type(model).__name__ in wrappers:
        model = getattr(model, wrappers[type(model).__name__])
    for name, module in model.named_modules():
        if isinstance(module, nn.DataParallel) or type(module).__name__ == "FullyShardedDataParallel":
            raise TypeError(
                f"{type(module).__name__} (at {name or 'the root'!r}) is not supported: masks need whole parameters "
                "that live between steps; use DistributedDataParallel"
            )
    return model


def _candidates(module: nn.Module) -> Sequence[str]:
    """Attribute names of a module that hold weights sparse by default. Embeddings are never among them."""
    if isinstance(module, nn.MultiheadAttention):
        return ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    return ("weight",) if isinstance(module, (nn.Linear, *_CONVOLUTIONS)) else ()


def _matches(names: Sequence[str], globs: Sequence[str]) -> bool:
    return any(fnmatchcase(name, glob) for name in names for glob in globs)


def _owned(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, bool]]:
    """(full name, module, attribute, sparse by default) for every parameter and every weight that should be one."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        default = _candidates(module)
        for attribute in dict.fromkeys([*module._parameters, *default]):
            yield f"{prefix}.{attribute}" if prefix else attribute, module, attribute, attribute in default


def _refuse(name: str, module: nn.Module, attribute: str) -> None:
    parameter = module._parameters.get(attribute)
    advice = f"pass exclude=[{name!r}] to leave it dense"
    if parameter is None:
        raise TypeError(
            f"{name} is not a plain parameter of {type(module).__name__} (a parametrization, weight_norm or torch "
            f"prune computes it): remove the parametrization first, or {advice}"
        )
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        raise RuntimeError(f"{name} is not initialised yet: run one forward of the lazy module first")
    if type(parameter) is not nn.Parameter:
        raise TypeError(f"{name} is a {type(parameter).__name__} (sharded or quantised): not supported; {advice}")
    if parameter.device.type == "meta":
        raise RuntimeError(f"{name} is on the meta device: materialise the model before making it sparse")
    if parameter.dtype not in _DTYPES:
        raise TypeError(f"{name} has dtype {parameter.dtype}, expected one of {_DTYPES}; {advice}")
    if parameter.ndim < 2:
        raise ValueError(f"{name} has shape {tuple(parameter.shape)}: only weights with at least 2 axes are rewired")


def discover(
    model: nn.Module,
    *,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    tile: tuple[int, int] = (1, 1),
) -> list[Layer]:
    """The layers of `model` (already unwrapped) that will be sparse, in the order of `named_parameters`.

    By default the weights of Linear, Conv1d/2d/3d, ConvTranspose1d/2d/3d and MultiheadAttention; a weight shared with
    an Embedding is left dense. `include` replaces that choice by every parameter whose name matches one of the globs
    (embeddings and plain parameters too); `exclude` then takes away. Tied weights appear once, under their first name,
    and match globs by any of their names.

    Raises:
        ValueError: a glob that matches nothing, nothing left to prune, a weight with fewer than 2 axes, parameters that
            share memory without being the same Parameter.
        TypeError: parametrized, quantised, sharded or non-float weights.
        RuntimeError: lazy or meta weights.
    """
    owned = list(_owned(model))
    names = [name for name, *_ in owned]
    for argument, globs in (("include", include or ()), ("exclude", exclude)):
        for glob in globs:
            if not any(fnmatchcase(name, glob) for name in names):
                raise ValueError(f"{argument} glob {glob!r} matches no parameter; parameters are {names}")
    aliases: dict[int, list[tuple[str, nn.Module, str, bool]]] = {}
    for entry in owned:
        parameter = entry[1]._parameters.get(entry[2])
        if parameter is None and entry[1]._parameters.get(entry[2], 0) is None:
            continue  # registered as None: this module has no such weight
        aliases.setdefault(id(entry if parameter is None else parameter), []).append(entry)
    layers: list[Layer] = []
    memory: dict[int, str] = {}
    for module in model.modules():
        if type(module).__module__.startswith(("torch.ao.nn.quantized", "torch.nn.quantized")):
            raise TypeError(f"quantised module {type(module).__name__} cannot be trained: prune before quantising")
    for entries in aliases.values():
        every = [name for name, *_ in entries]
        embedded = any(isinstance(module, (nn.Embedding, nn.EmbeddingBag)) for _, module, _, _ in entries)
        chosen = any(entry[3] for entry in entries) and not embedded if include is None else _matches(every, include)
        if not chosen or _matches(every, exclude):
            continue
        name, module, attribute, _ = next((e for e in entries if e[3]), entries[0])
        _refuse(name, module, attribute)
        parameter = module._parameters[attribute]
        assert parameter is not None
        if parameter.numel() == 0:
            continue
        if memory.setdefault(parameter.data_ptr(), every[0]) != every[0]:
            raise ValueError(
                f"{every[0]} and {memory[parameter.data_ptr()]} share memory but are different Parameters: "
                "tie weights by assigning the same Parameter object"
            )
        tensor = Masked.full(every[0], parameter)
        if attribute == "in_proj_weight" and isinstance(module, nn.MultiheadAttention):
            rows = parameter.shape[0] // len(_PACKED)
            layers += [
                Layer(f"{every[0]}[{part}]", tensor, i * rows, (i + 1) * rows, tile) for i, part in enumerate(_PACKED)
            ]
        else:
            layers.append(Layer(every[0], tensor, 0, parameter.shape[0], tile))
    if not layers:
        raise ValueError("nothing to prune: no Linear, Conv or attention weights are left after include and exclude")
    return layers
