"""`Radial`: a decoder of transformers whose tokens choose their layers.

    radial = Radial(model, mode="skip", kv="sparse")
    radial(input_ids=ids, labels=ids).loss          # every token runs what it chose
    radial.generate(ids, max_new_tokens=64)

The model stays what it was: its layers are asked to run some tokens during a call of Radial, and are themselves again
after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from gossamer.borrowed import borrowed
from gossamer.routing.call import first
from gossamer.routing.execute import DensePass, Pass, Run
from gossamer.routing.keys import POLICIES, KeyPolicy, Keys
from gossamer.routing.paged import PagedPass
from gossamer.routing.policies.hops import Hops
from gossamer.routing.policies.jumps import Jumps
from gossamer.routing.policies.policy import Policy
from gossamer.routing.stack import Stack, Unit
from gossamer.serving import hooks
from gossamer.serving.cache import SparseCache
from gossamer.serving.checkpoints.loading import check_decoder
from gossamer.serving.geometry import Geometry
from gossamer.serving.paged_cache import PagedCache
from gossamer.serving.stepping.turns import turns_of
from gossamer.wrappers import unwrap

Mode = Literal["sequential", "skip", "free"]
MODES: tuple[str, ...] = get_args(Mode)


class Radial(nn.Module):
    """A decoder whose tokens choose which layers they run.

    At first every token runs every layer: the numbers are those of the model. `distill` teaches the choice.

    With gradients on, a call is one of training: no cache, the model's own attention ("sdpa" or "eager"). Without, keys
    lie in pages, and what a token skips costs nothing.

    Args:
        model: a ...ForCausalLM of transformers; its modules stay as they are.
        mode: "sequential": all layers in order; "skip": any later one is next; "free": any one is.
        kv: what a token leaves in the layers that it skips: "sparse": nothing; "project": keys and values of the state
            with which it passes by; "propagate": the same, made later. "global_last": one key for all layers, that of
            the last one it ran: an experiment for inference, in which decoding differs from reading (`last_keys`).
        units: "block": a layer is run or skipped whole; "branch": its attention and its MLP each.
        policy: who decides; None: a router of `mode`.
        adapter: rank of what a token gets from a layer that it skips, W2 gelu(W1 h); 0: nothing.
        sink: so many tokens at the beginning of each text run every layer, at no cost that counts: many models keep in
            the state of the first token what all others look at, and layers seem idle that only made it. 0 where tokens
            hop freely.
        hops: how often the layers are offered: a token runs so many of them at most in mode "free", each again if it
            likes; None: as many as there are layers in mode "free", else 1.
        joint: the texts that generate together choose together, so that a batch skips weights too.

    Attributes:
        run: what the last pass did.

    Raises:
        ValueError: an argument, or a model that is not supported. Nothing was changed then.

    Source: after Radial Networks (arXiv 2404.04900); adapters after Informed Routing (arXiv 2510.13831).

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> config = LlamaConfig(vocab_size=50, hidden_size=64, intermediate_size=64, num_hidden_layers=3,
    ...                      num_attention_heads=2)
    >>> radial = Radial(LlamaForCausalLM(config).eval())
    >>> with torch.no_grad():
    ...     logits = radial(torch.tensor([[1, 2, 3]])).logits
    >>> radial.run.ran
    [3, 3, 3]
    """

    run: Run | None = None

    @torch.inference_mode(False)  # what is made there serves training too
    def __init__(
        self, model: Any, mode: Mode = "skip", kv: KeyPolicy = "sparse", *, units: Literal["block", "branch"] = "block",
        policy: Policy | None = None, adapter: int = 0, sink: int = 1,
        hops: int | None = None, joint: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        for name, value, known in (
            ("mode", mode, MODES), ("kv", kv, POLICIES), ("units", units, ("block", "branch")),
        ):  # fmt: skip
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if isinstance(adapter, bool) or not isinstance(adapter, int) or adapter < 0:
            raise ValueError(f"adapter must be a rank of at least 0, got {adapter!r}")
        if isinstance(sink, bool) or not isinstance(sink, int) or sink < 0:
            raise ValueError(f"sink must be a number of tokens of at least 0, got {sink!r}")
        if isinstance(model, Radial):
            raise ValueError("model is routed already; give the model in it, radial.model")
        model = unwrap(model) if isinstance(model, nn.Module) else model
        if not isinstance(model, nn.Module) or not hasattr(model, "config"):
            raise ValueError(f"model must be a decoder of transformers, got {type(model).__name__}")
        check_decoder(model.config, type(model).__name__)
        stack = Stack.of(model)
        self.mode, self.kv, self.kind, self.stack = mode, kv, units, stack
        once: list[Unit] = stack.units(units)
        self.hops = _hops(hops, mode, units, len(stack.layers))
        self.units = once * self.hops
        self.sink = 0 if self.hops > 1 else sink
        self.slots = list(range(len(self.units))) if self.hops > 1 else [unit.layer for unit in once]
        self.geometry = Geometry.of(model.config).repeated(self.hops)
        if kv == "global_last" and len({(each.key_heads, each.width) for each in self.geometry.layers}) > 1:
            raise ValueError('kv="global_last" needs layers whose keys are alike, expected kv="sparse"')
        self._attending = hooks.Attending(model)
        self._results = _results(model, once) * self.hops
        self.model = cast(Any, model)
        like = self.model.get_input_embeddings().weight
        if policy is None:
            if mode == "free":
                policy = Hops(len(stack.layers), self.hops, stack.width, joint=joint)
            else:
                policy = Jumps(len(self.units), stack.width, mode=mode, joint=joint)
            policy.to(like.device)
        elif policy.units != len(self.units) or policy.width != stack.width:
            raise ValueError(
                f"policy decides about {policy.units} units of width {policy.width}, expected {len(self.units)} of "
                f"width {stack.width}"
            )
        self.policy = policy
        self.adapters = _adapters(len(self.units), stack.width, adapter, like) if adapter else None

    @torch.compiler.disable  # who runs what is known in the middle of it: layers run as they are, no part of a graph
    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None,
        past_key_values: Any = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None,
        use_cache: bool | None = None, logits_to_keep: int | Tensor = 0, **keywords: Any,
    ) -> Any:  # fmt: skip
        """As the model's own. `run` says afterwards who ran what.

        Raises:
            ValueError: a cache that holds no pages, or one while gradients are on.
        """
        given = {
            "input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids,
            "inputs_embeds": inputs_embeds, "labels": labels, "logits_to_keep": logits_to_keep, **keywords,
        }  # fmt: skip
        given = {name: value for name, value in given.items() if value is not None}
        if torch.is_grad_enabled():
            if past_key_values is not None or use_cache:
                raise ValueError("past_key_values is for inference: call under torch.no_grad()")
            if self.kv == "global_last":
                raise ValueError('kv="global_last" is for inference: call under torch.no_grad()')
            dense = DensePass(
                self.units, self.policy, self._results, self.adapters, self.sink, sparse=self.kv == "sparse",
                pad=attention_mask,
            )  # fmt: skip
            with turns_of(self.model), self._running(dense):
                return self.model(**given, use_cache=False)
        tokens = input_ids if input_ids is not None else inputs_embeds
        once = tokens is not None and not use_cache  # memory for this pass is enough
        cache = self._cache(past_key_values, tokens.shape[1] if once else None)  # type: ignore[union-attr]
        with self._attending(), self._running(self._paged(cache)):
            out = self.model(**given, past_key_values=cache, use_cache=True)
        if past_key_values is None and not use_cache and not isinstance(out, tuple):
            out.past_key_values = None
        return out

    @torch.no_grad()
    def generate(self, *args: Any, **keywords: Any) -> Any:
        """As the model's own, with a `gossamer.serving.SparseCache` unless one is given."""
        cache = self._cache(keywords.pop("past_key_values", None))
        with self._attending(), self._running(self._paged(cache)):
            return self.model.generate(*args, past_key_values=cache, **keywords)

    def _cache(self, given: Any, capacity: int | None = None) -> PagedCache:
        if given is None:
            return SparseCache(self.geometry, capacity=capacity or None)
        if not isinstance(given, PagedCache):
            raise ValueError(
                f"past_key_values must be a gossamer.serving.SparseCache, which knows what each layer holds, got "
                f"{type(given).__name__}"
            )
        return given

    def _paged(self, cache: PagedCache) -> PagedPass:
        keys = Keys(self.kv, self.units, self.slots)
        return PagedPass(self.units, self.policy, self._results, self.adapters, self.sink, keys=keys, cache=cache)

    @contextmanager
    def _running(self, one: Pass) -> Iterator[None]:
        """Inside, each unit's module runs for who chose it."""
        once = self.units[: len(self.units) // self.hops]
        forwards = [unit.module.forward for unit in once]
        runs: list[Callable[..., Any]]
        if self.hops == 1:
            runs = [partial(one, at, forward) for at, forward in enumerate(forwards)]
        else:
            runs = [partial(self._hop, one, forwards), *[_passed_by] * (len(once) - 1)]
        try:
            with borrowed(zip((unit.module for unit in once), runs, strict=True)):
                yield
        except BaseException:
            one.failed()
            raise
        finally:
            self.run = one.run

    def _hop(self, one: Pass, forwards: list[Any], states: Tensor, *args: Any, **keywords: Any) -> Any:
        """The first layer's forward where layers are offered several times: all of them, as often as tokens wish."""
        out: Any = states
        for at in range(len(self.units)):
            out = one(at, forwards[at % len(forwards)], first(out), *args, **keywords)
            assert one.run is not None
            if one.run.walk.finished:
                break
        return out

    # What an engine, or transformers' tools, ask a decoder for.

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def generation_config(self) -> Any:
        return self.model.generation_config

    def get_input_embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.model.get_input_embeddings()
        return embeddings

    def get_output_embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.model.get_output_embeddings()
        return embeddings

    def set_attn_implementation(self, name: str) -> None:
        self.model.set_attn_implementation(name)


def _hops(given: int | None, mode: str, units: str, layers: int) -> int:
    if given is None:
        return layers if mode == "free" else 1
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise ValueError(f"hops must be an integer of at least 1, got {given!r}")
    if given > 1 and (mode != "free" or units != "block"):
        raise ValueError(f'hops={given} is for mode="free" and units="block", got mode={mode!r} and units={units!r}')
    return given


def _passed_by(states: Tensor, *args: Any, **keywords: Any) -> Tensor:
    """The forward of layers whose work is done in the first one's."""
    return states


def _adapters(units: int, width: int, rank: int, like: Tensor) -> nn.ModuleList:
    """Two small products for each unit, the second zero at first: nothing is added before training."""

    def one() -> nn.Sequential:
        first, last = (
            nn.Linear(*sizes, bias=False, device="cpu", dtype=torch.float32) for sizes in ((width, rank), (rank, width))
        )
        nn.init.zeros_(last.weight)
        return nn.Sequential(first, nn.GELU(), last)

    return nn.ModuleList(one() for _ in range(units)).to(device=like.device, dtype=like.dtype)


def _results(model: Any, units: list[Unit]) -> list[int | None]:
    """What each unit's module returns, seen in a pass of two tokens: states alone (None), or with other things.

    Raises:
        ValueError: the modules are not called one after the other, each once.
    """
    seen: list[tuple[int, int | None]] = []

    def note(at: int) -> Any:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            seen.append((at, None if isinstance(out, Tensor) else len(out)))

        return hook

    handles = [unit.module.register_forward_hook(note(at)) for at, unit in enumerate(units)]
    training = [module for module in model.modules() if module.training]
    device = model.get_input_embeddings().weight.device
    try:
        model.eval()
        with torch.no_grad():
            model(input_ids=torch.zeros(1, 2, dtype=torch.int64, device=device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True
    if [at for at, _ in seen] != list(range(len(units))):
        raise ValueError(
            f"{type(model).__name__} ran its {len(units)} units in the order {[at for at, _ in seen]}, expected each "
            "once and one after the other"
        )
    return [count for _, count in seen]
