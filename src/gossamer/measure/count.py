"""Count what a network costs: parameters, nonzeros, bytes, multiply-adds.

`flops` is what dense hardware executes. `sparse_flops` weights each layer by the density of its weight, the
"theoretical" figure of the sparse-training papers: nothing gets faster because of it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Counts:
    """`flops` and `sparse_flops` are floating point operations of one forward (2 per multiply-add)."""

    parameters: int
    nonzeros: int
    bytes: int
    flops: int
    sparse_flops: int

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


def call_arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(args, kwargs) of a forward call given as a tensor, a tuple of arguments or a dict of keyword arguments."""
    if isinstance(example_inputs, torch.Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    raise TypeError(
        "example_inputs must be a tensor, a tuple of positional arguments or a dict of keyword arguments, "
        f"got {type(example_inputs).__name__}"
    )


def described(example_inputs: Any) -> str:
    """The tensors of a forward call in words, those in tuples and dicts too.

    >>> described((torch.zeros(8, 3), {"mask": torch.ones(8, dtype=torch.bool)}))
    'float32[8, 3], bool[8]'
    """
    found = [each for each in pytree.tree_leaves(example_inputs) if isinstance(each, torch.Tensor)]
    return ", ".join(f"{str(each.dtype).removeprefix('torch.')}{list(each.shape)}" for each in found)


def flops_by_module(model: nn.Module, example_inputs: Any) -> dict[str, int]:
    """Floating point operations of one forward inside each module that makes some, by its path; "" is the model."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter:
        args, kwargs = call_arguments(example_inputs)
        model(*args, **kwargs)
    # FlopCounterMode names modules from the class of the root: "ResNet.layer1.0.conv1".
    root = type(model).__name__
    found = {
        path.removeprefix(root).removeprefix("."): sum(by.values()) for path, by in counter.get_flop_counts().items()
    }
    return {**found, "": counter.get_total_flops()}


def count(model: nn.Module, example_inputs: Any) -> Counts:
    """Count one forward of `model` in eval mode on `example_inputs`.

    Args:
        model: any module; a copy runs, so its mode and its running statistics stay as they are.
        example_inputs: a tensor, a tuple of positional inputs, or a dict of keyword inputs.

    Returns:
        `Counts`. Parameters shared by several modules count once; bytes are those of parameters and buffers.

    Raises:
        TypeError: example_inputs is none of the three forms.

    >>> import torch, gossamer as gs
    >>> net = torch.nn.Linear(8, 4)
    >>> counts = gs.measure.count(net, torch.randn(3, 8))
    >>> counts.parameters, counts.flops
    (36, 192)
    """
    probe = copy.deepcopy(model).eval()
    with torch.no_grad():
        by_module = flops_by_module(probe, example_inputs)
    flops = by_module[""]
    skipped = 0.0
    for name, module in probe.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, torch.Tensor) or weight.dim() < 2 or weight.numel() == 0:
            continue
        density = torch.count_nonzero(weight).item() / weight.numel()
        skipped += by_module.get(name, 0) * (1.0 - density)

    parameters = list(probe.parameters())
    return Counts(
        parameters=sum(p.numel() for p in parameters),
        nonzeros=sum(int(torch.count_nonzero(p)) for p in parameters),
        bytes=sum(t.numel() * t.element_size() for t in (*parameters, *probe.buffers())),
        flops=int(flops),
        sparse_flops=round(flops - skipped),
    )
