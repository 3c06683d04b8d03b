"""What do the layers of a model contribute? Measured for every token of some batches.

    profile = gs.routing.profile(model, batches)
    print(profile)                        # a line for each layer
    profile.order()[:3]                   # the layers that block influence would remove first
    profile.to_html("profile.html")

A residual block adds f(h) to the state h of a token. How much of the new state is its work says how little would be
lost if the token skipped it: ||f(h)|| / ||h + f(h)||.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.nn.evaluating import evaluating
from gossamer.routing.profiling.profiled import Profile
from gossamer.routing.profiling.values import EXACT, Values
from gossamer.routing.stack import Kind, Layer, Stack
from gossamer.wrappers import seen_through

Forward = Callable[[nn.Module, Any], Any]


def profile(
    model: nn.Module, batches: Any, *, layers: str | None = None, forward: Forward | None = None, exact: int = EXACT
) -> Profile:
    """Measure for every layer and token how much the layer, its attention and its MLP contribute to the state.

    The model is run as it is used (eval mode, no gradients) and is left as it was. Memory does not grow with the number
    of batches.

    Args:
        model: a decoder or an encoder of transformers, or a module with one list of residual blocks, whose states are
            [batch, tokens, width] or [tokens, width].
        batches: an iterable of batches, or one of them. A batch is a tensor of token ids, pictures or states; a mapping
            of keyword arguments, as tokenizers return it, whose `attention_mask` [batch, tokens] leaves padding out; or
            a tuple whose first is one of these, as data loaders return it with labels. Moved to the model's device.
        layers: the name of the list of residual blocks; None: the only one that it can be.
        forward: how to call the model on a batch.
        exact: so many tokens' numbers are kept as they are; of more, quantiles are up to 0.4 % too large.

    Returns:
        a `Profile`. Attention and MLP are in it where all layers' are known.

    Raises:
        TypeError: an argument of another type. ValueError: no stack of residual blocks; empty data; a batch that the
            model does not take; states that are NaN or infinite; a layer that runs other than once in a pass, or whose
            result has not the shape of its states. It is said which layer, and in which batch.

    Norms are computed in float32, for models in float64 in float64. A branch's contribution is the difference that it
    makes to the state, after norms that follow it and, where norms come last (BERT), before the norm of the sum. In
    half precision that difference holds the rounding of the state.

    Source: Dotzel et al., "Radial Networks" (arXiv 2404.04900), for the ratio; Men et al., "ShortGPT" (arXiv
    2403.03853), section 3, for block influence.

    >>> layers = (nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(4))
    >>> found = profile(nn.Sequential(*layers), [torch.randn(2, 8, 16) for _ in range(3)])
    >>> found.tokens, found.kinds, len(found.contribution["mlp"])
    (48, ('block', 'attention', 'mlp'), 4)
    """
    if isinstance(exact, bool) or not isinstance(exact, int) or exact < 0:
        raise ValueError(f"exact must be a number of tokens of at least 0, got {exact!r}")
    stack = Stack.of(model, layers)
    known = all(layer.form != "closed" for layer in stack.parts)
    kinds: tuple[Kind, ...] = ("block", "attention", "mlp") if known else ("block",)
    watch = _Watch(stack, kinds, exact)
    with evaluating(stack.model), seen_through(stack.model), ExitStack() as hooks:
        for at, layer in enumerate(stack.parts):
            for handle in watch.hooks(at, layer):
                hooks.callback(handle.remove)
        for at, batch in enumerate(_each(batches)):
            try:
                watch.begin(_mask_of(batch))
                _run(stack.model, batch, forward)
                watch.end()
            except _RefusedError as error:
                raise ValueError(f"batch {at}: {error}") from None
            except (MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:
                raise ValueError(
                    f"batches: {type(stack.model).__name__} does not take batch {at}, a {_said(batch)} "
                    f"({type(error).__name__}: {error}); give forward=(model, batch) -> ... to call it otherwise"
                ) from error
    return watch.result()


class _RefusedError(Exception):
    """What is wrong with a batch, or with what layers made of it."""


def _each(batches: Any) -> Iterable[Any]:
    if isinstance(batches, Tensor | Mapping):
        return (batches,)
    if isinstance(batches, str) or not isinstance(batches, Iterable):
        raise TypeError(f"batches must be an iterable of batches, or one batch, got {type(batches).__name__}")
    return batches


def _said(batch: Any) -> str:
    if isinstance(batch, Tensor):
        return f"tensor {list(batch.shape)} of {batch.dtype}"
    return f"mapping with {', '.join(batch)}" if isinstance(batch, Mapping) else type(batch).__name__


def _given(batch: Any) -> Any:
    """What the model gets of a batch."""
    return batch[0] if isinstance(batch, tuple | list) and batch else batch


def _mask_of(batch: Any) -> Tensor | None:
    """Which tokens are none of padding, bool[batch, tokens]; None: all."""
    given = _given(batch)
    mask = given.get("attention_mask") if isinstance(given, Mapping) else None
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        shape = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise _RefusedError(f"attention_mask must be a tensor [batch, tokens], 0 for padding, got {shape}")
    return mask != 0


def _run(model: nn.Module, batch: Any, forward: Forward | None) -> None:
    if forward is not None:
        forward(model, batch)
        return
    given = _given(batch)
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    if isinstance(given, Tensor):
        model(given.to(device), **cheap(model))
    elif isinstance(given, Mapping):
        moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in given.items()}
        model(**cheap(model, moved) | moved)
    else:
        raise _RefusedError(f"a batch must be a tensor, a mapping or a tuple that begins with one, got {_said(batch)}")


def cheap(model: nn.Module, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """No caches, and no logits but the last, where the model can be asked for that."""
    wanted: dict[str, Any] = {"use_cache": False}
    if given is None or "labels" not in given:
        wanted["logits_to_keep"] = 1
    taken = inspect.signature(model.forward).parameters
    return {name: value for name, value in wanted.items() if name in taken}


class _Watch:
    """Sees the states of all layers of a pass, and adds up what they say."""

    def __init__(self, stack: Stack, kinds: tuple[Kind, ...], exact: int) -> None:
        self.stack, self.kinds = stack, kinds
        count = len(stack)
        self.contribution = {kind: [Values(exact) for _ in range(count)] for kind in kinds}
        self.growth = {kind: [Values(exact) for _ in range(count)] for kind in kinds}
        self.influence = [0.0] * count
        self.tokens = 0

    def begin(self, real: Tensor | None) -> None:
        """A pass over a batch; `real` [batch, tokens] says what is no padding."""
        self.real = real
        self.calls = [0] * len(self.stack)
        self.states: list[dict[str, Tensor]] = [{} for _ in self.calls]
        self.norms: dict[Kind, dict[int, Tensor]] = {kind: {} for kind in self.kinds}
        self.turns: dict[int, Tensor] = {}

    def hooks(self, at: int, layer: Layer) -> Iterable[Any]:
        """Register what sees the states of a layer."""

        def enters(module: nn.Module, name: str) -> Any:
            return module.register_forward_pre_hook(partial(self._enter, at, name), with_kwargs=True)

        def leaves(module: nn.Module, name: str) -> Any:
            return module.register_forward_hook(partial(self._leave, at, name))

        yield enters(layer.module, "before")
        if len(self.kinds) > 1:
            if layer.sums is not None:
                first, second = layer.sums
                yield from (enters(first, "attended"), leaves(first, "between"), enters(second, "summed"))
            elif layer.form == "parallel":
                assert layer.attention is not None and layer.mlp is not None
                yield from (leaves(layer.attention, "attention"), leaves(layer.mlp, "mlp"))
            else:
                between = layer.norm if layer.norm is not None else layer.mlp
                assert between is not None
                yield enters(between, "attended")
        yield leaves(layer.module, "after")

    def _enter(self, at: int, name: str, module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self._see(
            at, name, module, args[0] if args else keywords.get("hidden_states", next(iter(keywords.values()), None))
        )

    def _leave(self, at: int, name: str, module: nn.Module, args: Any, out: Any) -> None:
        self._see(at, name, module, out[0] if isinstance(out, tuple | list) and out else out)
        if name == "after":
            self._measure(at)

    def _see(self, at: int, name: str, module: nn.Module, states: Any) -> None:
        """Copy the states of real tokens: what a model adds to in place was seen as it was."""
        who = f"layer {at} ({type(self.stack.layers[at]).__name__})"
        if not isinstance(states, Tensor) or not states.is_floating_point() or states.is_nested:
            raise _RefusedError(
                f"{who}: {type(module).__name__} has no tensor of states, expected [batch, tokens, width]"
            )
        if states.dim() not in (2, 3):
            raise _RefusedError(
                f"{who} has states {list(states.shape)}, expected [batch, tokens, width] or [tokens, width]"
            )
        flat = states.flatten(0, -2)
        wide = torch.float64 if states.dtype == torch.float64 else torch.float32
        if self.real is None:
            kept = flat.to(wide, copy=True)
        else:
            if flat.shape[0] != self.real.numel() or (states.dim() == 3 and states.shape[:2] != self.real.shape):
                raise _RefusedError(f"{who} has states {list(states.shape)} for attention_mask {list(self.real.shape)}")
            kept = flat[self.real.flatten().to(flat.device)].to(wide)
        if name == "before":
            self.calls[at] += 1
        elif kept.shape != self.states[at]["before"].shape:
            shapes = f"{list(self.states[at]['before'].shape)} and then {list(kept.shape)}"
            raise _RefusedError(f"{who} has states {shapes}, expected a residual block, which keeps their shape")
        self.states[at][name] = kept

    def _measure(self, at: int) -> None:
        """Norms of the layer's states, contributions and sums, each [3, tokens]."""
        states, self.states[at] = self.states[at], {}
        before, after = states["before"], states["after"]
        pairs: dict[Kind, tuple[Tensor, Tensor, Tensor]] = {"block": (before, after - before, after)}
        if len(self.kinds) > 1:
            try:
                pairs |= _branches(states)
            except KeyError as error:
                name = type(self.stack.layers[at]).__name__
                raise _RefusedError(f"layer {at} ({name}) did not run the module that shows {error}") from None
        for kind, three in pairs.items():
            self.norms[kind][at] = torch.stack([each.norm(dim=-1) for each in three])
        # 1 - cos as half of the squared distance of the directions: exact where they are almost the same.
        first, last = (nn.functional.normalize(each, dim=-1, eps=1e-30) for each in (before, after))
        self.turns[at] = (first - last).square().sum(-1) / 2

    def end(self) -> None:
        """Take over what the pass has shown.

        Raises:
            _RefusedError: a layer ran other than once, or there is a number that is not finite.
        """
        for at, calls in enumerate(self.calls):
            if calls != 1:
                name = type(self.stack.layers[at]).__name__
                raise _RefusedError(f"layer {at} ({name}) ran {calls} times in a pass, expected once")
        order = range(len(self.stack))
        turns = torch.stack([self.turns[at] for at in order]).double().cpu()
        for kind, found in self.norms.items():
            norms = torch.stack([found[at] for at in order]).double().cpu()
            self._check(kind, norms)
            for at, (h, f, s) in enumerate(norms):
                self.contribution[kind][at].add(_ratio(f, s))
                self.growth[kind][at].add(_ratio(f, h))
                if kind == "block":
                    # A state of zeros has no direction: between it and another one cos is 0.
                    turns[at][(h == 0) != (s == 0)] = 1
        self.tokens += turns.shape[1]
        for at, turn in enumerate(turns.sum(1).tolist()):
            self.influence[at] += turn

    def _check(self, kind: Kind, norms: Tensor) -> None:
        wrong = (~norms.isfinite()).any(1)
        if bool(wrong.any()):
            at = int(wrong.any(1).nonzero()[0])
            raise _RefusedError(
                f"{int(wrong[at].sum())} of {wrong.shape[1]} tokens have NaN or infinite states in layer {at} "
                f"({type(self.stack.layers[at]).__name__}, {kind})"
            )

    def result(self) -> Profile:
        if not self.tokens:
            raise ValueError("batches is empty: there was no token to look at")
        return Profile(
            model=type(self.stack.model).__name__,
            tokens=self.tokens,
            contribution={kind: tuple(each.spread() for each in some) for kind, some in self.contribution.items()},
            growth={kind: tuple(each.spread() for each in some) for kind, some in self.growth.items()},
            influence=tuple(turn / self.tokens for turn in self.influence),
            values={kind: tuple(some) for kind, some in self.contribution.items()},
        )


def _branches(states: dict[str, Tensor]) -> dict[Kind, tuple[Tensor, Tensor, Tensor]]:
    """For attention and MLP: the state before, the contribution, their sum."""
    before = states["before"]
    if "mlp" in states:
        f, g = states["attention"], states["mlp"]
        return {"attention": (before, f, before + f), "mlp": (before, g, before + g)}
    attended = states["attended"]
    between = states.get("between", attended)
    summed = states["summed"] if "between" in states else states["after"]
    return {"attention": (before, attended - before, attended), "mlp": (between, summed - between, summed)}


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole; 0 where both are."""
    return torch.where(part == 0, 0.0, part / whole)
