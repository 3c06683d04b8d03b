"""Bring a copy of a network, such as an average of its weights, to the shapes that the network has been cut to.

A network carries the record of what it has lost since it was built, and a copy carries the one of the moment when it
was made. The difference of the two is what the copy has yet to lose.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gossamer.reshaping import set_data

from .names import state_tensors
from .optimizer import sliced
from .rewrite import history


def compacted(model: nn.Module) -> bool:
    """Whether `model` has lost channels in place."""
    return "_compaction_history" in vars(model) and bool(history(model).positions)


@torch.inference_mode(False)
@torch.no_grad()
def follow_(copy: nn.Module, model: nn.Module) -> bool:
    """Remove from `copy`, in place, the channels that `model` has lost since the copy was made.

    Values stay those of the copy; its Parameter objects stay, with shorter data and no gradient.

    Args:
        copy: made of `model` at any time by `copy.deepcopy` (as torch's AveragedModel does), or built like it.
        model: a network that `shrink_` has worked on.

    Returns:
        Whether anything was removed.

    Raises:
        ValueError: a tensor of `copy` is absent or has a shape that `model` never had; nothing has changed.

    >>> import copy
    >>> from gossamer.compaction import ChannelGraph, shrink_
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> mean = copy.deepcopy(net)
    >>> _ = shrink_(net, ChannelGraph.build(net, torch.zeros(1, 4)), {"0": torch.arange(8) < 3})
    >>> follow_(mean, net), mean[0].weight.shape, mean[0].out_features
    (True, torch.Size([3, 4]), 3)
    """
    if not compacted(model):
        return False
    lost, before = history(model), history(copy)
    tensors, models = state_tensors(copy), state_tensors(model)
    missing: dict[str, dict[int, Tensor]] = {}
    for name, axes in lost.positions.items():
        found = tensors.get(name)
        if found is None:
            raise ValueError(f"the copy has no {name}, which {type(model).__name__} has: it is no copy of it")
        for axis, (size, kept) in axes.items():
            _, had = before.positions.get(name, {}).get(axis, (size, torch.arange(size, device="cpu")))
            width = found.shape[axis] if axis < found.dim() else None
            index = torch.searchsorted(had.cpu(), kept.cpu())
            fits = width == len(had) and bool((had.cpu()[index.clamp(max=len(had) - 1)] == kept.cpu()).all())
            if not fits and width != len(kept):
                raise ValueError(
                    f"{name} of the copy has shape {tuple(found.shape)}, which {type(model).__name__} never had: "
                    f"it has {tuple(models[name].shape)} now, of {size} positions on axis {axis}"
                )
            if fits and len(kept) < len(had):
                missing.setdefault(name, {})[axis] = index
    for name, positions in missing.items():
        set_data(tensors[name], sliced(tensors[name], positions))
    for path, values in lost.attributes.items():
        module = copy.get_submodule(path)
        for attribute, value in values.items():
            setattr(module, attribute, value)
    before.positions = {name: dict(axes) for name, axes in lost.positions.items()}
    before.attributes = {path: dict(values) for path, values in lost.attributes.items()}
    return bool(missing)
