"""Modules that stand around a network and run it: found, seen through, taken off.

    DistributedDataParallel(net)   DataParallel(net)   torch.compile(net)   net.compile()   AveragedModel(net)

A wrapper adds a segment to every name inside it ("module.", "_orig_mod."); plain names are those without it.
May import torch only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

# Class -> the attribute that holds the network. By name: torch.distributed may not have been built.
_INNER = {"DistributedDataParallel": "module", "DataParallel": "module", "OptimizedModule": "_orig_mod",
          "AveragedModel": "module"}  # fmt: skip
_SHARDED = ("FullyShardedDataParallel", "FSDPModule")


def wrapped_as(module: nn.Module) -> str | None:
    """The attribute under which `module` holds the network it wraps; None = it is no wrapper."""
    for base in type(module).__mro__:
        if base.__module__.startswith("torch.") and base.__name__ in _INNER:
            return _INNER[base.__name__]
    return None


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside any number of wrappers.

    >>> import torch
    >>> net = torch.nn.Linear(2, 2)
    >>> unwrap(torch.optim.swa_utils.AveragedModel(torch.nn.DataParallel(net))).weight.shape
    torch.Size([2, 2])
    >>> unwrap(net) is net
    True
    """
    while (attribute := wrapped_as(model)) is not None:
        model = getattr(model, attribute)
    return model


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
        yield
    finally:
        for module, name, value, own in reversed(undo):
            if own:
                object.__setattr__(module, name, value)
            else:
                object.__delattr__(module, name)
