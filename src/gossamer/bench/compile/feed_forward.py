"""Feed-forward blocks of OPT-125M's sizes with ReLU, at shares of zeros: prompts of 512 tokens, and single tokens.

Zeros are counted on the tokens that are timed. A single token reads the weights of six blocks, more than caches hold; a
prompt multiplies, for which two blocks are as good.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gossamer.bench.cells import ratio, value
from gossamer.bench.compile import sparse_models, ways
from gossamer.bench.compile.ways import EAGER, FREEZING, INDUCTOR, KEPT, OURS
from gossamer.bench.section import Row, Section, Settings, Table

SHARES = (0.01, 0.5, 0.9, 0.95, 0.98)  # the first: nothing to gain
DEPTH = {512: 2, 1: 6}
"""Blocks for so many tokens at once."""
NAMES = (EAGER, INDUCTOR, FREEZING, OURS, KEPT)


def blocks(settings: Settings, share: float) -> Iterator[Row]:
    """Stacks of blocks."""
    sizes = sparse_models.TOY if settings.quick else sparse_models.OPT_125M
    dim = sizes["hidden_size"]
    for tokens, depth in DEPTH.items():
        torch.manual_seed(0)
        model = sparse_models.FeedForwards(dim, sizes["ffn_dim"], depth).eval().requires_grad_(False)
        generator = torch.Generator().manual_seed(1)
        sparse_models.shift_biases(model, torch.randn(512, dim, generator=generator), share)
        x = torch.randn(tokens, dim, generator=generator)
        found = ways.compiled(model, names=NAMES)
        calls: dict[str, Callable[[], Any]] = {name: partial(_run, way, x) for name, way in found.items()}
        zeros = sparse_models.zeros(model, x)
        yield {"blocks": depth, "tokens": tokens, "zeros": zeros, **ways.measured(calls, settings, seconds=4)}


def _run(way: Callable[..., Any], x: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = way(x)
    return found


def rows(settings: Settings) -> Iterator[Row]:
    shares = (0.9,) if settings.quick else SHARES
    for share in shares:
        yield from blocks(settings, share)


COLUMNS = (
    ("blocks", value("blocks")), ("tokens", value("tokens")), ("zeros", value("zeros", ".1%")),
    ("fastest dense", ways.best_dense), *((f"`{name}`", ratio(name)) for name in (OURS, KEPT)),
)  # fmt: skip

SECTION = Section(rows, Table(ways.with_summary(COLUMNS, (OURS, KEPT))), on_gpu=False)
