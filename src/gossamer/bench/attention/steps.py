"""Decoding that is timed: some steps of an engine, or of transformers, that are taken back, so each call does the same.

Contexts are not read as prompts, which for 64K tokens would take an hour: all but the first token get keys and values
that are drawn. Time does not depend on what they are, and rivals have the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gossamer import ops, serving
from gossamer.bench.attention.decoders import weight_bytes
from gossamer.ops.paged.pool import page_bytes, ranking_bytes
from gossamer.serving.geometry import Geometry, LayerShape
from gossamer.serving.paging.store import bytes_of_page
from gossamer.serving.sampling import Sampling
from gossamer.serving.sparsity import Sparsity

if TYPE_CHECKING:
    from gossamer.serving.engine import Engine
    from gossamer.serving.stepping.jobs import Job

STEPS = 4  # of a call: in one of them pages are chosen, where that is done at every fourth token
FIRST = 1  # the token that every text begins with
CHUNK = 2048  # tokens of a context that are drawn at once
PLENTY = 1 << 40  # of memory: an engine takes what its longest text needs
ON = 64  # a text may go on for so many tokens


def engine(model: Any, sparsity: Sparsity, length: int, requests: int = 1, chunk: int = CHUNK) -> Engine:
    """An engine with room for texts of `length` tokens and some more."""
    return serving.Engine(
        model, sparsity=sparsity, memory=PLENTY, max_length=length + ON, max_requests=requests, chunk=chunk, end=[]
    )


def endless(tokens: int = ON - 1) -> Sampling:
    return Sampling(max_tokens=tokens, ignore_eos=True)


def drawn(shape: LayerShape, layer: int, first: int, count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Keys and values [tokens, key heads, width] of the tokens from `first` on."""
    generator = torch.Generator().manual_seed(layer << 32 | first)
    keys, values = torch.randn(2, count, shape.key_heads, shape.width, generator=generator).to(dtype)
    return keys, values


def chunks(length: int) -> list[tuple[int, int]]:
    """First token and number of tokens of each chunk of a context behind its first token."""
    return [(first, min(CHUNK, length - first)) for first in range(1, length, CHUNK)]


def filled(engine: Engine, length: int) -> Job:
    """A request that has read one token and has keys for `length`."""
    job = engine.add([FIRST], endless())
    engine.step()
    assert job.pages is not None
    store = engine.store
    for first, count in chunks(length):
        step = store.extend([job.pages], [count])
        for layer, (parts, pools) in enumerate(zip(store.parts, store.pools, strict=True)):
            keys, values = drawn(store.geometry.layers[layer], layer, first, count, engine.model.dtype)
            for part, pool in zip(parts, pools, strict=True):
                ops.page_append(keys, values, pool, step.batches[part.view].every, heads=part.heads)
        store.trim([job.pages])
    job.prompt += [FIRST] * (length - 1)
    return job


def rewind(engine: Engine, job: Job, count: int) -> None:
    """Take the last `count` tokens of a request back."""
    if count:
        assert job.pages is not None
        engine.store.crop(job.pages, count)
        del job.tokens[-count:], job.choices[-count:]


class Steps:
    """Steps of an engine for its requests, which are then taken back; gives the tokens."""

    def __init__(self, engine: Engine, jobs: Sequence[Job]) -> None:
        self.engine, self.jobs = engine, jobs

    def __call__(self) -> list[list[int]]:
        for _ in range(STEPS):
            self.engine.step()
        made = [job.tokens[-STEPS:] for job in self.jobs]
        for job in self.jobs:
            rewind(self.engine, job, STEPS)
        return made

    def read(self) -> int:
        """Bytes of keys, values and what ranks pages that a step reads, by the engine's tally of one call."""
        tally, store = self.engine.tally, self.engine.store
        keys, scored = tally.decode_read, tally.scored
        self()
        width, sparsity = store.geometry.layers[0].width, store.sparsity
        bare = page_bytes(1, width, store.stored, page=sparsity.page, extremes=None, moments=None)
        ranked = ranking_bytes(width, sparsity.score, page=sparsity.page, stretch=sparsity.stretch)
        read = (tally.decode_read - keys) * bare // sparsity.page + (tally.scored - scored) * ranked
        return read // STEPS

    def weights(self) -> int:
        return weight_bytes(self.engine.model)

    def held(self) -> int:
        """Bytes of the pages that the requests have."""
        store = self.engine.store
        size = bytes_of_page(store.geometry, store.sparsity, store.stored, store.parts)
        return sum(size[view] * (pages.count - pages.free) for view, pages in store.pages.items())


class Transformers:
    """Steps of transformers' own attention and cache from the same keys, taken back likewise; gives the tokens."""

    def __init__(self, model: Any, length: int) -> None:
        from transformers import DynamicCache

        geometry = Geometry.of(model.config)
        self.model = model
        self.cache: Any = DynamicCache(config=model.config)
        self.token = self.step(torch.tensor([[FIRST]]))
        for layer, shape in enumerate(geometry.layers):
            every = [drawn(shape, layer, first, count, model.dtype) for first, count in chunks(length)]
            keys, values = (torch.cat(each).transpose(0, 1)[None] for each in zip(*every, strict=True))
            self.cache.update(keys, values, layer)

    def step(self, token: Tensor) -> Tensor:
        logits = self.model(token, past_key_values=self.cache, use_cache=True).logits
        return logits[:, -1:].argmax(-1)

    def __call__(self) -> list[list[int]]:
        token, made = self.token, []
        for _ in range(STEPS):
            token = self.step(token)
            made.append(int(token))
        self.cache.crop(-STEPS)
        return [made]

    def read(self) -> int:
        """Bytes of keys and values that a step reads; that transformers copies them besides is not counted."""
        return self.held()

    def weights(self) -> int:
        return weight_bytes(self.model)

    def held(self) -> int:
        """Bytes of keys and values."""
        return int(sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache.layers))
