"""Make a model's convolutions and linear layers skip zeros, in place, and back.

    features.0   Conv2d(3, 64)      left: 3 input channels
    features.1   ReLU               stays: nothing before it to fuse it into
    features.2   Conv2d(64, 64)     becomes gs.nn.Conv2d(relu=True)
    features.3   ReLU               becomes Identity: positions, and with them the keys of the state dict, stay

A module changes its class, not its identity: parameters, hooks, and whatever refers to them know nothing of it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from gossamer.nn.fused import described, fused_parameters, up_name
from gossamer.nn.skip.conv2d import Conv2d, Skip, adopt, disown
from gossamer.nn.skip.linear import Linear
from gossamer.nn.skip.memory_order import reorder_
from gossamer.nn.skip.report import SkipReport
from gossamer.nn.skip.zeros import zeros_read
from gossamer.ops.skipping.refusals import check_options, why_dense

_log = logging.getLogger(__name__)

_OURS: dict[type[nn.Module], type[Conv2d] | type[Linear]] = {nn.Conv2d: Conv2d, nn.Linear: Linear}
_TORCHS: dict[type[nn.Module], type[nn.Module]] = {ours: torchs for torchs, ours in _OURS.items()}


def skip_zeros(
    model: nn.Module,
    fuse: bool = True,
    *,
    example_inputs: Any = None,
    skip: Skip = "auto",
    exclude: Iterable[str] = (),
    keep_packed: bool = False,
    channels_last: bool = False,
) -> SkipReport:
    """Let every Conv2d and Linear of a model skip zeros that it meets at run time. In place; numbers do not change.

    Parameters stay what they are, object, numbers, memory and all, so an optimizer made before goes on; keys of the
    state dict stay, so checkpoints fit both ways. `unskip_zeros` undoes all of it.

    Zeros are what it takes: behind ReLU or dropout there are some, behind SiLU, GELU or a norm there are none. Give
    `example_inputs` to know at once; otherwise the report knows once the model has run.

    Args:
        model: on any device; what cannot skip there, or now, is left, and the report says why.
        fuse: put an nn.ReLU that directly follows such a layer in an nn.Sequential into the layer, unless a hook or
            another place of the model would notice. The ReLU's place is taken by an nn.Identity. Give False where
            code reads what layers put out before their ReLU (perceptual losses, for example).
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments. The model runs once on it, in
            eval mode and before anything is changed, and `report.zeros` has the share of zeros that each layer reads.
        skip: as in `gossamer.nn.Conv2d`, for all that are converted.
        exclude: names of modules to leave, as in `model.named_modules()`.
        keep_packed: as in `gossamer.nn.Conv2d`, for all that are converted.
        channels_last: also store the weights of convolutions in the memory format channels_last, in which torch's own
            kernels, that go on beside the skipping ones, read them without a copy. Their strides change, as with
            `model.to(memory_format=torch.channels_last)`: make optimizers afterwards (a fused one that has state would
            go wrong), and expect `weight.view(...)` and safetensors to ask for `.contiguous()`.

    Returns:
        `SkipReport`: `converted`, `fused`, `left`, and, once the model has run, `stats()`. Its `str` is a table.

    Raises:
        TypeError: no module, or a flag that is no bool. ValueError: an unknown `skip`, or a name in `exclude` that the
        model does not have.

    Source: SparseTrain (PACT 2020): zeros of activations and of their gradients, found at run time; the choice per
    layer and pass is its combined scheme.

    >>> net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU())
    >>> report = skip_zeros(net)
    >>> report.converted, report.fused, report.left
    (('2',), ('3',), {'0': '3 input channels, fewer than 8'})
    >>> net[2], net[3]
    (Conv2d(16, 32, kernel_size=(3, 3), stride=(1, 1), skip='auto', relu=True), Identity())
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    check_options(skip, fuse=fuse, keep_packed=keep_packed, channels_last=channels_last)
    if isinstance(exclude, str):
        raise TypeError(f"exclude must be names, not one string: got {exclude!r}")
    names, every = set(exclude), list(model.named_modules(remove_duplicate=False))
    unknown = names - {name for name, _ in every}
    if unknown:
        raise ValueError(
            f"exclude must hold names of modules; the model has no {', '.join(map(repr, sorted(unknown)))}"
        )
    zeros = zeros_read(model, example_inputs) if example_inputs is not None else {}
    excluded = {id(module) for name, module in every if name in names}
    converted: dict[str, Conv2d | Linear] = {}
    left: dict[str, str] = {}
    for name, module in model.named_modules():
        if up_name(module) is not None:
            left[name] = f"{described(module)}: no kernel skips zeros in them"
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            reason = "excluded" if id(module) in excluded else _why_left(module)
            if reason is not None:
                left[name] = reason
                continue
            if type(module) in _OURS:
                module.__class__ = _OURS[type(module)]
                adopt(module, skip, name=name)
            assert isinstance(module, (Conv2d, Linear))
            module.skip, module.keep_packed = skip, keep_packed
            converted[name] = module
    fused = tuple(_fuse(model, converted)) if fuse else ()
    if channels_last:
        for name in (*converted, *left):
            _lay_out(model.get_submodule(name))
    report = SkipReport(converted, fused, left, zeros, _apart(model))
    _log.info("%s", report.summary())
    return report


def unskip_zeros(model: nn.Module) -> tuple[str, ...]:
    """Undo `skip_zeros`: torch's own classes again, the ReLUs back where they were, weights as they lay. In place.

    Returns:
        The names of the layers that changed.

    Raises:
        TypeError: no module. ValueError: a layer with `relu=True` that no nn.Identity follows, so that there is no
            place for its ReLU; nothing is changed.

    >>> net = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU())
    >>> _ = skip_zeros(net)
    >>> unskip_zeros(net), net[0], net[1]
    (('0',), Linear(in_features=16, out_features=16, bias=True), ReLU())
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    ours = {name: module for name, module in model.named_modules() if type(module) in _TORCHS}
    places = {}
    for parent, _, slot, before, after in _neighbours(model):
        if isinstance(before, (Conv2d, Linear)) and before.relu and type(after) is nn.Identity:
            places[id(before)] = (parent, slot)
    for name, module in ours.items():
        if module.relu and id(module) not in places:
            raise ValueError(
                f"model holds {name or 'itself'}, with relu=True and no nn.Identity after it to become a ReLU"
            )
    for module in ours.values():
        if module.relu:
            parent, slot = places[id(module)]
            relu = vars(parent._modules[slot]).get("relu") or nn.ReLU()
            parent._modules[slot] = relu.train(module.training)
        disown(module)
        module.__class__ = _TORCHS[type(module)]
    for module in model.modules():
        _lay_back(module)
    return tuple(ours)


def _why_left(module: nn.Module) -> str | None:
    """Why a layer stays torch's; None if it can skip. What only a call can tell, the call will find out."""
    kind = type(module)
    if kind in _TORCHS:
        return None
    if kind not in _OURS:
        if any(nn.parameter.is_lazy(tensor) for tensor in module.parameters(recurse=False)):
            return f"{kind.__name__} has no shape yet: run a batch first"
        if hasattr(module, "parametrizations"):
            return f"{kind.__name__}: its weight is computed by a parametrization"
        if isinstance(module, tuple(_OURS)):
            return f"{kind.__name__}: may do more than the class it is made from"
        return f"{kind.__name__}: only Conv2d and Linear can skip"
    if "forward" in vars(module) or "_conv_forward" in vars(module):
        return "its forward was replaced"
    assert isinstance(module, (nn.Conv2d, nn.Linear))
    with torch.autocast("cpu", enabled=False):
        return why_dense(module.weight, module.weight, module.bias, getattr(module, "groups", 1), "auto")


def _apart(model: nn.Module) -> str:
    """What a summary says of parameters that are in no layer of those that can skip, or be left."""
    experts = fused_parameters(model)
    if not experts:
        return ""
    return f"{experts:,} of {sum(each.numel() for each in model.parameters()):,} parameters are in fused experts"


def _neighbours(model: nn.Module) -> Iterator[tuple[nn.Sequential, str, str, nn.Module, nn.Module]]:
    """(sequential, its name, slot of the second, first, second) for modules that directly follow one another."""
    for name, parent in model.named_modules():
        if isinstance(parent, nn.Sequential) and type(parent).forward is nn.Sequential.forward:
            slots = list(parent._modules.items())
            for (_, before), (slot, after) in pairwise(slots):
                if before is not None and after is not None:
                    yield parent, name, slot, before, after


def _fuse(model: nn.Module, converted: dict[str, Conv2d | Linear]) -> Iterator[str]:
    ours = {id(module) for module in converted.values()}
    uses = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    for parent, name, slot, before, after in list(_neighbours(model)):
        if type(after) is not nn.ReLU or id(before) not in ours or uses[id(before)] > 1:
            continue
        # Hooks of the layer would see what comes after the ReLU; those of the ReLU would not run.
        if _hooked(before) or _hooked(after) or after._forward_pre_hooks:
            continue
        assert isinstance(before, (Conv2d, Linear))
        before.relu = True
        identity = nn.Identity().train(after.training)
        vars(identity)["relu"] = after  # for the way back; no child of the identity
        parent._modules[slot] = identity
        yield f"{name}.{slot}" if name else slot


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._backward_hooks or module._backward_pre_hooks)


def _lay_out(module: nn.Module) -> None:
    weight = getattr(module, "weight", None)
    if not isinstance(module, nn.Conv2d) or not isinstance(weight, nn.Parameter) or nn.parameter.is_lazy(weight):
        return
    if not weight.is_contiguous(memory_format=torch.channels_last):
        vars(module).setdefault("_strides_before", weight.stride())
        reorder_(weight, torch.empty_like(weight, device="meta", memory_format=torch.channels_last).stride())


def _lay_back(module: nn.Module) -> None:
    strides = vars(module).pop("_strides_before", None)
    weight = getattr(module, "weight", None)
    if strides is not None and isinstance(weight, nn.Parameter):
        reorder_(weight, strides)
