"""Run and copy a user's model without leaving a trace in it: flags, caches, counters, random numbers."""

from __future__ import annotations

import contextlib
import copy
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gossamer.wrappers import is_sharded

from .closures import rebind_

_INTERNAL = set(vars(nn.Module()))  # hooks, flags and the like, which are restored or left alone elsewhere
_CONTAINERS = (list, dict, set, deque, OrderedDict, defaultdict)
HALVES = (torch.float16, torch.bfloat16)
T = TypeVar("T")


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, every submodule's own train flag restored after."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in flags:
            module.training = training


def refuse_shards(model: nn.Module) -> None:
    """Raise TypeError where no parameter is whole."""
    for path, module in model.named_modules():
        if is_sharded(module):
            raise TypeError(
                f"{type(module).__name__} (at {path or 'the root'!r}) has cut the parameters into shards: load a full "
                "state dict (torch.distributed.checkpoint.state_dict, full_state_dict=True) into the plain module"
            )


def ordinary(inputs: T) -> T:
    """`inputs` with tensors made under inference_mode replaced by copies that autograd accepts."""
    return pytree.tree_map(
        lambda leaf: leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf, inputs
    )


def single(inputs: T) -> T:
    """`inputs` with half floats as float32."""
    return pytree.tree_map(
        lambda leaf: leaf.float() if isinstance(leaf, Tensor) and leaf.dtype in HALVES else leaf, inputs
    )


def is_half(model: nn.Module) -> bool:
    """Whether a parameter is a half float. Half inputs of a network without any are casts for autocast to undo."""
    return any(parameter.dtype in HALVES for parameter in model.parameters())


def from_inference(model: nn.Module) -> bool:
    """Whether a parameter, a buffer or a kept result of `model` was made under inference_mode, which bars training."""
    kept = (value for module in model.modules() for value in attributes_of(module).values())
    return any(isinstance(t, Tensor) and t.is_inference() for t in (*model.parameters(), *model.buffers(), *kept))


def attributes_of(module: nn.Module) -> dict[str, Any]:
    """What a class or its forward has put on a module besides parameters, buffers and children."""
    return {name: value for name, value in vars(module).items() if name not in _INTERNAL}


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Forward passes inside leave nothing behind: caches that modules build, counters, buffers, random numbers."""
    saved = [_Snapshot(module) for module in model.modules()]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        for snapshot in saved:
            snapshot.restore()


class _Snapshot:
    """One module's attributes and buffers, and the contents of its tensors and containers."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.attributes, self.buffers = attributes_of(module), dict(module._buffers)
        self.transient = set(module._non_persistent_buffers_set)
        values = [*self.attributes.values(), *self.buffers.values()]
        self.tensors = [(t, t.detach().clone()) for t in values if isinstance(t, Tensor)]
        self.containers = [(c, copy.copy(c)) for c in values if type(c) in _CONTAINERS]

    def restore(self) -> None:
        for name in attributes_of(self.module).keys() - self.attributes.keys():
            del vars(self.module)[name]
        vars(self.module).update(self.attributes)
        self.module._buffers.clear()
        self.module._buffers.update(self.buffers)
        self.module._non_persistent_buffers_set.clear()
        self.module._non_persistent_buffers_set.update(self.transient)
        for tensor, value in self.tensors:
            if not tensor.is_meta and not torch.equal(tensor, value):
                with torch.no_grad():
                    tensor.detach().copy_(value)
        for container, content in self.containers:
            container.clear()
            container.update(content) if isinstance(container, dict | set) else container.extend(content)


def duplicate(model: nn.Module) -> nn.Module:
    """A deep copy; results of a forward that modules have kept, which autograd forbids to copy, are detached.

    Functions that stand in for a method (a decorated or compiled forward) run the copy.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for leaf in pytree.tree_leaves(list(attributes_of(module).values())):
            if isinstance(leaf, Tensor) and leaf.grad_fn is not None:
                memo[id(leaf)] = leaf.detach().clone()
    twin = copy.deepcopy(model, memo)
    rebind_(twin, model)
    return twin
