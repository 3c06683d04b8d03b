"""Module attributes that state a size: Conv2d.out_channels, Linear.in_features, an attention block's num_heads.

Modules of PyTorch are known: their attributes follow from the sliced shapes. Others are proposed: an integer of the
module whose name speaks of a size and whose value equals an axis that shrank where the module's own code runs. A
proposal is never trusted; the caller captures the shrunk model again and compares (see structure.py).
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

import numpy as np
from torch import fx, nn

from .labels import Free
from .rules.table import Flow, module_path, shape_of

Changes = dict[str, dict[str, Any]]  # module path -> attribute -> new value

_SIZE_NAME = re.compile(r"head|dim|channel|feature|width|plane|hidden|group|inner|filter|embed|size|^n_|num|^nf$|^nx$")
_OTHER_NAME = re.compile(r"kernel|stride|padding|dilation|image|patch|max_|vocab|class|label|layer|block")


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


def proposals(model: nn.Module, flow: Flow, removed: np.ndarray) -> list[Changes]:
    """Ways to set the other modules' attributes, the likeliest first. `removed` = label roots that go, sorted."""
    sizes = _size_changes(flow, removed)
    named: Changes = defaultdict(dict)
    every: Changes = defaultdict(dict)
    unsure: list[tuple[str, str, Any]] = []
    for path, module in model.named_modules():
        changes = sizes.get(path)
        if not changes or known_attributes(module):
            continue
        for name, value in vars(module).items():
            if type(value) is int and value > 1:
                after = changes.get(value, {value})
                options: list[Any] = sorted(after - {value})
            elif isinstance(value, (tuple, list)) and value and all(type(item) is int for item in value):
                after_each = [changes.get(item, {item}) for item in value]
                after = set() if all(len(each) == 1 for each in after_each) else {-1}
                new = [min(each) for each in after_each]
                options = [type(value)(new)] if new != list(value) else []
            else:
                continue
            speaks = bool(_SIZE_NAME.search(name)) and not _OTHER_NAME.search(name)
            if len(options) == 1 and len(after) <= 1:
                every[path][name] = options[0]
                if speaks:
                    named[path][name] = options[0]
            elif options and speaks:
                unsure.extend((path, name, option) for option in options)
    ways: list[Changes] = [dict(named), {}, dict(every)] if named else [{}, dict(every)] if every else [{}]
    ways.extend(_with_unsure(dict(named), unsure))
    return ways


def _with_unsure(named: Changes, unsure: list[tuple[str, str, Any]]) -> list[Changes]:
    """Attributes whose size both shrank and stayed in the same module: change each name everywhere, then all."""
    ways = []
    names = sorted({name for _, name, _ in unsure})
    for chosen in [{name} for name in names] + ([set(names)] if len(names) > 1 else []):
        way: Changes = {path: dict(items) for path, items in named.items()}
        for path, name, option in unsure:
            if name in chosen:
                way.setdefault(path, {})[name] = option
        ways.append(way)
    return ways


def _size_changes(flow: Flow, removed: np.ndarray) -> dict[str, dict[int, set[int]]]:
    """module path -> size of an axis its own code handles -> the sizes that axis has afterwards."""
    sizes: dict[str, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for node in flow.capture.calls:
        path = module_path(node)
        for tensor in (node, *node.all_input_nodes):
            axes = flow.axes[tensor]
            if isinstance(axes, tuple):
                continue
            for before, after in zip(shape_of(tensor), shape_after(flow, tensor, removed), strict=True):
                if after is not None:
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
