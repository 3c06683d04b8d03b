"""Models without a zero to leave out: the backend is to cost nothing beside inductor, at run time and in compiling.

A multilayer perceptron with GELU, a vision transformer and a decoder like Llama. A model with ReLUs whose zeros are too
few stands in `feed_forward`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer.bench.attention.decoders import TOY, llama, transformers_here
from gossamer.bench.cells import ratio, value
from gossamer.bench.compile import ways
from gossamer.bench.compile.ways import EAGER, INDUCTOR, OURS
from gossamer.bench.section import Row, Section, Settings, Table

SMALL_LLAMA = {
    "vocab_size": 4096, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6,
    "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 2048,
}  # fmt: skip

Model = tuple[nn.Module, Tensor, dict[str, Any]]


def perceptron(settings: Settings) -> Model:
    width = 32 if settings.quick else 1024
    layers = [nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.LayerNorm(width)]
    model = nn.Sequential(*layers, nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
    return model, torch.randn(256, width), {}


def vision(settings: Settings) -> Model:
    sizes = {"dim": 32, "depth": 2, "heads": 2} if settings.quick else {"dim": 384, "depth": 6, "heads": 6}
    return gs.models.build("vit", (3, 32, 32), 10, **sizes), torch.randn(8, 3, 32, 32), {}


def decoder(settings: Settings) -> Model:
    sizes = TOY if settings.quick else SMALL_LLAMA
    tokens = torch.randint(sizes["vocab_size"], (2, 128), generator=torch.Generator().manual_seed(0))
    return llama(sizes, torch.float32), tokens, {"use_cache": False}


MODELS: dict[str, Callable[[Settings], Model]] = {"perceptron": perceptron, "vision": vision, "decoder": decoder}


def _run(way: Callable[..., Any], x: Tensor, options: dict[str, Any]) -> Any:
    with torch.no_grad():
        found = way(x, **options)
    return found if isinstance(found, Tensor) else found.logits


def rows(settings: Settings) -> Iterator[Row]:
    for name, make in MODELS.items():
        if name == "decoder" and not transformers_here():
            continue
        torch.manual_seed(0)
        model, x, options = make(settings)
        model.eval().requires_grad_(False)
        found = ways.compiled(model, names=(EAGER, INDUCTOR, OURS))
        calls = {each: partial(_run, way, x, options) for each, way in found.items()}
        yield {"model": name, **ways.measured(calls, settings), "compile": compile_times(model, x, options, settings)}


def compile_times(model: nn.Module, x: Tensor, options: dict[str, Any], settings: Settings) -> dict[str, float]:
    """Seconds of the first call of inductor and of ours, the least of two in turn, with nothing kept from before."""
    import torch._inductor.config as inductor

    least: dict[str, float] = {}
    with inductor.patch(force_disable_caches=True):
        for _ in range(1 if settings.quick else 2):
            for name in (INDUCTOR, OURS):
                way = ways.compiled(model, names=(name,))[name]
                begin = gs.measure.clock.now()
                _run(way, x, options)
                least[name] = min(least.get(name, float("inf")), gs.measure.clock.now() - begin)
    return least


COLUMNS = (
    ("model", value("model")), ("fastest dense", ways.best_dense), (f"`{INDUCTOR}`", ratio(INDUCTOR)),
    (f"`{OURS}`", ratio(OURS)), ("compiled in", ways.compile_time()),
)  # fmt: skip

SECTION = Section(rows, Table(ways.with_summary(COLUMNS)), on_gpu=False)
