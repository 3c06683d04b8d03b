"""What attention to less costs a trained model: SmolLM2, about 8,000 tokens behind it.

Two things are asked: how well it foretells 256 tokens of real text (Python's own library), and whether it repeats pass
keys that lie in its documentation. Each is decoded token by token, the questions too, so every token chooses what it
reads. Pages are ranked by four bits of every key (the default), by the least and largest coordinates of 16 keys
(min/max), or by the products of every single key (the oracle, which reads all keys to choose).
"""

from __future__ import annotations

import logging
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from gossamer import serving
from gossamer.bench.attention.decoders import Decoder, smollm2, transformers_here
from gossamer.bench.attention.forced import Scores, Text, Texts
from gossamer.bench.cells import value
from gossamer.bench.section import Row, Section, Settings, Table
from gossamer.ops.paged.pool import PAGE, STRETCH
from gossamer.serving.calibrating.passkeys import passkeys
from gossamer.serving.geometry import Geometry
from gossamer.serving.heads import HeadPattern, spread
from gossamer.serving.sparsity import Sparsity

logger = logging.getLogger(__name__)

SOURCES = ("argparse.py", "statistics.py")
CONTEXT, SCORED, KEYS, WORDS = 124 * PAGE, 256, 10, 2  # tokens, tokens, pass keys of a text, words of each
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


@dataclass(frozen=True, eq=False)
class Hidden:
    """A text that tells pass keys, asks for them and answers; and the places of each key in the answer."""

    text: Text
    places: list[range]

    @classmethod
    def drawn(cls, decoder: Decoder, context: int, keys: int, words: int, seed: int) -> Hidden:
        if decoder.tokenizer is None:
            made = passkeys(vocabulary=decoder.model.config.vocab_size, words=words)
        else:
            made = passkeys(decoder.tokenizer, words=words)
        sample = made.sample(context + len(made.ask), keys, seed)
        tokens, places, at = sample.prompt + sample.answer, [], len(sample.prompt)
        for key in sample.values:
            while tokens[at : at + len(key)] != key:
                at += 1
            places.append(range(at, at + len(key)))
            at += len(key)
        return cls(Text(tokens, context), places)

    def right(self, scores: Scores) -> list[Tensor]:
        """For each key, which of its tokens were the likeliest: a greedy answer has it if all were."""
        first = self.text.context + 1
        return [scores.hits[place.start - first : place.stop - first] for place in self.places]


def perplexity(scores: Sequence[Scores]) -> float:
    return float(torch.cat([each.logprobs for each in scores]).double().mean().neg().exp())


def choices(budget: int, static: Sparsity) -> dict[str, Sparsity]:
    """How pages are ranked, at one budget."""
    return {
        "keys": replace(static, token_budget=budget),
        "keys, every fourth token": replace(static, token_budget=budget, interval=4),
        "min/max": replace(static, token_budget=budget, score="extremes", stretch=STRETCH),
        "oracle": replace(static, token_budget=budget, score="extremes", stretch=1),
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
    quick = settings.quick
    context, scored, keys, words, budgets = (
        (4 * PAGE, 8, 2, 1, (3 * PAGE,)) if quick else (CONTEXT, SCORED, KEYS, WORDS, (512, 1024))
    )
    plain = sources(decoder, context, scored)
    hidden = [Hidden.drawn(decoder, context, keys, words, seed) for seed in range(1 if quick else 2)]
    whole = -(-max(len(text.tokens) for text in (*plain, *(each.text for each in hidden))) // PAGE) * PAGE
    dense: float | None = None
    for static in statics(decoder, quick):
        texts = Texts(decoder.model, [*plain, *(each.text for each in hidden)], static)
        ways = [(whole, "all", replace(static, token_budget=whole))]
        ways += [(budget, name, each) for budget in budgets for name, each in choices(budget, static).items()]
        for budget, name, sparsity in ways:
            scores, tally = texts.decode(sparsity)
            said = perplexity(scores[: len(plain)])
            dense = said if dense is None else dense
            answers = zip(hidden, scores[len(plain) :], strict=True)
            right = [key for each, answer in answers for key in each.right(answer)]
            yield {
                "model": decoder.name, "context": context, "streaming": static.static, "pages": name,
                "budget": budget, "perplexity": said, "loss": said / dense - 1,
                "found": sum(bool(key.all()) for key in right), "keys": len(right),
                "right": float(torch.cat(right).double().mean()),
                "read": tally.decode_read / tally.decode_keys, "tokens": scored * len(plain),
            }  # fmt: skip


COLUMNS = (
    ("heads that stream", value("streaming", ".0%")), ("pages", value("pages")),
    ("tokens read", lambda row: "all" if row["pages"] == "all" else f"{row['budget']:,}"),
    ("share of keys read", value("read", ".1%")), ("perplexity", value("perplexity", ".3f")),
    ("over dense", value("loss", "+.2%")), ("pass keys", lambda row: f"{row['found']} of {row['keys']}"),
    ("of their tokens", value("right", ".0%")),
)  # fmt: skip

SECTION = Section(rows, Table(COLUMNS, note=""), on_gpu=False)
