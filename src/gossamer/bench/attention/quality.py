"""What attention to less costs a trained model: SmolLM2, about 8,000 tokens behind it.

How well it foretells 256 tokens of real text, Python's own library: each is decoded, so each chooses what it reads.
Pages are ranked by their moments (ours), by the least and largest coordinates of 16 keys (min/max, the control), or by
the products of every single key, chosen anew at every token (the oracle, which reads all keys to choose).
"""

from __future__ import annotations

import logging
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from gossamer import serving
from gossamer.bench.attention.decoders import Decoder, smollm2, transformers_here
from gossamer.bench.attention.forced import Scores, Text, Texts
from gossamer.bench.cells import value
from gossamer.bench.section import Row, Section, Settings, Table
from gossamer.ops.paged.pool import PAGE, STRETCH
from gossamer.serving.geometry import Geometry
from gossamer.serving.heads import HeadPattern, spread
from gossamer.serving.sparsity import Sparsity

logger = logging.getLogger(__name__)

SOURCES = ("argparse.py", "statistics.py")
CONTEXT, SCORED = 124 * PAGE, 256  # tokens
PATTERN = Path(serving.__file__).parent / "patterns" / "smollm2"


def sources(decoder: Decoder, context: int, scored: int) -> list[Text]:
    """The beginnings of modules of Python's library."""
    texts, length = [], context + scored + 1
    for name in SOURCES:
        said = (Path(sysconfig.get_paths()["stdlib"]) / name).read_text(encoding="utf-8")
        if decoder.tokenizer is None:
            tokens = list(said[:length].encode())
        else:
            tokens = decoder.tokenizer.encode(said, add_special_tokens=False)
        if len(tokens) < length:
            raise ValueError(f"{name} of this Python has {len(tokens)} tokens, expected at least {length}")
        texts.append(Text(tokens[:length], context))
    return texts


def perplexity(scores: Sequence[Scores]) -> float:
    return float(torch.cat([each.logprobs for each in scores]).double().mean().neg().exp())


def choices(budget: int, static: Sparsity) -> dict[str, Sparsity]:
    """How pages are ranked, at one budget."""
    return {
        "moments": replace(static, token_budget=budget),
        "min/max": replace(static, token_budget=budget, score="extremes", stretch=STRETCH),
        "oracle": replace(static, token_budget=budget, score="extremes", stretch=1, interval=1),
    }


def statics(decoder: Decoder, quick: bool) -> Iterator[Sparsity]:
    """No head streams; half of them, as calibrated."""
    yield Sparsity()
    geometry = Geometry.of(decoder.model.config)
    if quick:
        yield Sparsity(static=0.5, pattern=spread(len(geometry.layers), max(geometry.key_heads)), sink=PAGE, local=PAGE)
    elif PATTERN.exists():
        yield Sparsity(static=0.5, pattern=HeadPattern.load(PATTERN))
    else:
        logger.warning("%s is missing, so rows with streaming heads are left out: gossamer calibrate", PATTERN)


def rows(settings: Settings) -> Iterator[Row]:
    """A row for each way to attend, of all texts together."""
    decoder = smollm2(settings) if transformers_here() else None
    if decoder is None:
        return
    context, scored, budgets = (4 * PAGE, 8, (3 * PAGE,)) if settings.quick else (CONTEXT, SCORED, (512, 1024))
    texts, whole = sources(decoder, context, scored), context + -(-scored // PAGE) * PAGE
    dense: float | None = None
    for static in statics(decoder, settings.quick):
        judged = Texts(decoder.model, texts, static)
        ways = [(whole, "all", replace(static, token_budget=whole))]
        ways += [(budget, name, each) for budget in budgets for name, each in choices(budget, static).items()]
        for budget, name, sparsity in ways:
            scores, tally = judged.decode(sparsity)
            said = perplexity(scores)
            dense = said if dense is None else dense
            yield {
                "model": decoder.name, "context": context, "streaming": static.static, "pages": name,
                "budget": budget, "perplexity": said, "loss": said / dense - 1,
                "read": tally.decode_read / tally.decode_keys, "tokens": scored * len(texts),
            }  # fmt: skip


COLUMNS = (
    ("heads that stream", value("streaming", ".0%")), ("pages", value("pages")),
    ("tokens read", lambda row: "all" if row["pages"] == "all" else f"{row['budget']:,}"),
    ("share of keys read", value("read", ".1%")), ("perplexity", value("perplexity", ".3f")),
    ("over dense", value("loss", "+.2%")),
)  # fmt: skip

SECTION = Section(rows, Table(COLUMNS, note=""), on_gpu=False)
