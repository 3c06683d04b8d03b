"""Attention of decoders: how few pages of keys hold its mass, and from which length on reading only those pays."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gossamer import measure
from gossamer.ops.paged.append import page_append
from gossamer.ops.paged.attention import page_attention
from gossamer.ops.paged.choose import page_choose
from gossamer.ops.paged.pool import PAGE, Batch, PagePool
from gossamer.ops.paged.scores import page_scores
from gossamer.pattern import Pattern
from gossamer.profile.findings import Finding, Gain, Place, Verdict, verdict_of
from gossamer.profile.study import Study
from gossamer.profile.watch import Looked
from gossamer.serving.sparsity import STORED, Sparsity

MASS = 0.95
"""Share of the softmax that the pages of a budget are to hold."""
LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)
_LEAST = 3
"""Pages of the smallest budget."""


def find_attention(study: Study) -> Finding:
    """The finding `attention`: how much of it lies on few pages, and what reading only those saves."""
    if not study.is_decoder:
        why = (
            f"{type(study.model).__name__} is no causal language model of transformers, which would read its keys again"
        )
        return Finding("attention", "not measured because", why)
    looked = [each for each in study.seen.attention.values() if each.mass]
    if not looked:
        why = 'no causal scaled_dot_product_attention was called; load the model with attn_implementation="sdpa"'
        return Finding("attention", "not measured because", why)
    shortest, longest = (found(max(each.lengths) for each in looked) for found in (min, max))
    if longest <= _LEAST * PAGE:
        why = f"texts of {shortest} to {longest} tokens have no more than {_LEAST} pages of {PAGE}; longer ones may"
        return Finding("attention", "nothing here", why)
    pages, ends, mass = _pages_needed(looked)
    budget = pages * PAGE
    if 4 * budget > 3 * longest:
        why = (
            f"{MASS:.0%} of attention takes {budget:,} of the {longest:,} tokens before the end of the longest text, "
            f"also in the best pages; {ends:.1%} lies on the first and the newest page of {PAGE}"
        )
        return Finding("attention", "nothing here", why, ends)
    found = (
        f"at the end of texts of up to {longest:,} tokens {ends:.1%} of attention lies on the first and the newest "
        f"page of {PAGE} tokens; {budget:,} tokens in the best pages hold {mass:.1%} in the mean of all heads, at best"
    )
    places = tuple(
        sorted(
            (Place(f"attention {at}", _ends(each)) for at, each in study.seen.attention.items()), key=lambda p: -p.share
        )
    )
    return _gain(study, found, ends, budget, longest, places)


def _ends(looked: Looked) -> float:
    """The share of attention on the first and the newest page of a text, of long enough ones."""
    shares = []
    for mass, length in zip(looked.mass, looked.lengths, strict=True):
        newest = (length - 1) // PAGE
        if newest >= 2:
            shares.append(float((mass[:, 0] + mass[:, newest]).mean()))
    return sum(shares) / len(shares) if shares else 1.0


def _pages_needed(looked: list[Looked]) -> tuple[int, float, float]:
    """Pages that hold `MASS` in the mean, the share of the first and the newest one, and that of those pages."""
    curves: list[Tensor] = []
    for each in looked:
        for mass, length in zip(each.mass, each.lengths, strict=True):
            newest = (length - 1) // PAGE
            if newest >= _LEAST:
                ends = mass[:, [0, newest]].sum(1, keepdim=True)
                others = mass[:, 1:newest].sort(dim=1, descending=True).values.cumsum(1)
                curves.append(torch.cat([ends, ends + others], 1).mean(0))
    widest = max(len(curve) for curve in curves)
    filled = [torch.cat([curve, curve.new_ones(widest - len(curve))]) for curve in curves]
    mean = torch.stack(filled).mean(0)
    extra = max(int((mean < MASS).sum()), _LEAST - 2)
    extra = min(extra, widest - 1)
    return extra + 2, float(mean[0]), float(mean[extra])


def _gain(study: Study, found: str, ends: float, budget: int, length: int, places: tuple[Place, ...]) -> Finding:
    """What the budget saves at the length of the texts, and at longer ones."""
    model: Any = study.model
    longest = getattr(model.config, "max_position_embeddings", None) or LENGTHS[-1]
    decoding = study.decoding
    rest = decoding.times.total * (1 - decoding.times.attention)
    each = next(iter(study.seen.attention.values()))
    if each.width % 16 or each.width > 256:
        why = f"{found}. Heads of {each.width} are not kept in pages, which take multiples of 16 up to 256"
        return Finding("attention", "not measured because", why, ends)
    layers = len(study.seen.attention)
    lengths = sorted({length, *(some for some in LENGTHS if length < some <= longest)})
    gains: dict[int, float] = {}
    for some in lengths:
        if some <= budget:
            gains[some] = 1.0
            continue
        dense, sparse = _timed(each, some, budget, model.dtype)
        gains[some] = (rest + layers * dense) / (rest + layers * sparse)
    gain = Gain(gains[length], f"decoding a token after {length:,} others, all of which are read",
                f"attention of one layer was timed over {budget:,} tokens in pages that queries choose and over all, "
                f"and the rest of a token's time was added")  # fmt: skip
    from_there = next((some for some in lengths if gains[some] >= 1.1), None)
    said = f"{found}. Expected by length: {', '.join(f'{some:,} {gains[some]:.2f}x' for some in lengths)}"
    if from_there is None:
        said += f". Up to the {longest:,} tokens that the model takes it does not pay"
    else:
        said += f". It pays from about {from_there:,} tokens on"
    verdict: Verdict = verdict_of(gain)
    return Finding("attention", verdict, said, ends, gain, places, _to_try(study, budget))


def _timed(looked: Looked, length: int, budget: int, dtype: torch.dtype) -> tuple[float, float]:
    """Seconds of one layer's attention for a token after `length` others: over all, and over chosen pages."""
    generator = torch.Generator().manual_seed(0)
    count, heads = -(-length // PAGE), looked.key_heads
    group = looked.heads // heads
    pool = PagePool.allocate(
        count, heads, looked.width, stored=STORED[dtype], extremes=None, moments=None, sketched=True
    )
    keys = torch.randn(length, heads, looked.width, generator=generator, dtype=torch.float32, device="cpu")
    page_append(keys, keys, pool, Batch.of([length], [length], [list(range(count))]))
    token = Batch.of([1], [length], [list(range(count))])
    q = torch.randn(1, looked.heads, looked.width, generator=generator, dtype=torch.float32, device="cpu")

    def choose() -> Pattern:
        scores = page_scores(q, pool, token, by="keys", group=group)
        pages = page_choose(scores, token, budget // PAGE, group=group)
        offsets = torch.arange(heads + 1, device="cpu") * (budget // PAGE)
        return Pattern(offsets, pages.flatten(), (heads, count), (1, 1))

    lists = choose()
    calls: dict[str, Callable[[], Any]] = {
        "dense": lambda: page_attention(q, pool, token, group=group),
        "sparse": lambda: page_attention(q, pool, token, group=group, lists=lists),
        "choose": choose,
    }
    run = measure.interleave(calls, reps=7, sample=2e-3, seconds=1.0)
    return run["dense"].median, run["sparse"].median + run["choose"].median / Sparsity().interval


def _to_try(study: Study, budget: int) -> str:
    model: Any = study.model
    if study.name is not None and study.text is not None:
        read, begins = shlex.quote(study.text), ""
        longest = getattr(model.config, "max_position_embeddings", None)
        if longest is not None and os.path.getsize(study.text) > 2 * longest:  # a token is rarely less than two letters
            begins, read = f"head -c {2 * longest} {read} | ", "-"
        name = shlex.quote(study.name)
        return f"{begins}gossamer generate {name} --prompt-file {read} --max-tokens 32 --token-budget {budget}"
    return (
        "import gossamer as gs\n\n"
        f"llm = gs.serving.LLM(model, sparsity=gs.serving.Sparsity(token_budget={budget}))\n"
        "text = (batches[0]['input_ids'] if isinstance(batches[0], dict) else batches[0])[0].tolist()\n"
        "for each in llm.generate([text], gs.serving.Sampling(max_tokens=8)):\n    print(each.tokens)"
    )
