"""A layer of experts of transformers: its own implementations and experts_implementation="gossamer".

Weights are random, and so is who goes where: *zipf* sends a share in proportion to 1 / e to expert e. The baseline is
the fastest of transformers' own implementations, found by a few calls before the clock starts. Beside it stands what no
product can do without: reading the weights of the chosen experts once, timed in the same rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import gossamer as gs
from gossamer.bench.attention.decoders import transformers_here
from gossamer.bench.cells import CONTROL, Column, entry, milliseconds, of, ratio, value
from gossamer.bench.matmul.experts import zipf
from gossamer.bench.section import Row, Section, Settings, Table
from gossamer.compile.mixtures.experts import NAME as OURS

OWN = ("eager", "batched_mm", "grouped_mm")
READ = "reading the weights"
MOST_COPIES = 64  # entries for which batched_mm copies a matrix each; above that it takes seconds
Calls = dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class Cell:
    """One layer and its tokens."""

    form: str
    experts: int
    k: int
    tokens: int
    routing: str
    step: str = "forward"


def cells(full: bool) -> Iterator[Cell]:
    """64 experts, one a token, and some others beside them; `full`: every combination."""
    lengths, routings = (1, 32, 512, 2048), ("zipf", "uniform", "all to one")
    if full:
        for form in ("ReLU", "SwiGLU"):
            for count in (8, 64, 128):
                yield from (Cell(form, count, k, t, r) for k in (1, 2) for t in lengths for r in routings)
    else:
        yield from (Cell("ReLU", 64, 1, t, r) for r in routings for t in lengths)
        yield from (Cell("ReLU", 64, 2, t, "zipf") for t in (32, 512))
        yield from (Cell("ReLU", count, 1, t, "zipf") for count in (8, 128) for t in (32, 512))
        yield from (Cell("SwiGLU", 64, 1, t, "zipf") for t in (1, 32, 512))
    yield from (Cell("ReLU", count, 1, 512, "zipf", "forward and backward") for count in (8, 64))


def layer(cell: Cell, settings: Settings) -> Any:
    """Experts of transformers of 768-3072-768, with a gate (SwiGLU) or without one (ReLU)."""
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts
    from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts

    dim, hidden = (32, 64) if settings.quick else (768, 3072)
    config: Any = SimpleNamespace(
        hidden_size=dim, intermediate_size=hidden, moe_intermediate_size=hidden, moe_latent_size=None,
        hidden_act="silu", mlp_hidden_act="relu", num_local_experts=cell.experts, n_routed_experts=cell.experts,
        _experts_implementation=OURS,
    )  # fmt: skip
    made: Any = (MixtralExperts if cell.form == "SwiGLU" else NemotronHExperts)(config)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return made.to(settings.device).requires_grad_(cell.step != "forward")


def routed(cell: Cell) -> Tensor:
    """int64[tokens, k]: which experts each token goes to, all different."""
    experts = torch.arange(cell.experts)
    if cell.routing == "all to one":
        return experts[: cell.k].repeat(cell.tokens, 1)
    if cell.k == 1 and cell.routing == "zipf":
        return zipf(cell.tokens, cell.experts).unsqueeze(1)
    if cell.k == 1:
        return (torch.arange(cell.tokens) % cell.experts).unsqueeze(1)
    share = 1.0 / (experts + 1) if cell.routing == "zipf" else torch.ones(cell.experts)
    return torch.multinomial(share.expand(cell.tokens, -1), cell.k, generator=torch.Generator().manual_seed(0))


def calls_of(module: Any, cell: Cell, settings: Settings) -> tuple[Calls, Row]:
    """Every implementation at one routing; and what the row says of it."""
    ids = routed(cell).to(settings.device)
    weights = torch.rand(cell.tokens, cell.k, device=settings.device)
    x = torch.randn(
        cell.tokens, module.down_proj.shape[1], device=settings.device, requires_grad=cell.step != "forward"
    )

    def by(name: str) -> Callable[[], Any]:
        def call() -> Any:
            module.config._experts_implementation = name
            if cell.step == "forward":
                with torch.no_grad():
                    return module(x, ids, weights)
            y = module(x, ids, weights)
            return torch.autograd.grad(y, [x, *module.parameters()], torch.ones_like(y))

        return call

    used = ids.unique()
    matrices = [parameter.detach()[e] for parameter in module.parameters() for e in used.tolist()]
    numbers = sum(matrix.numel() for matrix in matrices) // len(used)
    facts = {
        "used": len(used), "gigabytes": numbers * len(used) * 4 / 1e9,
        "gflop": 2 * cell.tokens * cell.k * numbers * (1 if cell.step == "forward" else 3) / 1e9,
    }  # fmt: skip
    calls = {name: by(name) for name in OWN if name != "batched_mm" or cell.tokens * cell.k <= MOST_COPIES}
    calls[OURS] = by(OURS)
    if settings.device == "cpu":
        from gossamer.kernels.cpu.read import read

        calls[READ] = lambda: [read(matrix) for matrix in matrices]
    return calls, facts


def rows(settings: Settings) -> Iterator[Row]:
    """One row per cell; cells of one layer follow each other and share it."""
    if not transformers_here():
        return
    made: tuple[Any, Any] = (None, None)
    for cell in quick_cells() if settings.quick else cells(settings.full):
        torch.manual_seed(0)
        key = cell.form, cell.experts, cell.step
        if made[0] != key:
            made = (None, None)  # gigabytes, which go before the next ones come
            made = key, layer(cell, settings)
        calls, facts = calls_of(made[1], cell, settings)
        own = {name: call for name, call in calls.items() if name in OWN}
        trial = gs.measure.interleave(own, reps=1, warmup=1)
        best = min(own, key=lambda name: trial[name].min)
        run = gs.measure.interleave(calls, baseline=best, reps=settings.reps, warmup=1, seconds=4)
        yield {**vars(cell), **facts, **run.to_dict()}


def quick_cells() -> Iterator[Cell]:
    for form in ("ReLU", "SwiGLU"):
        yield from (Cell(form, 4, k, 8, r) for k in (1, 2) for r in ("zipf", "uniform", "all to one"))
        yield Cell(form, 4, 1, 8, "zipf", "forward and backward")


def _rate(row: Row) -> str:
    ours = entry(row, OURS)
    return "" if ours is None else f"{row['gflop'] / ours['median']:.0f}"


def _reads(row: Row) -> str:
    """Our time in times of reading the chosen weights once."""
    ours, read = entry(row, OURS), entry(row, READ)
    return "" if ours is None or read is None else f"{ours['median'] / read['median']:.2f}"


COLUMNS: tuple[Column, ...] = (
    ("", value("form")), ("experts", value("experts")), ("top", value("k")), ("tokens", value("tokens", ",")),
    ("routing", value("routing")), ("step", value("step")), ("chosen", value("used")),
    ("fastest of transformers' own", lambda row: row["baseline"]), ("ms", milliseconds()),
    (f"`{OURS}`", ratio(OURS)), *((f"`{name}`", of(name, lambda e: f"{e['ratio']:.2f}x")) for name in OWN),
    ("GFLOP/s", _rate), ("in readings of the chosen weights", _reads), CONTROL,
)  # fmt: skip

SECTION = Section(rows, Table(COLUMNS))
