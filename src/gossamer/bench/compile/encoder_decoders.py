"""An encoder-decoder over batches of texts of other lengths on either side, and over texts that are all as long.

Three layers of BART-base's encoder and decoder each, random weights: 16 texts of up to 128 tokens are read, and up to
64 written. The last row has no padding to leave out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gossamer.bench.attention.decoders import transformers_here
from gossamer.bench.cells import Row, ratio, value
from gossamer.bench.compile import ways
from gossamer.bench.compile.ways import EAGER, INDUCTOR, OURS
from gossamer.bench.section import Section, Settings, Table

READ, WRITTEN, TEXTS, LAYERS = 128, 64, 16, 3
LEAST = {"a quarter at least": 0.25, "all": 1.0}
"""The share of the longest text that each has, drawn evenly from there on."""


def bart(settings: Settings) -> Any:
    import transformers

    torch.manual_seed(0)
    toy: dict[str, Any] = {
        "d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
    }  # fmt: skip
    base: dict[str, Any] = {
        "d_model": 768, "encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072, "encoder_attention_heads": 12,
        "decoder_attention_heads": 12,
    }  # fmt: skip
    config = transformers.BartConfig(
        vocab_size=1000, encoder_layers=LAYERS, decoder_layers=LAYERS, **(toy if settings.quick else base)
    )
    return transformers.BartModel(config).eval().requires_grad_(False)


def batch(least: float) -> dict[str, Tensor]:
    """Texts whose lengths are drawn, one of them as long as there is room."""
    generator = torch.Generator().manual_seed(0)

    def side(longest: int) -> tuple[Tensor, Tensor]:
        lengths = torch.randint(int(least * longest), longest + 1, (TEXTS, 1), generator=generator)
        lengths[0] = longest
        ids = torch.randint(4, 1000, (TEXTS, longest), generator=generator)
        return ids, (torch.arange(longest) < lengths).long()

    (ids, mask), (decoder_ids, decoder_mask) = side(READ), side(WRITTEN)
    return {
        "input_ids": ids, "attention_mask": mask, "decoder_input_ids": decoder_ids,
        "decoder_attention_mask": decoder_mask,
    }  # fmt: skip


def _run(way: Callable[..., Any], given: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        hidden: Tensor = way(**given, use_cache=False).last_hidden_state
    return hidden * given["decoder_attention_mask"][..., None]


def rows(settings: Settings) -> Iterator[Row]:
    if not transformers_here():
        return
    model = bart(settings)
    for name, least in LEAST.items():
        given = batch(least)
        found = ways.compiled(model, names=(EAGER, INDUCTOR, OURS))
        calls: dict[str, ways.Call] = {each: partial(_run, way, given) for each, way in found.items()}
        padding, written = (
            1 - float(given[mask].float().mean()) for mask in ("attention_mask", "decoder_attention_mask")
        )
        row = ways.measured(calls, settings, learn=2, seconds=12)
        yield {"lengths": name, "padding": padding, "written": written, **row}


COLUMNS = (
    ("lengths", value("lengths")), ("padding of what is read", value("padding", ".0%")),
    ("of what is written", value("written", ".0%")), ("fastest dense", ways.best_dense), (f"`{OURS}`", ratio(OURS)),
)  # fmt: skip

SECTION = Section(rows, Table(ways.with_summary(COLUMNS)), on_gpu=False)
