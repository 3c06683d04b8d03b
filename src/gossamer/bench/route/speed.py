"""Time of one request whose tokens skip layers, beside its FLOPs, transformers and all layers.

Weights are random: what the model says means nothing. Routes are known beforehand (`routes`); a router is asked for
each jump all the same. Decoding is four tokens behind a context, which are then taken back; a prompt is read whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import gossamer as gs
from gossamer.bench.attention.decoders import llama, transformers_here
from gossamer.bench.cells import CONTROL, Cell, ratio, short, value
from gossamer.bench.route.routes import along, spaced
from gossamer.bench.section import MEDIANS, Row, Section, Settings, Table
from gossamer.routing.policies.fixed import RandomSkip
from gossamer.routing.policies.jumps import Jumps
from gossamer.routing.policies.policy import Choice, Policy, Tokens, Walk
from gossamer.routing.radial import Radial
from gossamer.serving.cache import SparseCache

BASELINE, ALL, ROUTED = "transformers", "all layers, no router", "all layers, router"
SHARES = (0.9, 0.7, 0.5)
STEPS = 4
SIZES = {  # width: what else a Llama of 12 layers has
    512: {"intermediate_size": 1536, "num_attention_heads": 8, "num_key_value_heads": 4},
    1024: {"intermediate_size": 2816, "num_attention_heads": 16, "num_key_value_heads": 4},
}
QUICK = {64: {"intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}}
LAYERS, VOCABULARY, CONTEXT, PROMPT = 12, 1024, 512, 2048


class AllButOne(Policy):
    """Every token but the first runs every unit: gathers and scatters, and nothing to gain."""

    def begin(self, h: Tensor, tokens: Tokens) -> Walk:
        rows = torch.ones(len(tokens), dtype=torch.bool, device=h.device)
        rows[0] = False

        class Most(Walk):
            def enter(self, unit: int, h: Tensor) -> Choice:
                return Choice(rows)

        return Most()


def model_of(width: int, settings: Settings) -> Any:
    sizes: dict[str, int] = dict((QUICK if settings.quick else SIZES)[width])
    sizes |= {"hidden_size": width, "num_hidden_layers": LAYERS, "vocab_size": VOCABULARY}
    return llama(sizes | {"max_position_embeddings": 4096}, torch.float32)


class Decoding:
    """Four tokens behind a context, one after the other, which are then taken back."""

    def __init__(self, model: Any, cache: Any, context: int) -> None:
        self.model, self.cache = model, cache
        with torch.no_grad():
            model(torch.ones(1, context, dtype=torch.int64), past_key_values=cache, use_cache=True)

    def __call__(self) -> Tensor:
        token = torch.ones(1, 1, dtype=torch.int64)
        with torch.no_grad():
            for _ in range(STEPS):
                logits = self.model(token, past_key_values=self.cache, use_cache=True).logits
                token = logits[:, -1].argmax(1, keepdim=True)
            self.cache.crop(-STEPS)
        return token


def reading(model: Any, tokens: Tensor) -> Callable[[], Any]:
    """A prompt, read whole."""

    def call() -> Any:
        with torch.no_grad():
            return model(tokens, logits_to_keep=1).logits

    return call


def decoding(width: int, settings: Settings) -> Row:
    """Batch 1, one token after the other."""
    import transformers

    context = 64 if settings.quick else CONTEXT
    model = model_of(width, settings)
    calls: dict[str, Callable[[], Any]] = {
        BASELINE: Decoding(model, transformers.DynamicCache(config=model.config), context)
    }
    for name, policy in policies(width).items():
        calls[name] = Decoding(Radial(model, policy=policy).eval(), SparseCache(model.config), context)
    return timed("decode", width, context, calls, settings)


def policies(width: int) -> dict[str, Policy]:
    """The ways that both tables have."""
    found: dict[str, Policy] = {
        ALL: Jumps(LAYERS, width, mode="sequential").eval(), ROUTED: Jumps(LAYERS, width).eval()
    }  # fmt: skip
    return found | {name_of(share): along(spaced(LAYERS, share), LAYERS, width) for share in SHARES}


def name_of(share: float) -> str:
    return f"{len(spaced(LAYERS, share))} of {LAYERS} layers"


def prompts(width: int, settings: Settings) -> Row:
    """One prompt; and where each token takes random layers, or all but one token run."""
    model = model_of(width, settings)
    length = 64 if settings.quick else PROMPT
    tokens = torch.randint(VOCABULARY, (1, length), generator=torch.Generator().manual_seed(0))
    calls = {BASELINE: reading(model, tokens)}
    ways = policies(width) | {
        "half of the layers, at random": RandomSkip(LAYERS, width, rate=0.5, seed=0).eval(),
        "all but one token": AllButOne(LAYERS, width).eval(),
    }
    for name, policy in ways.items():
        calls[name] = reading(Radial(model, policy=policy).eval(), tokens)
    return timed("prompt", width, length, calls, settings)


def timed(what: str, width: int, tokens: int, calls: dict[str, Callable[[], Any]], settings: Settings) -> Row:
    run = gs.measure.interleave(calls, baseline=ALL, reps=settings.reps, warmup=1, seconds=60)
    row = {"what": what, "width": width, "tokens": tokens, **run.to_dict()}
    full = next(each for each in row["rows"] if each["name"] == ALL)["median"]
    row["saved"] = {}
    for share in SHARES:
        ran = len(spaced(LAYERS, share)) / LAYERS
        median = next(each for each in row["rows"] if each["name"] == name_of(share))["median"]
        row["saved"][name_of(share)] = (1 - median / full) / (1 - ran)
    return row


def rows(settings: Settings) -> Iterator[Row]:
    if not transformers_here():
        return
    for width in QUICK if settings.quick else SIZES:
        yield decoding(width, settings)
        yield prompts(width, settings)


def saved(share: float) -> Cell:
    return lambda row: f"{row['saved'][name_of(share)]:.0%}"


COLUMNS = (
    ("", value("what")), ("width", value("width")), ("tokens", value("tokens", ",")),
    (BASELINE, ratio(BASELINE)), (ROUTED, ratio(ROUTED)),
    *((name_of(share), ratio(name_of(share))) for share in SHARES),
    *((f"of what {name_of(share)} can save", saved(share)) for share in SHARES[1:]),
    ("random half", ratio("half of the layers, at random")), ("all but one token", ratio("all but one token")), CONTROL,
)  # fmt: skip

BRIEF = (
    *COLUMNS[:3], (BASELINE, short(BASELINE)), (ROUTED, short(ROUTED)),
    *((name_of(share), short(name_of(share))) for share in SHARES),
)  # fmt: skip

SECTION = Section(rows, Table(COLUMNS), {"brief": Table(BRIEF, MEDIANS)}, on_gpu=False)
