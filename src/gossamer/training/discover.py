"""Which parameters of a model can be sparse."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from gossamer.nn import BlockSparseLinear
from gossamer.training.tiles import TileLayer
from gossamer.training.weights import Layer, Masked

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_PACKED = ("q", "k", "v")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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
    if isinstance(module, BlockSparseLinear):
        return ("values",) if _rewirable(module) else ()
    return ("weight",) if isinstance(module, (nn.Linear, *_CONVOLUTIONS)) else ()


def _rewirable(module: BlockSparseLinear) -> bool:
    return module.mode == "dynamic" and module.storage == "float32"


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

    By default the weights of Linear, Conv1d/2d/3d, ConvTranspose1d/2d/3d and MultiheadAttention, and the tiles of
    BlockSparseLinear in dynamic mode; a weight shared with an Embedding is left dense. `include` replaces that choice
    by every parameter whose name matches one of the globs (embeddings and plain parameters too); `exclude` then takes
    away. Tied weights appear once, under their first name, and match globs by any of their names.

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
        if isinstance(module, BlockSparseLinear):
            if not _rewirable(module):
                raise ValueError(f"{name} cannot be rewired: {module} is static, or stored for inference")
            layers.append(TileLayer.of(every[0], module))
            continue
        tensor = Masked.full(every[0], parameter)
        if attribute == "in_proj_weight" and isinstance(module, nn.MultiheadAttention):
            rows = parameter.shape[0] // len(_PACKED)
            layers += [
                Layer(f"{every[0]}[{part}]", tensor, i * rows, (i + 1) * rows, tile) for i, part in enumerate(_PACKED)
            ]
        else:
            layers.append(Layer(every[0], tensor, 0, parameter.shape[0], tile))
    if not layers:
        raise ValueError(
            "nothing to prune: no Linear, Conv, attention or block-sparse weights are left after include and exclude"
        )
    return layers
