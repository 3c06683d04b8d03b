"""Module attributes that state a size: Conv2d.out_channels, Linear.in_features, an attention block's num_heads.

Modules of PyTorch are known: their attributes follow from the sliced shapes. Others are proposed: an integer whose
value equals a channel axis that shrank, above all where the module's own code runs. Equal values prove nothing (a batch
or an image may be as large as a layer is wide): a proposal is never trusted, see search.py.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from gossamer.wrappers import wrapped_as

from .borrow import attributes_of
from .labels import Free
from .rules.table import Flow, module_path, shape_of

Changes = dict[str, dict[str, Any]]  # module path -> attribute -> new value

_SIZE_NAME = re.compile(r"head|dim|channel|feature|width|plane|hidden|group|inner|filter|embed|size|^n_|num|^nf$|^nx$")
_OTHER_NAME = re.compile(
    r"kernel|stride|padding|dilation|image|patch|max_|vocab|class|label|layer|block|batch|token|seq|len|height|position"
)


def known_attributes(module: nn.Module) -> dict[str, Any]:
    """Attributes of a PyTorch layer that follow from its (already sliced) tensors."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return _conv(module)
    if isinstance(module, nn.Linear):
        return {"out_features": module.weight.shape[0], "in_features": module.weight.shape[1]}
    if isinstance(module, nn.modules.batchnorm._NormBase):
        per_channel = module.weight if module.weight is not None else module.running_mean
        return {} if per_channel is None else {"num_features": per_channel.shape[0]}
    if isinstance(module, nn.GroupNorm) and module.weight is not None:
        width = module.num_channels // module.num_groups
        channels = module.weight.shape[0]
        return {"num_channels": channels, "num_groups": channels // width}
    if isinstance(module, nn.RNNBase) and not module.proj_size and not module.bidirectional:
        inputs, hidden = module.get_parameter("weight_ih_l0"), module.get_parameter("weight_hh_l0")
        return {"input_size": inputs.shape[1], "hidden_size": hidden.shape[1]}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": module.weight.shape[0]}
    if isinstance(module, nn.Embedding):
        return {"embedding_dim": module.weight.shape[1]}
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):  # the transposed linear layer of GPT-2 models
        weight = module.weight
        assert isinstance(weight, nn.Parameter)
        return {"nf": weight.shape[1]} | ({"nx": weight.shape[0]} if hasattr(module, "nx") else {})
    return {}


def _conv(module: nn.modules.conv._ConvNd) -> dict[str, Any]:
    rows, columns = module.weight.shape[:2]
    if module.transposed:
        width = module.in_channels // module.groups
        groups = 1 if module.groups == 1 else rows // width
        return {"in_channels": rows, "out_channels": columns * groups, "groups": groups}
    width = module.out_channels // module.groups
    groups = 1 if module.groups == 1 else rows // width
    return {"in_channels": columns * groups, "out_channels": rows, "groups": groups}


@dataclass
class Proposal:
    """One attribute name of one class: its modules either all keep their values or all follow their channels.

    values: module path -> the values it may take, likeliest first. own: the modules' own code handles such an axis.
    likely: the name speaks of a size, too, so it follows until proven otherwise.
    """

    cls: type
    name: str
    values: dict[str, list[Any]] = field(default_factory=dict)
    own: bool = False
    likely: bool = False

    def at(self, choice: int) -> dict[str, Any]:
        """The values of choice number 1, 2, ... by module path; 0 = all stay as they are."""
        return {path: options[min(choice, len(options)) - 1] for path, options in self.values.items()} if choice else {}

    @property
    def choices(self) -> int:
        return 1 + max(len(options) for options in self.values.values())


def proposals(model: nn.Module, flow: Flow, removed: np.ndarray) -> list[Proposal]:
    """Attributes that may have to follow, those of modules that handle such an axis first. `removed` = sorted roots."""
    sizes = _size_changes(flow, removed)
    anywhere: dict[int, set[int]] = defaultdict(set)
    for changes in sizes.values():
        for before, after in changes.items():
            anywhere[before] |= after
    found: dict[tuple[type, str], Proposal] = {}
    for path, module in model.named_modules():
        if known_attributes(module) or wrapped_as(module):
            continue
        for name, value in attributes_of(module).items():
            own = _options(value, sizes.get(path, {}))
            options = own or _options(value, anywhere)
            if options:
                proposal = found.setdefault((type(module), name), Proposal(type(module), name))
                proposal.values[path] = options
                proposal.own |= bool(own)
    for proposal in found.values():
        speaks = _SIZE_NAME.search(proposal.name) and not _OTHER_NAME.search(proposal.name)
        proposal.likely = proposal.own and bool(speaks)
    return sorted(found.values(), key=lambda proposal: not proposal.own)


def _options(value: Any, changes: Mapping[int, set[int]]) -> list[Any]:
    """The values that an integer, or a sequence of integers, may take; empty = it is no size that changed."""
    if type(value) is int and value > 1:
        return sorted(changes.get(value, ()))
    if type(value) not in (list, tuple, torch.Size) or not value or any(type(item) is not int for item in value):
        return []
    each = [sorted(changes.get(item, ())) or [item] for item in value]
    ways = [[options[min(i, len(options) - 1)] for options in each] for i in range(max(map(len, each)))]
    return [type(value)(way) for way in ways if way != list(value)]


def _size_changes(flow: Flow, removed: np.ndarray) -> dict[str, dict[int, set[int]]]:
    """module path -> size of a channel axis its own code handles -> the sizes such axes have afterwards, if changed."""
    sizes: dict[str, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for node in flow.capture.calls:
        path = module_path(node)
        for tensor in (node, *node.all_input_nodes):
            axes = flow.axes[tensor]
            if isinstance(axes, tuple):
                continue
            for before, after in zip(shape_of(tensor), shape_after(flow, tensor, removed), strict=True):
                if after is not None and after != before:
                    sizes[path][before].add(after)
    return sizes


def shape_after(flow: Flow, node: fx.Node, removed: np.ndarray, item: int | None = None) -> tuple[int | None, ...]:
    """The shape of `node` (or of item number `item` of its tuple) once the labels of `removed` are gone.

    None for an axis of a filled constant, which takes the size of whatever it is combined with.
    """
    axes = flow.axes[node]
    if item is not None:
        assert isinstance(axes, tuple)
        axes, before = axes[item], tuple(int(size) for size in node.meta["val"][item].shape)
    else:
        before = shape_of(node)
    assert isinstance(axes, list)
    after: list[int | None] = []
    for axis, size in zip(axes, before, strict=True):
        axis = flow.labels.settled(axis)
        gone = int(np.isin(flow.labels.find(axis), removed).sum()) if isinstance(axis, np.ndarray) else 0
        after.append(None if isinstance(axis, Free) else size - gone)
    return tuple(after)
