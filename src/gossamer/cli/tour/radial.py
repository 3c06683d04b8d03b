"""Radial Networks on SmolLM2: what each layer is worth on real text, and the model without the least of them.

A router that chooses layers token by token needs longer training than a card may take: the one for SmolLM2 comes along.
What a router costs by itself is the row where the card does not pay.
"""

from __future__ import annotations

import math
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import gossamer as gs
from gossamer.bench.attention.decoders import SMOLLM2
from gossamer.bench.route.pretrained import CONTEXT, HELD, TRAINED, tokens_of
from gossamer.bench.route.speed import Decoding
from gossamer.cli.tour.card import Card, Outcome, Say, Timed
from gossamer.cli.tour.decoder import decoder
from gossamer.data.language import in_order, windows
from gossamer.report.quantity import percent, short
from gossamer.routing.learning.settling import measured
from gossamer.routing.radial import Radial
from gossamer.routing.saved import load_routed
from gossamer.serving.cache import SparseCache

DROPPED, LENGTH, SEEN = 3, 128, 16
DENSE, OURS, IDLE = "all layers", "fewer layers", "a router that keeps all"


@torch.inference_mode()
def perplexity(model: Any, batches: list[Tensor]) -> float:
    found = [F.cross_entropy(model(each).logits[:, :-1].flatten(0, 1), each[:, 1:].flatten()) for each in batches]
    return math.exp(float(torch.stack(found).mean()))


def over_all(calls: dict[str, Callable[[], Any]], quick: bool) -> dict[str, Any]:
    return gs.measure.interleave(calls, baseline=DENSE, reps=5 if quick else 15, warmup=1, seconds=10).to_dict()


def run(folder: Path, say: Say, quick: bool) -> Outcome:
    from transformers import DynamicCache

    say("loading SmolLM2")
    loaded = decoder(quick)
    model = loaded.model
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted(path for name in TRAINED[:2] for path in (root / name).rglob("*.py"))
    text = tokens_of(loaded, paths, 20_000 if quick else 200_000)
    held = tokens_of(loaded, [root / name for name in HELD], 4_000 if quick else 40_000)
    length, count, context = (32, 1, 32) if quick else (LENGTH, DROPPED, CONTEXT)
    say("measuring what each layer contributes on Python's library")
    worth = gs.routing.profile(model, list(windows(text, length=length, batch=4, steps=SEEN // 4, seed=1)))
    layers = worth.order()[:count]
    smaller = gs.routing.drop(model, layers).eval()
    say("reading files that it has not seen")
    batches = in_order(held, length=2 * length, batch=2, most=8)
    of_all, of_less = perplexity(model, batches), perplexity(smaller, batches)
    routed_facts = [] if quick else _routed(model, batches)
    say("timing tokens in turns")
    dense = Decoding(model, DynamicCache(config=model.config), context)
    less = over_all({DENSE: dense, OURS: Decoding(smaller, DynamicCache(config=smaller.config), context)}, quick)
    idle = Radial(model).eval()
    routed = over_all({DENSE: dense, IDLE: Decoding(idle, SparseCache(idle.geometry), context)}, quick)
    total = model.config.num_hidden_layers
    gain = Timed(
        f"four tokens behind a context of {context}, batch 1, without the {count} of {total} layers that "
        "contribute least",
        OURS, less,
    )  # fmt: skip
    loses = Timed(
        f"the same with all layers and a router that asks each token after each of them: in a model as small as this "
        f"a layer takes {short(routed['rows'][0]['median'] / 4 / total, 's')}",
        IDLE, routed,
    )  # fmt: skip
    size = sum(p.numel() for p in smaller.parameters()) / sum(p.numel() for p in model.parameters())
    facts = (
        (f"{of_less:.1f}", f"perplexity of files that it has not seen; all layers {of_all:.1f}"),
        (percent(1 - size, 0), "fewer parameters, without training"),
        (
            f"{count} of {total}",
            f"layers left out by their measured contributions: {', '.join(map(str, sorted(layers)))}",
        ),
        *routed_facts,
    )
    return Outcome(gain, loses, facts)


def _routed(model: Any, batches: list[Tensor]) -> list[tuple[str, str]]:
    """What the files cost, and how well they are foretold, where each token chooses its layers."""
    routed = load_routed(model, SMOLLM2).eval()
    share = measured(routed, [{"input_ids": each} for each in batches])
    said = f"perplexity where each token chooses its layers, at {percent(share, 0)} of the multiply-adds"
    return [(f"{perplexity(routed, batches):.1f}", said)]


CARD = Card(
    "Radial Networks",
    "My model spends every layer on every token: measure what they are worth, leave some out",
    "A pass over your texts tells what each layer contributes. The least can go for all tokens, at once and without "
    "training; a router that learns from the model's own outputs lets each token choose.",
    "It loses quality. A router has to be trained for longer than this card takes (that of SmolLM2 comes along), and "
    "costs time in each layer that it keeps, which small models feel.",
    """
profile = gs.routing.profile(model, batches)
smaller = gs.routing.drop(model, profile.order()[:2])  # without training
radial = gs.routing.Radial(model, kv="propagate", adapter=32)  # or: each token chooses
gs.routing.distill(radial, None, batches, budget=0.8, steps=500)
radial.eval().generate(input_ids, max_new_tokens=64)
""",
    "docs/routing.md",
    run,
)
