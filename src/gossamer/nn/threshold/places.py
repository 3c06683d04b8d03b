"""Where a model can leave activations out: the inputs of its linears and the gates of its gated blocks."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gossamer.nn.experts import why_not_fused
from gossamer.nn.fused import described, up_name
from gossamer.nn.skip.linear import Linear
from gossamer.nn.threshold.experts import POINTS, ThresholdExperts, ThresholdPoint, experts_of
from gossamer.nn.threshold.gated_feed_forward import GatedFeedForward
from gossamer.nn.threshold.linear import ThresholdLinear, by_input

_PLACES = (nn.Linear, GatedFeedForward, ThresholdPoint)
Layers = Iterable[str] | Callable[[str, nn.Module], bool] | None


@dataclass(frozen=True)
class Place:
    """One activation that a threshold applies to, and the bytes of weights that wait for it."""

    name: str
    module: nn.Linear | GatedFeedForward | ThresholdPoint
    bytes: int
    experts: ThresholdExperts | None = None

    @property
    def skippable(self) -> int:
        """Bytes of those that decoding can leave unread, as they lie now."""
        if isinstance(self.module, GatedFeedForward):
            down = self.module.down_proj
            return self.bytes if by_input(down) else self.bytes - _bytes(down)
        if self.experts is not None:
            return self.bytes if self.experts.by_input() else 0
        assert isinstance(self.module, nn.Linear)
        return self.bytes if by_input(self.module) else 0

    def hook(self, change: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
        """Show every such activation to `change`, and use what it returns instead if that is not None."""
        if isinstance(self.module, GatedFeedForward):
            return self.module.act_fn.register_forward_hook(lambda module, args, output: change(output))

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            changed = change(args[0] if args else kwargs["input"])
            return None if changed is None else ((changed, *args[1:]), {} if not args else kwargs)

        return self.module.register_forward_pre_hook(before, with_kwargs=True)


def places_of(model: nn.Module, layers: Layers) -> tuple[list[Place], dict[str, str]]:
    """The places of a model that `layers` names, and what stays dense with the reason.

    Raises:
        ValueError: a name in `layers` that no place has; no linear in the model.
    """
    gated = [module for module in model.modules() if isinstance(module, GatedFeedForward)]
    inside = {part for block in gated for part in (block.up_proj, block.down_proj)}
    wanted = _wanted(layers)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    shared = _shared(model)
    found: list[Place] = []
    left: dict[str, str] = {}
    for name, module in model.named_modules():
        if up_name(module) is not None and not isinstance(module, ThresholdExperts) and wanted(name, module):
            left[name] = f"{described(module)}: {why_not_fused(module) or 'they were not asked for'}"
        if module in inside or not isinstance(module, _PLACES) or not wanted(name, module):
            continue
        if isinstance(module, ThresholdPoint):
            experts = experts_of(model, name)
            assert experts is not None
            stack = experts.stacks()[POINTS.index(name.rpartition(".")[2])]
            found.append(Place(name, module, stack.numel() * stack.element_size(), experts))
            continue
        if isinstance(module, GatedFeedForward):
            found.append(Place(name, module, _bytes(module.up_proj) + _bytes(module.down_proj)))
        elif type(module) is Linear:
            left[name] = "it skips zeros (gs.nn.Linear); gs.nn.unskip_zeros first"
        elif type(module) not in (nn.Linear, ThresholdLinear):
            left[name] = f"a {type(module).__name__} may not compute what nn.Linear does"
        elif module is head and layers is None:
            left[name] = "the model's output layer; name it in layers to include it"
        elif not module.weight.is_floating_point() or module.weight.is_sparse:
            left[name] = f"its weight is {module.weight.dtype}, {module.weight.layout}"
        elif id(module.weight) in shared:
            left[name] = f"its weight is also used by {shared[id(module.weight)]!r}, which reads it by rows"
        else:
            found.append(Place(name, module, _bytes(module)))
    if not found:
        reasons = "".join(f"; {name!r} stays dense: {reason}" for name, reason in left.items())
        raise ValueError(f"model has no nn.Linear to threshold{' among layers' if layers is not None else ''}{reasons}")
    return found, left


def checked(model: nn.Module, layers: Layers) -> Layers:
    """`layers` in a form that can be read twice; refuses a name that belongs to nothing."""
    if layers is None or callable(layers):
        return layers
    if isinstance(layers, str):
        raise TypeError(f"layers must be a list of names, a function or None, got the string {layers!r}")
    patterns = list(layers)
    names = [name for name, module in model.named_modules() if isinstance(module, _PLACES)]
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"layers names {pattern!r}, but the model has only {names}")
    return patterns


def _wanted(layers: Layers) -> Callable[[str, nn.Module], bool]:
    if layers is None:
        return lambda name, module: True
    if callable(layers):
        return layers
    patterns = list(layers)
    return lambda name, module: any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _shared(model: nn.Module) -> dict[int, str]:
    """Weights that something other than a linear also uses, such as an embedding tied to the output layer."""
    return {
        id(parameter): name
        for name, module in model.named_modules()
        if not isinstance(module, nn.Linear)
        for parameter in module._parameters.values()
        if parameter is not None
    }


def _bytes(linear: nn.Module) -> int:
    weight = linear.get_parameter("weight")
    return weight.numel() * weight.element_size()
