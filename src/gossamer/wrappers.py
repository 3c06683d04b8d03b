"""What stands around a network and its optimizer: found, seen through, taken off.

    DistributedDataParallel(net)   DataParallel(net)   torch.compile(net)   net.compile()   AveragedModel(net)
    fabric.setup(net)   a LightningModule without a forward   accelerator.prepare(optimizer)   torch.autocast

A wrapper adds a segment to every name inside it ("module.", "_orig_mod."); plain names are those without it.
May import torch only.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

# Class -> the attribute that holds the network. By name: torch.distributed may not have been built, the others may not
# be installed.
_INNER = {"DistributedDataParallel": "module", "DataParallel": "module", "OptimizedModule": "_orig_mod",
          "AveragedModel": "module", "_FabricModule": "_forward_module"}  # fmt: skip
_LIGHTNING = ("lightning", "pytorch_lightning", "lightning_fabric")
_PACKAGES = ("torch", *_LIGHTNING)
_SHARDED = ("FullyShardedDataParallel", "FSDPModule", "DeepSpeedEngine")


def _package(cls: type) -> str:
    return cls.__module__.partition(".")[0]


def wrapped_as(module: nn.Module) -> str | None:
    """The attribute under which `module` holds the network it wraps; None = it is no wrapper."""
    for base in type(module).__mro__:
        if base.__name__ in _INNER and _package(base) in _PACKAGES:
            return _INNER[base.__name__]
    return None


def only_network(module: nn.Module) -> str | None:
    """The child that has all parameters of a LightningModule, whose training step may call it and not the module; None
    for what is none, or has several."""
    if not any(base.__name__ == "LightningModule" and _package(base) in _LIGHTNING for base in type(module).__mro__):
        return None
    holders = [name for name, child in module.named_children() if next(child.parameters(), None) is not None]
    alone = len(holders) == 1 and not any(True for _ in module.parameters(recurse=False))
    return holders[0] if alone else None


def has_forward(module: nn.Module) -> bool:
    """Whether a module, a LightningModule too, has a forward of its own."""
    owner = next(base for base in type(module).__mro__ if "forward" in vars(base))
    inherited = owner is nn.Module or (owner.__name__ == "LightningModule" and _package(owner) in _LIGHTNING)
    return "forward" in vars(module) or not inherited


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside any number of wrappers. A LightningModule is one if it has no forward and one network.

    >>> import torch
    >>> net = torch.nn.Linear(2, 2)
    >>> unwrap(torch.optim.swa_utils.AveragedModel(torch.nn.DataParallel(net))).weight.shape
    torch.Size([2, 2])
    >>> unwrap(net) is net
    True
    """
    while (attribute := wrapped_as(model) or (None if has_forward(model) else only_network(model))) is not None:
        model = getattr(model, attribute)
    return model


def unwrap_optimizer(optimizer: Any) -> Optimizer:
    """The torch optimizer whose step a wrapper calls: what is found by following the public attribute `optimizer`.

    So Accelerate's, Lightning's and Fabric's wrappers are seen through; hooks belong on the optimizer inside, which
    steps only when gradients are complete and no overflow was found.

    Raises:
        TypeError: there is no torch optimizer inside, its step runs no hooks, or it holds another optimizer under
            another name (as SAM, Lookahead and schedule-free wrappers do), and so moves weights behind its back.

    >>> import torch
    >>> sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    >>> unwrap_optimizer(sgd) is sgd
    True
    """
    found, seen = optimizer, [id(optimizer)]
    while _steps(found) and _steps(inner := getattr(found, "optimizer", None)) and id(inner) not in seen:
        found = inner
        seen.append(id(found))
    name = type(found).__name__
    if not isinstance(found, Optimizer):
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer, or a wrapper that holds one as `optimizer`, got {name}"
        )
    for attribute, value in vars(found).items():
        if isinstance(value, Optimizer):
            raise TypeError(
                f"{name} is not supported: it moves weights around the steps of the optimizer in its {attribute!r}, "
                "where masks would not hold; use that optimizer alone"
            )
    if not getattr(type(found).step, "hooked", False):
        raise TypeError(f"{name} is not supported: its step runs no hooks, as it never called Optimizer.__init__")
    return found


def _steps(value: Any) -> bool:
    """Whether this looks like an optimizer: a scheduler and a trainer hold one too, but are none."""
    return all(hasattr(value, name) for name in ("step", "zero_grad", "param_groups"))


def is_sharded(module: nn.Module) -> bool:
    """Whether FSDP has cut the parameters of this module into shards."""
    return any(base.__name__ in _SHARDED for base in type(module).__mro__)


def plain_names(model: nn.Module) -> dict[str, str]:
    """Path of every module -> the same without the segments that wrappers inside `model` add.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.DataParallel(torch.nn.Linear(2, 2)))
    >>> plain_names(net)
    {'': '', '0': '0', '0.module': '0'}
    """
    names = {"": ""}
    for path, module in model.named_modules(remove_duplicate=False):
        attribute = wrapped_as(module)
        for child in module._modules:
            whole = f"{path}.{child}" if path else child
            plain = names[path] if child == attribute else f"{names[path]}.{child}" if names[path] else child
            names[whole] = plain
    return names


def plain_name(names: dict[str, str], tensor: str) -> str:
    """The name of a parameter or buffer without wrappers; `names` is from `plain_names`."""
    path, _, own = tensor.rpartition(".")
    prefix = names.get(path, path)
    return f"{prefix}.{own}" if prefix else own


def strip_(model: nn.Module) -> nn.Module:
    """Replace every wrapper inside `model` by what it wraps; returns the network without wrappers around it."""
    model = unwrap(model)
    for module in model.modules():
        for name, child in module._modules.items():
            if child is not None and wrapped_as(child) is not None:
                module._modules[name] = unwrap(child)
    return model


_lock, _patched = threading.Lock(), 0
_thread = threading.local()
_AUTOCAST = torch.autocast.__enter__, torch.autocast.__exit__


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Inside, in this thread, nothing is cast: autocast is off and stays off, whoever turns it on.

    That is a decorated forward (`torch.autocast`, and what Accelerate makes of a prepared model), a `with` in one, or
    the caller. Two forms of a network can then be compared in the precision of their parameters.

    >>> import torch
    >>> net = torch.autocast("cpu", torch.bfloat16)(torch.nn.Linear(2, 2))
    >>> with full_precision():
    ...     net(torch.zeros(1, 2)).dtype
    torch.float32
    """
    global _patched
    devices = [name for name in ("cpu", "cuda") if torch.is_autocast_enabled(name)]
    for name in devices:
        torch.set_autocast_enabled(name, False)
    with _lock:
        _patched += 1
        torch.autocast.__enter__, torch.autocast.__exit__ = _enter, _exit  # type: ignore[method-assign]
    depth = getattr(_thread, "depth", 0)
    _thread.depth = depth + 1
    try:
        yield
    finally:
        _thread.depth = depth
        with _lock:
            _patched -= 1
            if not _patched:
                torch.autocast.__enter__, torch.autocast.__exit__ = _AUTOCAST  # type: ignore[method-assign]
        for name in devices:
            torch.set_autocast_enabled(name, True)


def _enter(self: torch.autocast) -> Any:
    return self if getattr(_thread, "depth", 0) else _AUTOCAST[0](self)


def _exit(self: torch.autocast, *error: Any) -> Any:
    return None if getattr(_thread, "depth", 0) else _AUTOCAST[1](self, *error)


@contextlib.contextmanager
def seen_through(model: nn.Module) -> Iterator[None]:
    """Inside, wrappers and compiled modules pass calls straight on, so that plain eager code runs. Names stay."""
    undo: list[tuple[nn.Module, str, Any, bool]] = []

    def put(module: nn.Module, name: str, value: Any) -> None:
        undo.append((module, name, vars(module).get(name), name in vars(module)))
        object.__setattr__(module, name, value)

    try:
        for module in model.modules():
            attribute = wrapped_as(module)
            if attribute is not None:
                put(module, "forward", getattr(module, attribute).__call__)
            if getattr(module, "_compiled_call_impl", None) is not None:
                put(module, "_compiled_call_impl", None)
            if (eager := getattr(vars(module).get("forward"), "_torchdynamo_orig_callable", None)) is not None:
                put(module, "forward", eager)  # module.forward = torch.compile(module.forward)
        yield
    finally:
        for module, name, value, own in reversed(undo):
            if own:
                object.__setattr__(module, name, value)
            else:
                object.__delattr__(module, name)
