"""Tokens per second of the engine when tokens skip layers, for one request and for eight.

Weights are random. Texts that go together skip weights too: a layer that nobody runs is not read. Where each goes its
own way, a layer is read as soon as one of them runs it, and what is saved are its products. Decoding is four tokens
behind a prompt, which are then taken back; routers are asked, and what is drawn at random costs nothing to choose.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

import gossamer as gs
from gossamer.bench.attention.batch import behind
from gossamer.bench.attention.decoders import TOY, llama, transformers_here
from gossamer.bench.attention.steps import STEPS, Steps, engine
from gossamer.bench.cells import CONTROL, Cell, of, ratio, value
from gossamer.bench.route.routes import along, spaced
from gossamer.bench.section import Row, Section, Settings, Table
from gossamer.routing.policies.fixed import RandomSkip
from gossamer.routing.policies.jumps import Jumps
from gossamer.routing.policies.policy import Policy
from gossamer.routing.radial import Radial
from gossamer.serving.sparsity import Sparsity

DENSE, ALL = "dense", "all layers, router"
TOGETHER, APART = "together", "each its own way"
SHARES = (0.7, 0.5)
REQUESTS, CONTEXT = (1, 8), 256
SIZES = {
    "vocab_size": 1024, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 24,
    "num_attention_heads": 12, "num_key_value_heads": 4, "max_position_embeddings": 4096,
}  # fmt: skip


def policies(layers: int, width: int) -> dict[str, Policy]:
    """All layers with a router, then each share with routes that all texts have, and that each token has."""
    found: dict[str, Policy] = {ALL: Jumps(layers, width).eval()}
    for share in SHARES:
        found[f"{share}, {TOGETHER}"] = along(spaced(layers, share), layers, width, joint=True)
        rate = (1 - share) * layers / (layers - 2)
        rates = [0.0, *[rate] * (layers - 2), 0.0]
        found[f"{share}, {APART}"] = RandomSkip(layers, width, rate=rates, seed=0).eval()
    return found


def way(model: Any, prompts: list[list[int]]) -> Steps:
    """Requests of an engine that have read their prompts."""
    longest = max(map(len, prompts))
    made = engine(model, Sparsity(), longest, len(prompts), chunk=CONTEXT)
    return Steps(made, behind(made, prompts))


def depth(radial: Radial, steps: Steps) -> float:
    """The share of layers that the tokens of a call ran."""
    ran, tokens = 0, 0

    def count(*_: Any) -> None:
        nonlocal ran, tokens
        assert radial.run is not None
        ran, tokens = ran + sum(radial.run.ran), tokens + len(radial.run.tokens)

    handle = radial.register_forward_hook(count)
    try:
        steps()
    finally:
        handle.remove()
    return ran / (tokens * len(radial.units))


def rows(settings: Settings) -> Iterator[Row]:
    if not transformers_here():
        return
    sizes = TOY | {"num_hidden_layers": 6} if settings.quick else SIZES
    model, context = llama(sizes, torch.float32), 16 if settings.quick else CONTEXT
    layers, width = sizes["num_hidden_layers"], sizes["hidden_size"]
    radials = {name: Radial(model, policy=policy).eval() for name, policy in policies(layers, width).items()}
    generator = torch.Generator().manual_seed(0)
    for count in REQUESTS:
        prompts = torch.randint(sizes["vocab_size"], (count, context), generator=generator).tolist()
        calls = {DENSE: way(model, prompts)} | {name: way(radial, prompts) for name, radial in radials.items()}
        run = gs.measure.interleave(calls, baseline=DENSE, reps=settings.reps, warmup=1, seconds=60)
        shares = {name: depth(radial, calls[name]) for name, radial in radials.items()}
        yield {
            "requests": count,
            "context": context,
            "layers": layers,
            "width": width,
            "depth": shares,
            **run.to_dict(),
        }


def rate(row: Row) -> str:
    """Tokens a second of all requests together, where all layers run."""
    return of(None, lambda entry: f"{row['requests'] * STEPS / entry['median']:.1f}")(row)


def gained(name: str) -> Cell:
    """The ratio, and the share of layers that ran."""
    return lambda row: f"{ratio(name)(row)} at {row['depth'][name]:.2f}"


COLUMNS = (
    ("requests", value("requests")), ("dense, tokens/s", rate), (ALL, gained(ALL)),
    *((f"{share}, {how}", gained(f"{share}, {how}")) for share in SHARES for how in (TOGETHER, APART)), CONTROL,
)  # fmt: skip

SECTION = Section(rows, Table(COLUMNS), on_gpu=False)
