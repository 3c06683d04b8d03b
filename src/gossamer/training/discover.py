"""Which parameters of a model can be sparse."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence, Set
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.optim import Optimizer

from gossamer import wrappers
from gossamer.nn.rewirable import Rewirable
from gossamer.training.tiles import TileLayer
from gossamer.training.weights import Layer, Masked

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONV1D = "transformers.pytorch_utils.Conv1D"
_PACKED = ("q", "k", "v")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
logger = logging.getLogger(__name__)


def unwrap(model: nn.Module) -> nn.Module:
    """The module whose names are used: without DistributedDataParallel, torch.compile and AveragedModel around it, and
    inside a LightningModule that has one network, as its training step may never call the module itself.

    Raises:
        TypeError: DataParallel (its replicas are thrown away at each step) and FSDP (parameters are flattened).
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.DataParallel) or wrappers.is_sharded(module):
            raise TypeError(
                f"{type(module).__name__} (at {name or 'the root'!r}) is not supported: masks need whole parameters "
                "that live between steps; use DistributedDataParallel"
            )
    network = wrappers.unwrap(model)
    while (name := wrappers.only_network(network)) is not None:
        network = wrappers.unwrap(getattr(network, name))
    return network


def _candidates(module: nn.Module) -> Sequence[str]:
    """Attribute names of a module that hold weights sparse by default. Embeddings are never among them."""
    if isinstance(module, nn.MultiheadAttention):
        return ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    if (tiles := _rewirable(module)) is not None:
        return (tiles.rewired,) if tiles.why_fixed() is None else ()
    return ("weight",) if isinstance(module, (nn.Linear, *_CONVOLUTIONS)) or is_conv1d(module) else ()


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is the linear layer of GPT-2 in transformers, whose weight lies transposed: [in, out]."""
    return any(f"{cls.__module__}.{cls.__name__}" == _CONV1D for cls in type(module).__mro__)


def _rewirable(module: nn.Module) -> Rewirable | None:
    """The module, if it has tiles of its own. What torch.compile wraps shows those of the module inside."""
    return module if isinstance(module, Rewirable) and module.rewired in module._parameters else None


def _matches(names: Sequence[str], globs: Sequence[str]) -> bool:
    return any(fnmatchcase(name, glob) for name in names for glob in globs)


def _owned(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, bool]]:
    """(full name, module, attribute, sparse by default) for every parameter and every weight that should be one."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        default = _candidates(module)
        for attribute in dict.fromkeys([*module._parameters, *default]):
            yield f"{prefix}.{attribute}" if prefix else attribute, module, attribute, attribute in default


def _frozen(module: nn.Module, attribute: str) -> bool:
    """Whether a weight is not trained; one that a parametrization computes is when none of its parts is."""
    parameter = module._parameters.get(attribute)
    if parameter is not None:
        return not parameter.requires_grad
    computed = getattr(module, "parametrizations", {})
    parts = list(computed[attribute].parameters()) if attribute in computed else []
    return bool(parts) and not any(part.requires_grad for part in parts)


def frozen_weights(model: nn.Module) -> list[str]:
    """Names of the weights that would be sparse by default if they were trained."""
    return [name for name, module, attribute, default in _owned(model) if default and _frozen(module, attribute)]


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
    optimizer: Optimizer | None = None,
) -> list[Layer]:
    """The layers of `model` (already unwrapped) that will be sparse, in the order of `named_parameters`.

    By default the weights of Linear, Conv1d/2d/3d, ConvTranspose1d/2d/3d, MultiheadAttention and transformers' Conv1D,
    and the tiles of a BlockSparseLinear or another `Rewirable`, as far as they are trained: what is frozen, or not in
    `optimizer`, is left alone. A weight shared with an Embedding is left dense. `include` replaces that choice
    by every parameter whose name matches one of the globs (embeddings, plain and frozen parameters too); `exclude` then
    takes away. Tied weights appear once, under their first name, and match globs by any of their names.

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
    held = None if optimizer is None else {id(p) for group in optimizer.param_groups for p in group["params"]}
    layers: list[Layer] = []
    left: dict[str, list[str]] = {"frozen": [], "trained, but not in the optimizer": []}
    for module in model.modules():
        if type(module).__module__.startswith(("torch.ao.nn.quantized", "torch.nn.quantized")):
            raise TypeError(f"quantised module {type(module).__name__} cannot be trained: prune before quantising")
    owners = _owners(model)
    for entries in aliases.values():
        every = [name for name, *_ in entries]
        embedded = any(isinstance(module, (nn.Embedding, nn.EmbeddingBag)) for _, module, _, _ in entries)
        chosen = any(entry[3] for entry in entries) and not embedded if include is None else _matches(every, include)
        if not chosen or _matches(every, exclude):
            continue
        name, module, attribute, _ = next((e for e in entries if e[3]), entries[0])
        if include is None:  # what nobody named is touched only if it is trained, and by this optimizer
            parameter = module._parameters.get(attribute)
            outside = held is not None and type(parameter) is nn.Parameter and id(parameter) not in held
            if _frozen(module, attribute) or outside:
                left["frozen" if _frozen(module, attribute) else "trained, but not in the optimizer"].append(every[0])
                continue
        _refuse(name, module, attribute)
        layers += _layers(every[0], module, attribute, tile, owners)
    if not layers:
        aside = "; ".join(f"{names} are {why}" for why, names in left.items() if names)
        raise ValueError(
            "nothing to prune: no Linear, Conv, attention or block-sparse weights are left after include and exclude"
            + (f" ({aside}: name them in include to prune them all the same)" if aside else "")
        )
    for why, names in left.items():
        if names:
            level = logging.INFO if why == "frozen" else logging.WARNING
            logger.log(level, "%d weights are %s and stay as they are: %s", len(names), why, names)
    return layers


def _owners(model: nn.Module) -> dict[int, list[tuple[nn.Parameter, str]]]:
    """The parameters that begin at each address, with their names."""
    found: dict[int, list[tuple[nn.Parameter, str]]] = {}
    for name, parameter in model.named_parameters():
        if type(parameter) is nn.Parameter and parameter.numel():
            found.setdefault(parameter.data_ptr(), []).append((parameter, name))
    return found


def _layers(
    name: str,
    module: nn.Module,
    attribute: str,
    tile: tuple[int, int],
    owners: Mapping[int, Sequence[tuple[nn.Parameter, str]]],
) -> list[Layer]:
    """What is rewired of one parameter: itself, its q, k and v parts, or the tiles of a `Rewirable`."""
    parameter = module._parameters[attribute]
    assert parameter is not None
    if parameter.numel() == 0:
        return []
    others = [other for owner, other in owners[parameter.data_ptr()] if owner is not parameter]
    if others:
        raise ValueError(
            f"{name} and {others[0]} share memory but are different Parameters: "
            "tie weights by assigning the same Parameter object"
        )
    if (tiles := _rewirable(module)) is not None and attribute == tiles.rewired:
        if (reason := tiles.why_fixed()) is not None:
            raise ValueError(f"{name} cannot be rewired: {module}: {reason}")
        return [TileLayer.of(name, tiles, parameter)]
    tensor = Masked.full(name, parameter)
    if attribute == "in_proj_weight" and isinstance(module, nn.MultiheadAttention):
        rows = parameter.shape[0] // len(_PACKED)
        return [Layer(f"{name}[{part}]", tensor, i * rows, (i + 1) * rows, tile) for i, part in enumerate(_PACKED)]
    return [Layer(name, tensor, 0, parameter.shape[0], tile)]


def check_ownership(tensors: Mapping[str, Masked], optimizer: Optimizer, taken: Set[int]) -> None:
    """Raise ValueError for a trained weight that `optimizer` does not hold, or that another method has (`taken`)."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, tensor in tensors.items():
        if not tensor.frozen and id(tensor.parameter) not in held:
            raise ValueError(f"{name} is trained but not in the optimizer: exclude it, or pass its own optimizer")
        if id(tensor.parameter) in taken:
            raise ValueError(f"{name} is already masked by another method on this optimizer: detach() it first")
