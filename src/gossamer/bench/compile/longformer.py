"""Two layers of Longformer-base, random weights: as transformers has them, and with what no query sees left out.

Windows of 512. Dynamo ends in an error where transformers' layers have global tokens, so inductor runs them only
where there are none. A text of 1100 tokens is padded by transformers to 1536.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import gossamer as gs
from gossamer.bench.attention.decoders import transformers_here
from gossamer.bench.cells import Row, ratio, value
from gossamer.bench.compile import ways
from gossamer.bench.compile.ways import EAGER, INDUCTOR, OURS
from gossamer.bench.section import Section, Settings, Table

PLAIN = f"{OURS}, uncompiled"
CASES: tuple[tuple[tuple[int, ...], int], ...] = (
    ((4096,), 16),
    ((4096,), 0),
    ((1100,), 1),
    ((2048, 1500, 900, 300), 4),
)
"""Lengths of the texts, and how many tokens of each are global."""


def model_of(settings: Settings) -> Any:
    import transformers

    torch.manual_seed(0)
    sizes: dict[str, Any] = (
        {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64} if settings.quick else {}
    )
    window = 8 if settings.quick else 512
    config = transformers.LongformerConfig(
        num_hidden_layers=2, attention_window=window, max_position_embeddings=4098, vocab_size=1000, **sizes
    )
    return transformers.LongformerModel(config).eval().requires_grad_(False)


def batch(lengths: tuple[int, ...], everywhere: int) -> dict[str, Tensor]:
    """Texts of these lengths, the first tokens of each global."""
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    given = {"input_ids": torch.randint(3, 1000, mask.shape) * mask + 1 - mask, "attention_mask": mask}
    if everywhere:
        given["global_attention_mask"] = (torch.arange(max(lengths)) < everywhere).long().expand_as(mask).contiguous()
    return given


def _run(way: Callable[..., Any], given: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        hidden: Tensor = way(**given).last_hidden_state
    return hidden * given["attention_mask"][..., None]


def rows(settings: Settings) -> Iterator[Row]:
    if not transformers_here():
        return
    theirs = model_of(settings)
    ours = copy.deepcopy(theirs)
    gs.compile.skip_unseen(ours)
    for lengths, everywhere in CASES:
        lengths = tuple(-(-length // 64) for length in lengths) if settings.quick else lengths
        given = batch(lengths, everywhere)
        found = ways.compiled(theirs, names=(EAGER,) if everywhere else (EAGER, INDUCTOR))
        found[PLAIN], found[OURS] = ours, ways.compiled(ours, names=(OURS,))[OURS]
        calls: dict[str, ways.Call] = {name: partial(_run, way, given) for name, way in found.items()}
        row = ways.measured(calls, settings, learn=4, seconds=12)
        tokens = " + ".join(map(str, lengths))
        yield {"tokens": tokens, "everywhere": everywhere, **row}


COLUMNS = (
    ("tokens", value("tokens")), ("global tokens of a text", value("everywhere")), ("fastest dense", ways.best_dense),
    (f"`{OURS}`", ratio(OURS)), (f"`{PLAIN}`", ratio(PLAIN)),
)  # fmt: skip

SECTION = Section(rows, Table(ways.with_summary(COLUMNS)), on_gpu=False)
