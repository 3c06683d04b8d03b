"""What a token costs: multiply-adds of the units that it runs, of routers, adapters and keys.

Counted are products with matrices and attention, as torch's flop counter does (it counts two FLOPs for each); norms,
activations and positions are left out. The whole of it, 1, is the stack with every unit run: embeddings and head come
on top and are the same whatever is routed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.routing.execute import Run
from gossamer.routing.keys import KeyPolicy
from gossamer.routing.policies.hops import Hops
from gossamer.routing.policies.policy import Policy
from gossamer.routing.radial import Radial
from gossamer.routing.stack import Stack, Unit, text_config


@dataclass(frozen=True)
class Costs:
    """Multiply-adds per token.

    Attributes:
        linears: of each unit's matrices. pairs: of its attention, per key that a token sees. windows: how many keys it
            sees there at most; None: all.
        projections: of a unit's keys and values alone. adapters: of what a token gets instead of a unit.
        decision: of one question to the policy. head: of the model's head, which no budget counts.
        most: of a token that runs all it can, which is the base network's, or that of all hops.
        context: keys that a token sees, in the mean, where all tokens run a unit.
        kv: what a skipped unit's keys cost: "sparse": nothing, and others see fewer; else their projections.
    """

    linears: tuple[int, ...]
    pairs: tuple[int, ...]
    windows: tuple[int | None, ...]
    projections: tuple[int, ...]
    adapters: tuple[int, ...]
    decision: int
    head: int
    most: float
    context: float
    kv: KeyPolicy = "sparse"

    @classmethod
    def of(
        cls, stack: Stack, units: Sequence[Unit], *, context: float, policy: Policy | None = None,
        kv: KeyPolicy = "sparse", adapters: nn.ModuleList | None = None,
    ) -> Costs:  # fmt: skip
        """Costs of the units of a stack.

        Args:
            context: keys that a token sees, in the mean: (n + 1) / 2 for a text of n tokens that is read at once.
            policy: who decides; None: nobody, at no cost.

        Raises:
            ValueError: context below 1; layers of experts, of which a token runs some; attention of unknown size.
        """
        if not (isinstance(context, (int, float)) and math.isfinite(context) and context >= 1):
            raise ValueError(f"context must be a number of at least 1, got {context!r}")
        if kv == "global_last":
            raise ValueError('kv="global_last" is an experiment whose multiply-adds are not counted')
        sizes = [_attention(stack, unit) for unit in units]
        linears = tuple(_matrices(unit.module) for unit in units)
        pairs = tuple(pair for pair, _, _ in sizes)
        windows = tuple(window for _, _, window in sizes)
        once = sum(
            linear + pair * min(context, window or context)
            for linear, pair, window in zip(linears, pairs, windows, strict=True)
        )
        extra = [0] * len(units) if adapters is None else [_matrices(each) for each in adapters]
        head = getattr(stack.model, "get_output_embeddings", lambda: None)()
        return cls(
            linears, pairs, windows, tuple(projection for _, projection, _ in sizes), tuple(extra),
            0 if policy is None else policy.macs(), 0 if head is None else head.weight.numel(),
            once / (policy.layers if isinstance(policy, Hops) else 1), context, kv,
        )  # fmt: skip

    @classmethod
    def of_radial(cls, radial: Radial, context: float) -> Costs:
        """Costs of a model as it is routed."""
        return cls.of(
            radial.stack, radial.units, context=context, policy=radial.policy, kv=radial.kv, adapters=radial.adapters
        )

    def per_token(self, shares: Tensor, decisions: Tensor | float) -> Tensor:
        """Multiply-adds of a token when units are run in these shares.

        Args:
            shares: float[units] in [0, 1]; gradients go through.
            decisions: how often a token asks.
        """
        contexts = [min(self.context, window or self.context) for window in self.windows]
        linears, pairs, most, projections, adapters = (
            torch.tensor(each, dtype=shares.dtype, device=shares.device)
            for each in (self.linears, self.pairs, contexts, self.projections, self.adapters)
        )
        seen = most * shares if self.kv == "sparse" else most
        run = shares * (linears + pairs * seen)
        passed = (1 - shares) * (adapters if self.kv == "sparse" else adapters + projections)
        return (run + passed).sum() + self.decision * decisions

    def share(self, shares: Tensor, decisions: Tensor | float) -> Tensor:
        """The same as a share of the most."""
        return self.per_token(shares, decisions) / self.most


@dataclass(eq=False)
class Counter:
    """Adds up what passes of one batch of texts cost, a prompt and then token by token or each a prompt of its own.

    Attributes:
        costs: of the model. tokens, decisions, macs: so far. ran: int[units]: tokens that ran each unit.
    """

    costs: Costs
    tokens: int = 0
    decisions: int = 0
    macs: float = 0.0
    ran: list[int] = field(default_factory=list)
    _held: list[Tensor] = field(default_factory=list)  # for each unit the keys of each text

    def add(self, run: Run) -> None:
        """One more pass.

        Raises:
            ValueError: it goes on with other texts than those of the pass before, whose keys are not known.
        """
        costs, tokens = self.costs, run.tokens
        starts = tokens.position.new_zeros(tokens.texts).scatter_reduce(
            0, tokens.text, tokens.position, "amin", include_self=False
        )
        fresh = not bool(starts.any())
        if fresh:
            self._held = [torch.zeros_like(starts) for _ in costs.linears]
        elif not self._held or len(self._held[0]) != tokens.texts:
            raise ValueError(f"a pass goes on with {tokens.texts} texts, whose prompts were not counted before it")
        self.ran = self.ran or [0] * len(costs.linears)
        for unit, rows in enumerate(run.rows):
            rows = torch.ones_like(tokens.text, dtype=torch.bool) if rows is None else rows
            count = int(rows.sum())
            self.ran[unit] += count
            self.macs += count * costs.linears[unit] + (len(tokens) - count) * costs.adapters[unit]
            if costs.pairs[unit]:
                self.macs += costs.pairs[unit] * self._keys(unit, rows, run)
            if costs.kv != "sparse":
                self.macs += (len(tokens) - count) * costs.projections[unit]
        self.tokens += len(tokens)
        self.decisions += run.walk.decisions
        self.macs += run.walk.decisions * costs.decision

    def _keys(self, unit: int, rows: Tensor, run: Run) -> int:
        """Keys that the tokens which run a unit see, all together."""
        tokens, held = run.tokens, self._held[unit]
        keep = rows if self.costs.kv == "sparse" else torch.ones_like(rows)
        upto = keep.long().cumsum(0)
        each = torch.zeros_like(held).index_add(0, tokens.text, keep.long())
        before = each.cumsum(0) - each
        seen = (upto - before[tokens.text] + held[tokens.text])[rows]
        held += each
        window = self.costs.windows[unit]
        return int((seen if window is None else seen.clamp(max=window)).sum())

    @property
    def share(self) -> float:
        """What a token cost in the mean, as a share of the most it could at the costs' context."""
        return self.macs / max(self.tokens, 1) / self.costs.most


def _matrices(module: nn.Module) -> int:
    """Elements of all matrices that states are multiplied by."""
    total = 0
    for name, each in module.named_modules():
        if isinstance(each, nn.Embedding):
            continue
        for parameter in each.parameters(recurse=False):
            if parameter.dim() > 2:
                raise ValueError(
                    f"{type(module).__name__} has {name or type(each).__name__} with parameters "
                    f"{list(parameter.shape)}, of which a token uses some; expected matrices"
                )
            total += parameter.numel() if parameter.dim() == 2 else 0
    return total


def _attention(stack: Stack, unit: Unit) -> tuple[int, int, int | None]:
    """Of a unit: multiply-adds per key, those of the projections to keys and values, and its window."""
    if unit.kind == "mlp":
        return 0, 0, None
    config: Any = text_config(stack.model)
    heads = getattr(config, "num_attention_heads", None)
    if heads:
        width = config.hidden_size
        each = getattr(config, "head_dim", None) or width // heads
        keys = getattr(config, "num_key_value_heads", None) or heads
        kinds = getattr(config, "layer_types", None)
        slides = kinds is None or kinds[unit.layer] == "sliding_attention"
        window = getattr(config, "sliding_window", None) if slides else None
        if getattr(config, "use_sliding_window", True) is False:
            window = None
        return 2 * heads * each, 2 * keys * each * width, window
    attention = stack.parts[unit.layer].attention
    if attention is None:
        return 0, 0, None
    width = getattr(attention, "embed_dim", None)
    if not isinstance(width, int):
        raise ValueError(
            f"{type(attention).__name__} says nowhere how wide its heads are; expected config.num_attention_heads or "
            "an attribute embed_dim"
        )
    return 2 * width, 2 * width * width, None
