"""Given texts, one token at a time behind a prompt that is read once: what a model says of each, however it attends.

    texts = Texts(model, [Text(tokens, 7936)], sparsity)
    (scores,) = texts.decode(Sparsity(token_budget=512))

Each way to attend works on forks of the same pages. What they keep serves several rankings: sketches, and the extremes
of each key, of which those of longer stretches are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gossamer.ops.paged.pool import PagePool
from gossamer.serving.geometry import Geometry
from gossamer.serving.paging.requests import Request
from gossamer.serving.paging.store import Store, most_pages, views
from gossamer.serving.sparsity import Sparsity
from gossamer.serving.tally import Tally

if TYPE_CHECKING:
    from gossamer.serving.packed import PackedCache

CHUNK = 512


@dataclass(frozen=True, eq=False)
class Text:
    """Tokens, of which the first `context`, whole pages, are a prompt; each of the others but the first is foretold."""

    tokens: list[int]
    context: int

    @property
    def fed(self) -> list[int]:
        """The tokens that are decoded."""
        return self.tokens[self.context : -1]


@dataclass(frozen=True, eq=False)
class Scores:
    """Of each token behind the prompt but the first: its log-probability, float32, and whether it was the likeliest."""

    logprobs: Tensor
    hits: Tensor


class Texts:
    """Texts whose prompts lie in pages.

    Args:
        model: a decoder of transformers. static: as all that will be decoded has it, with its pattern, sink
            and local: which heads stream decides what prompts are read with.
    """

    def __init__(self, model: Any, texts: Sequence[Text], static: Sparsity) -> None:
        from gossamer.serving.hooks import Attending

        page = static.page
        if wrong := [text.context for text in texts if text.context % page]:
            raise ValueError(f"context must be a multiple of the page of {page} tokens, got {wrong[0]}")
        self.model, self.texts, self.attending = model, texts, Attending(model)
        # certify: extremes beside sketches. What is decoded says for itself what it does with them.
        kept = replace(static, token_budget=3 * page, score="keys", certify=True, stretch=1)
        self.geometry = Geometry.of(model.config)
        parts = kept.parts(self.geometry)
        pages = {
            view: sum(most_pages(view, len(text.tokens), CHUNK, page) - (-len(text.fed) // page) + 1 for text in texts)
            for view in views(parts)
        }
        self.store = Store(self.geometry, kept, kept.stored_for(model.dtype), parts, pages)
        self.fine = [list(pools) for pools in self.store.pools]
        self.requests = [self._read(text, kept) for text in texts]

    def _read(self, text: Text, sparsity: Sparsity) -> Request:
        from gossamer.serving.packed import PackedCache

        request, cache = self.store.open(), PackedCache(self.geometry, sparsity, self.store)
        for first in range(0, text.context, CHUNK):
            tokens = text.tokens[first : min(first + CHUNK, text.context)]
            step = self.store.extend([request], [len(tokens)])
            self._pass(cache, step, tokens, list(range(first, first + len(tokens))), keep=1)
        return request

    def _pass(self, cache: PackedCache, step: Any, tokens: list[int], places: list[int], keep: int = 0) -> Tensor:
        """Logits [tokens, vocabulary], of the last `keep` if given."""
        cache.begin(step)
        with self.attending():
            logits: Tensor = self.model(
                input_ids=torch.tensor([tokens]), position_ids=torch.tensor([places]), past_key_values=cache,
                use_cache=True, logits_to_keep=keep,
            ).logits[0]  # fmt: skip
        self.store.trim(step.requests)
        return logits

    @torch.no_grad()
    def decode(self, sparsity: Sparsity) -> tuple[list[Scores], Tally]:
        """What the model says of each text if it attends so while decoding, and what was read for it."""
        from gossamer.serving.packed import PackedCache

        self.store.sparsity = sparsity
        for layer, pools in enumerate(self.fine):
            self.store.pools[layer] = [coarser(pool, sparsity.stretch) for pool in pools]
        cache = PackedCache(self.geometry, sparsity, self.store)
        forks = [self.store.fork(request) for request in self.requests]
        found: list[list[tuple[float, bool]]] = [[] for _ in self.texts]
        for at in range(max(len(text.fed) for text in self.texts)):
            who = [row for row, text in enumerate(self.texts) if at < len(text.fed)]
            step = self.store.extend([forks[row] for row in who], [1] * len(who), decoding=len(who))
            tokens, places = zip(*((self.texts[row].fed[at], forks[row].length - 1) for row in who), strict=True)
            logits = self._pass(cache, step, list(tokens), list(places)).float()
            for row, said in zip(who, logits.log_softmax(1), strict=True):
                follows = self.texts[row].tokens[self.texts[row].context + at + 1]
                found[row].append((float(said[follows]), int(said.argmax()) == follows))
        for fork in forks:
            self.store.close(fork)
        every = [zip(*each, strict=True) for each in found]
        return [Scores(torch.tensor(said), torch.tensor(hits)) for said, hits in every], cache.tally


def coarser(pool: PagePool, stretch: int) -> PagePool:
    """The same keys and values with summaries of longer stretches, of memory of their own."""
    if pool.extremes is None:
        return pool
    stretches = pool.extremes.unflatten(2, (pool.page // min(stretch, pool.page), -1))
    extremes = torch.stack((stretches[..., 0, :].amax(3), stretches[..., 1, :].amin(3)), 3)
    return replace(pool, extremes=extremes)
