"""Decoding with a whole model of Llama's shape, with random weights: tokens per second against sparsity.

The weights are random and the quality is therefore nothing; what is measured is the time of a step with everything in
it, attention, norms and the output layer included. See `quality` for what thresholds cost a trained model.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import nn

import gossamer as gs
from gossamer import extras
from gossamer.bench.cells import CONTROL, Column, ratio, short, table, value
from gossamer.bench.section import MEDIANS, Row, Rows, Section, Settings, Table
from gossamer.nn.threshold.linear import store_by_input

DENSE, OURS = "dense", "ours"
CONTEXT, TOKENS = 32, 16


def llama(quick: bool) -> nn.Module | None:
    """TinyLlama's layers, six of them, and a small vocabulary so that the output layer weighs what it does in 22."""
    transformers = extras.compared("transformers", "transformers", "hf")
    if transformers is None:
        return None
    config = transformers.LlamaConfig(
        vocab_size=256 if quick else 8192, hidden_size=64 if quick else 2048, intermediate_size=128 if quick else 5632,
        num_hidden_layers=2 if quick else 6, num_attention_heads=4 if quick else 32,
        num_key_value_heads=2 if quick else 4, max_position_embeddings=256,
    )  # fmt: skip
    torch.manual_seed(6)
    return transformers.LlamaForCausalLM(config).eval()


def step(model: nn.Module, ids: torch.Tensor) -> Callable[[], torch.Tensor]:
    """A function that decodes one of the last tokens in turn, always behind the same ones before."""
    cache = model(ids[:, :CONTEXT], use_cache=True).past_key_values
    tokens = itertools.cycle(ids[:, CONTEXT:].split(1, 1))

    def run() -> torch.Tensor:
        logits = model(next(tokens), past_key_values=cache, use_cache=True).logits
        cache.crop(-1)
        return logits

    return run


def rows(settings: Settings) -> Iterator[Row]:
    """One row per setting of thresholds; the baseline is the dense model in torch's faster memory order."""
    dense = llama(settings.quick)
    if dense is None:
        return
    ours = copy.deepcopy(dense)
    vocabulary = dense.get_parameter("model.embed_tokens.weight").shape[0]
    generator = torch.Generator().manual_seed(7)
    data = torch.randint(vocabulary, (1, 32 if settings.quick else 128), generator=generator)
    ids = torch.randint(vocabulary, (1, CONTEXT + TOKENS), generator=generator)
    with torch.inference_mode():
        order = _faster_order(dense, ids)
        base = step(dense, ids)
    gs.nn.gated(ours, reorder=True)
    thresholds: tuple[tuple[str, float, float | None], ...] = (
        ("every linear 0 %", 0.0, 0.0), ("every linear 25 %", 0.25, 0.25), ("every linear 40 %", 0.4, 0.4),
        ("every linear 50 %", 0.5, 0.5), ("gates 92 %, the rest torch's", 0.92, None),
        ("gates 92 %, other inputs 0 %", 0.92, 0.0), ("gates 92 %, other inputs 50 %", 0.92, 0.5),
    )  # fmt: skip
    for name, gates, rest in thresholds:
        report = _apply(ours, data, gates, rest)
        with torch.inference_mode():
            run = gs.measure.interleave({DENSE: base, OURS: step(ours, ids)}, reps=settings.reps, seconds=8)
        stats = report.stats()
        used = sum(row.bytes * stats[row.name]["density"] for row in report.rows)
        yield {
            "sparsity": name, "dense order": order, **run.to_dict(),
            "tokens_per_second": {row.name: 1 / row.median for row in run.rows},
            "expected": report.sparsity, "realised": 1 - used / report.bytes,
            "share_of_bytes": report.bytes / _bytes(dense),
        }  # fmt: skip
        report.undo()


def _apply(model: nn.Module, data: torch.Tensor, gates: float, rest: float | None) -> gs.nn.ThresholdReport:
    """One sparsity on the gates, another on the inputs of the linears; None leaves those to torch."""
    calls = {"input_ids": data, "use_cache": False}
    if gates == rest:
        return gs.nn.threshold(model, calls, gates, reorder=True)
    report = gs.nn.threshold(model, calls, gates, layers=["*.mlp"])
    if rest is None:
        return report
    rows = {row.name: row for row in report.rows}
    report.undo()
    report = gs.nn.threshold(model, calls, rest, layers=["*_proj"])
    rows |= {row.name: row for row in report.rows}
    report.undo()
    report = gs.nn.apply_thresholds(model, {name: row.threshold for name, row in rows.items()}, reorder=True)
    report.rows = tuple(replace(row, sparsity=rows[row.name].sparsity) for row in report.rows)
    return report


def _faster_order(model: nn.Module, ids: torch.Tensor) -> str:
    """Leave the model's linears in the memory order in which torch decodes faster."""
    other = copy.deepcopy(model)
    linears = [module for module in other.modules() if isinstance(module, nn.Linear)]
    for linear in linears:
        store_by_input(linear)
    run = gs.measure.interleave({"by output": step(model, ids), "by input": step(other, ids)}, reps=5, warmup=1)
    if run["by input"].ratio <= 1:
        return "by output"
    for linear in (module for module in model.modules() if isinstance(module, nn.Linear)):
        store_by_input(linear)
    return "by input"


def _bytes(model: nn.Module) -> int:
    """Of the weights that a decoded token reads: all but the embedding."""
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return sum(linear.weight.numel() * linear.weight.element_size() for linear in linears)


def _speed(head: str, name: str) -> Column:
    return head, lambda row: f"{row['tokens_per_second'][name]:.1f}"


SPEEDS = (("left out", value("sparsity")), _speed("dense tokens/s", DENSE), _speed("tokens/s", OURS))
SHARE = ("share of the weights read", lambda row: f"{1 - row['realised'] * row['share_of_bytes']:.0%}")
COLUMNS = (SPEEDS[0], SHARE, *SPEEDS[1:], ("ratio", ratio(OURS)), CONTROL)


def brief(rows: Rows) -> str:
    """Every third setting: nothing left out, half of everything, closed gates too."""
    return table(rows[::3], [*SPEEDS, ("ratio", short(OURS))])


SECTION = Section(rows, Table(COLUMNS), {"brief": Table(brief, note=MEDIANS)}, on_gpu=False)
