"""What all kinds of findings look at: the model, its data, one pass over it, and where time goes."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from gossamer.ops.paged.pool import PAGE
from gossamer.profile.batches import Batch
from gossamer.profile.times import MOST, Times, timed
from gossamer.profile.watch import Seen, observed
from gossamer.routing.stack import Stack

FEW = 8
"""Rows up to which a product waits for its weights: so many are decoded together at most."""
PREFIX = 512
"""Tokens before the token whose time is measured, at most."""


@dataclass(eq=False)
class Study:
    """A model and its data.

    Attributes:
        model: without wrappers, in eval mode. batches: what it reads.
        max_error: how far the output of a layer may move, as a share of its length, that leaves small inputs out.
        idle: the contribution of a layer to a token's state up to which the token does not need it.
        name, source: of the model and of its data on a command line; None where the user called Python.
    """

    model: nn.Module
    batches: list[Batch]
    max_error: float = 0.1
    idle: float = 0.1
    name: str | None = None
    source: str | None = None

    @cached_property
    def seen(self) -> Seen:
        """What a pass over all batches showed."""
        return observed(self.model, self.batches, PAGE)

    @cached_property
    def largest(self) -> Batch:
        """The batch on which passes are timed."""
        return max(self.batches, key=lambda batch: batch.examples if batch.ids is None else batch.ids.numel())

    @property
    def blocks(self) -> list[str]:
        """Names of the residual blocks of the model's stack."""
        if self.stack is None:
            return []
        return [f"{self.stack.place}.{at}".lstrip(".") for at in range(len(self.stack))]

    @cached_property
    def stack(self) -> Stack | None:
        """The residual blocks of the model; None where it has no list of them."""
        try:
            return Stack.of(self.model)
        except ValueError:
            return None

    @cached_property
    def times(self) -> Times:
        """Of a pass over the largest batch."""
        return timed(self.model, self.seen.order, lambda: self.largest.run(self.model), holding=self.blocks)

    @property
    def a_pass(self) -> str:
        """The base of what is said of a pass."""
        return f"a pass over {self.largest} in eager mode"

    @cached_property
    def is_decoder(self) -> bool:
        """Whether the model is a causal language model of transformers."""
        if not self.of_transformers:
            return False
        from gossamer.serving.checkpoints.decoder import check_decoder

        model: Any = self.model
        try:
            check_decoder(model.config, type(model).__name__)
        except ValueError:
            return False
        return model.get_output_embeddings() is not None

    @property
    def text(self) -> str | None:
        """The file of text that was read; None where there is none, or it holds token ids."""
        return None if self.source is None or self.source.endswith(".npy") else self.source

    @property
    def of_transformers(self) -> bool:
        loaded = sys.modules.get("transformers")
        return loaded is not None and isinstance(self.model, loaded.PreTrainedModel)

    @cached_property
    def decoding(self) -> Decoding:
        """The time of one token after a text; asked of decoders only."""
        batch = next(batch for batch in self.batches if batch.ids is not None)
        ids, mask = batch.ids, batch.mask
        assert ids is not None
        row = ids[:1] if mask is None else ids[:1, mask[0] != 0]
        longest = getattr(getattr(self.model, "config", None), "max_position_embeddings", None) or sys.maxsize
        length = min(row.shape[1], PREFIX, longest - MOST - 2)
        model: Any = self.model
        cache = model(input_ids=row[:, :length], use_cache=True).past_key_values
        token = row[:, -1:]
        times = timed(model, self.seen.order, lambda: model(input_ids=token, past_key_values=cache, use_cache=True))
        return Decoding(length, times)


@dataclass(frozen=True, eq=False)
class Decoding:
    """Attributes:
    length: tokens before the one that was timed. times: of its pass, with a cache.
    """

    length: int
    times: Times

    @property
    def base(self) -> str:
        return f"decoding a token after {self.length} others, one text at a time, in eager mode"


def patterns(names: list[str]) -> list[str]:
    """Names of layers with a star for their numbers, each once.

    >>> patterns(["layers.0.fc2", "layers.1.fc2", "head"])
    ['layers.*.fc2', 'head']
    """
    return list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.)", "*", name) for name in names))


def on_cpu(model: nn.Module) -> bool:
    return all(parameter.device == torch.device("cpu") for parameter in model.parameters())
