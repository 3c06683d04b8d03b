"""Shrink a model in place: slice parameters, buffers and optimizer state, set the sizes its modules remember.

Nothing is replaced: the same Parameter objects get shorter data, so optimizers, tied weights and hooks keep working.
The result is checked by capturing the shrunk model again; if its code does not follow, everything is put back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import LongTensor, Tensor, nn

from gossamer.reshaping import set_data
from gossamer.wrappers import unwrap, unwrap_optimizer, wrapped_as

from .attributes import Changes, known_attributes, proposals
from .graph import ChannelGraph, ChannelGroup
from .names import state_tensors
from .optimizer import check_state, slice_state, sliced
from .rules import Flow
from .search import search
from .structure import StructureError, check_structure


class Kept(dict[str, dict[int, LongTensor]]):
    """{tensor name: {axis: kept positions}}.

    `attributes` = {module path: {attribute: new value}}; `graph` = the channel graph of the shrunk model with the same
    groups as before (None when nothing was removed), which saves building it again.
    """

    def __init__(self, positions: dict[str, dict[int, LongTensor]]) -> None:
        super().__init__(positions)
        self.attributes: Changes = {}
        self.graph: ChannelGraph | None = None


@dataclass
class History:
    """Everything a model has lost since it was built, so that a save refers to the shapes its factory gives."""

    positions: dict[str, dict[int, tuple[int, Any]]] = field(default_factory=dict)  # axis -> (first size, kept)
    attributes: Changes = field(default_factory=dict)

    def add(self, kept: Kept, shapes: dict[str, torch.Size]) -> None:
        for name, axes in kept.items():
            for axis, index in axes.items():
                size, earlier = self.positions.setdefault(name, {}).get(axis, (shapes[name][axis], None))
                self.positions[name][axis] = size, index if earlier is None else earlier[index]
        for path, values in kept.attributes.items():
            self.attributes.setdefault(path, {}).update(values)


def history(model: nn.Module) -> History:
    """The model's own record; it travels with deepcopy and pickle, not with the state dict."""
    return vars(model).setdefault("_compaction_history", History())


def kept_positions(model: nn.Module, graph: ChannelGraph, keep: dict[str, Tensor]) -> tuple[Kept, np.ndarray]:
    """The positions every tensor keeps, and the label roots that go.

    Raises:
        KeyError: a group name is unknown.
        ValueError: a mask has the wrong dtype or shape, removes every channel or a frozen channel, or the model no
            longer has the shapes the graph was built for.
    """
    stay: dict[tuple[str, int], Tensor] = {}
    gone: list[np.ndarray] = []
    state = state_tensors(model)
    for name, mask in keep.items():
        group = graph.group(name)
        _check_mask(group, mask)
        if bool(mask.all()):
            continue
        mask = mask.detach().cpu()
        number = graph.groups.index(group)
        gone.append(graph.roots[number][~mask.numpy()])
        for member in group.members:
            key = member.tensor, member.axis
            size = len(graph.flow.state[key])
            if member.tensor not in state or state[member.tensor].shape[member.axis] != size:
                found = tuple(state[member.tensor].shape) if member.tensor in state else "no such tensor"
                raise ValueError(
                    f"{member.tensor} has {found}, the graph expects {size} positions on axis {member.axis}: "
                    "build the graph again after every change of the model"
                )
            stay.setdefault(key, torch.ones(size, dtype=torch.bool, device="cpu"))[member.index[~mask].reshape(-1)] = (
                False
            )
    positions: dict[str, dict[int, LongTensor]] = {}
    for (tensor, axis), mask in sorted(stay.items()):
        positions.setdefault(tensor, {})[axis] = mask.nonzero().flatten()  # type: ignore[assignment]
    removed = np.sort(np.concatenate(gone)) if gone else np.zeros(0, dtype=np.int64)
    return Kept(positions), removed


def _check_mask(group: ChannelGroup, mask: Tensor) -> None:
    what = f"keep[{group.name!r}]"
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) != (group.channels,):
        found = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"{what} must be a bool tensor of shape ({group.channels},), got {found}")
    if group.frozen is not None and not bool(mask.all()):
        raise ValueError(f"{what} removes channels of a group that stays: {group.frozen}")
    if not bool(mask.any()):
        raise ValueError(f"{what} removes all {group.channels} channels, at least one must stay")


@torch.inference_mode(False)
def shrink_(
    model: nn.Module,
    graph: ChannelGraph,
    keep: dict[str, Tensor],
    optimizer: torch.optim.Optimizer | None = None,
) -> Kept:
    """Remove channels from `model` in place, whatever their values; groups not in `keep` are untouched.

    Exact only for channels that `dead` reports (or that are masked to zero everywhere); `compact` checks that.

    Args:
        model: the model `graph` was built for; its Parameter objects stay, with shorter data and no gradient.
        graph: built for the model's present shapes; `Kept.graph` is the one for the new shapes.
        keep: group name -> bool tensor [channels], True = stays.
        optimizer: its state tensors of the same shape as a shrunk parameter are sliced alike; bare or in wrappers.

    Raises:
        KeyError, ValueError, TypeError: bad `keep` or an optimizer state of unknown layout; nothing has changed.
        StructureError: the model's own code does not follow smaller tensors; everything was put back.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> graph = ChannelGraph.build(net, torch.zeros(1, 4))
    >>> kept = shrink_(net, graph, {"0": torch.arange(8) < 3})
    >>> net[0].out_features, tuple(net[2].weight.shape), kept["0.bias"][0].tolist()
    (3, (2, 3), [0, 1, 2])
    """
    if wrapped_as(model) == "module" and not hasattr(model, "n_averaged"):
        raise TypeError(
            f"{type(model).__name__} keeps the first shapes of its parameters: shrink the network inside it"
        )
    model = unwrap(model)
    kept, removed = kept_positions(model, graph, keep)
    if not kept:
        return kept
    state = state_tensors(model)
    touched = {name: state[name] for name in kept}
    if optimizer is not None:
        optimizer = unwrap_optimizer(optimizer)
        check_state(optimizer, touched)
    before = {name: (tensor.data, tensor.grad) for name, tensor in touched.items()}
    found = proposals(model, graph.flow, removed)
    for name, positions in kept.items():
        set_data(touched[name], sliced(touched[name], positions))
    layers = _layer_attributes(model)

    def attempt(way: Changes) -> tuple[Changes, Flow]:
        changes = {**way, **layers}
        old = _set_attributes(model, changes)
        try:
            return changes, check_structure(model, graph, kept, removed)
        except BaseException:
            _set_attributes(model, old)
            raise

    try:
        kept.attributes, flow = search(model, found, attempt)
    except StructureError as error:
        _restore(touched, before)
        raise StructureError(f"the code of {type(model).__name__} does not follow smaller tensors: {error}") from None
    except BaseException:
        _restore(touched, before)
        raise
    kept.graph = ChannelGraph.from_flow(model, flow, graph.example_inputs)
    if optimizer is not None:
        for name, positions in kept.items():
            slice_state(optimizer, touched[name], before[name][0].shape, positions)
    history(model).add(kept, {name: data.shape for name, (data, _) in before.items()})
    return kept


def _restore(touched: dict[str, Tensor], before: dict[str, tuple[Tensor, Tensor | None]]) -> None:
    for name, (data, grad) in before.items():
        set_data(touched[name], data, grad)


def _layer_attributes(model: nn.Module) -> Changes:
    changes: Changes = {}
    for path, module in model.named_modules():
        new = {name: value for name, value in known_attributes(module).items() if getattr(module, name) != value}
        if new:
            changes[path] = new
    return changes


def _set_attributes(model: nn.Module, changes: Changes) -> Changes:
    """Set attributes and return what they were."""
    old: Changes = {}
    for path, values in changes.items():
        module: Any = model.get_submodule(path)
        old[path] = {name: getattr(module, name) for name in values}
        for name, value in values.items():
            setattr(module, name, value)
    return old
