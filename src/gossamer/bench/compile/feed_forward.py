"""Feed-forward blocks with ReLU at the shares of zeros that OPT has: prompts of 512 tokens, and single tokens.

Stacks of blocks alone, the whole decoder from its configuration, and a small one that was really trained. Zeros are
counted on the tokens that are timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.bench.attention.decoders import transformers_here
from gossamer.bench.cells import ratio, value
from gossamer.bench.compile import sparse_models, ways
from gossamer.bench.compile.ways import EAGER, FREEZING, INDUCTOR, KEPT, OURS
from gossamer.bench.section import Row, Section, Settings, Table

SHARES = (0.01, 0.5, 0.9, 0.95, 0.98)  # the first: nothing to gain
PROMPT, CONTEXT = 512, 64
NAMES = (EAGER, INDUCTOR, FREEZING, OURS, KEPT)
STEPS, SHARE = 400, 0.95  # of training, and the zeros that it aims at


def blocks(settings: Settings, share: float) -> Iterator[Row]:
    """The feed-forward blocks alone."""
    sizes = sparse_models.TOY if settings.quick else sparse_models.OPT_125M
    dim = sizes["hidden_size"]
    torch.manual_seed(0)
    model = sparse_models.FeedForwards(dim, sizes["ffn_dim"], sizes["num_hidden_layers"]).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    sparse_models.shift_biases(model, torch.randn(PROMPT, dim, generator=generator), share)
    for tokens in (PROMPT, 1):
        x = torch.randn(tokens, dim, generator=generator)
        found = ways.compiled(model, names=NAMES)
        calls: dict[str, Callable[[], Any]] = {name: partial(_run, way, x) for name, way in found.items()}
        yield _row("blocks", tokens, sparse_models.zeros(model, x), calls, settings)


def decoder(settings: Settings, share: float) -> Iterator[Row]:
    """The whole decoder: a prompt read at once, and a token behind a context, which is then taken back."""
    sizes = sparse_models.TOY if settings.quick else sparse_models.OPT_125M
    model = sparse_models.opt(sizes)
    tokens = torch.randint(sizes["vocab_size"], (1, PROMPT), generator=torch.Generator().manual_seed(0))
    sparse_models.shift_biases(model, tokens, share)
    yield from _decoder("decoder", model, tokens, settings)


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


def _run(way: Callable[..., Any] | nn.Module, *args: Tensor, **options: Any) -> Any:
    with torch.no_grad():
        found = way(*args, **options)
    return found if isinstance(found, Tensor) else found.logits


def _row(name: str, tokens: int, zeros: float, calls: dict[str, Callable[[], Any]], settings: Settings) -> Row:
    return {"model": name, "tokens": tokens, "zeros": zeros, **ways.measured(calls, settings)}


def rows(settings: Settings) -> Iterator[Row]:
    shares = (0.9,) if settings.quick else SHARES
    for share in shares:
        yield from blocks(settings, share)
    if not transformers_here():
        return
    for share in shares[-3:]:
        yield from decoder(settings, share)
    yield from trained(settings)


COLUMNS = (
    ("model", value("model")), ("tokens", value("tokens")), ("zeros", value("zeros", ".1%")),
    ("fastest dense", ways.best_dense), *((f"`{name}`", ratio(name)) for name in (OURS, KEPT)),
)  # fmt: skip

SECTION = Section(rows, Table(ways.with_summary(COLUMNS, (OURS, KEPT))), on_gpu=False)
