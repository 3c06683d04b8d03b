"""Whole decoders with ReLU: a prompt of 512 tokens at once, and a token behind a context, which is then taken back.

OPT-125M from its configuration, four layers of it, with biases shifted so that 95 % are zeros; and a small decoder that
was trained to have as many. Zeros are counted on the tokens that are timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gossamer.bench.attention.decoders import transformers_here
from gossamer.bench.cells import ratio, value
from gossamer.bench.compile import sparse_models, ways
from gossamer.bench.compile.ways import EAGER, FREEZING, INDUCTOR, KEPT, OURS
from gossamer.bench.section import Row, Section, Settings, Table

PROMPT, CONTEXT = 512, 64
NAMES = (EAGER, INDUCTOR, FREEZING, OURS, KEPT)
LAYERS, STEPS, SHARE = 4, 150, 0.95  # steps of training, and the zeros that are aimed at


def opt(settings: Settings) -> Iterator[Row]:
    """OPT-125M's sizes, some of its layers."""
    sizes = sparse_models.TOY if settings.quick else {**sparse_models.OPT_125M, "num_hidden_layers": LAYERS}
    model = sparse_models.opt(sizes)
    tokens = torch.randint(sizes["vocab_size"], (1, PROMPT), generator=torch.Generator().manual_seed(0))
    sparse_models.shift_biases(model, tokens, SHARE)
    yield from _decoder("OPT, shifted", model, tokens, settings)


def trained(settings: Settings) -> Iterator[Row]:
    """A decoder that learnt its zeros."""
    sizes = sparse_models.TOY if settings.quick else sparse_models.TRAINED
    model, text, loss = sparse_models.trained(sizes, 5 if settings.quick else STEPS, SHARE)
    for row in _decoder(f"trained, loss {loss:.2f}", model, text[None, :PROMPT], settings):
        yield {**row, "loss": loss}


def _decoder(name: str, model: Any, tokens: Tensor, settings: Settings) -> Iterator[Row]:
    found = ways.compiled(model, names=NAMES)
    calls: dict[str, Callable[[], Any]] = {
        each: partial(_run, way, tokens, use_cache=False, logits_to_keep=1) for each, way in found.items()
    }
    yield _row(name, tokens.shape[1], sparse_models.zeros(model, tokens), calls, settings)
    found = ways.compiled(model, names=NAMES)
    calls = {each: Decoding(model, way, tokens[:, : CONTEXT + 1]) for each, way in found.items()}
    with sparse_models.counted(model) as shares:
        calls[EAGER]()
    yield _row(name, 1, sum(shares) / len(shares), calls, settings)


class Decoding:
    """One token behind a context of its own."""

    def __init__(self, model: Any, way: Callable[..., Any], tokens: Tensor) -> None:
        import transformers

        self.way, self.token = way, tokens[:, -1:]
        self.cache = transformers.DynamicCache(config=model.config)
        with torch.no_grad():
            model(tokens[:, :-1], past_key_values=self.cache, use_cache=True)

    def __call__(self) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.way(self.token, past_key_values=self.cache, use_cache=True).logits
        self.cache.crop(-1)
        return logits


def _run(way: Callable[..., Any], *args: Tensor, **options: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = way(*args, **options).logits
    return logits


def _row(name: str, tokens: int, zeros: float, calls: dict[str, Callable[[], Any]], settings: Settings) -> Row:
    return {"model": name, "tokens": tokens, "zeros": zeros, **ways.measured(calls, settings, seconds=4)}


def rows(settings: Settings) -> Iterator[Row]:
    if transformers_here():
        yield from opt(settings)
        yield from trained(settings)


COLUMNS = (
    ("model", value("model")), ("tokens", value("tokens")), ("zeros", value("zeros", ".1%")),
    ("fastest dense", ways.best_dense), *((f"`{name}`", ratio(name)) for name in (OURS, KEPT)),
)  # fmt: skip

SECTION = Section(rows, Table(ways.with_summary(COLUMNS, (OURS, KEPT))), on_gpu=False)
