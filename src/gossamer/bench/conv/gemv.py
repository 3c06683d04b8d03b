"""One row times a matrix, as decoding does it, with zeros in the row or closed gates on the result.

The weights rotate over copies that no cache holds together and the mask is drawn anew for every call: with one matrix
and one mask the rows that are read stay in the cache, and a benchmark shows several times what decoding gets.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import gossamer as gs
from gossamer.bench.cells import CONTROL, milliseconds, ratio, value
from gossamer.bench.dense import choose
from gossamer.bench.section import Row, Section, Settings, Table
from gossamer.ops.dense import ENGINES

SHAPES = ((4096, 11008), (11008, 4096))  # features in, features out: the feed-forward block of a 7B Llama
ZEROS = (0.0, 0.3, 0.5, 0.7, 0.9)
COPIES, DRAWS = 8, 64
BASELINES = ("torch, by output", "torch, by input")
OTHERS = ("onednn", "onednn packed", "gossamer")
SKIP, GATED = "skip_mv", "gated_mv"


def _turn(values: list[Any]) -> Callable[[], Any]:
    """A function that returns the next of them, for ever."""
    return partial(next, itertools.cycle(values))


def _copies(weight: Tensor) -> Callable[[], Tensor]:
    return _turn([weight.clone() for _ in range(COPIES)])


def candidates(
    inputs: int, outputs: int, batch: int, zeros: float, copies: dict[str, Any], like: dict[str, Any]
) -> dict[str, Any]:
    """torch's product in both orders, the other dense engines, and ours; each with masks and copies of its own."""
    generator = torch.Generator().manual_seed(5)

    def drawn(width: int) -> Callable[[], Tensor]:
        masks = torch.rand(DRAWS, batch, width, generator=generator) >= zeros
        return _turn(list((torch.randn(DRAWS, batch, width, generator=generator) * masks).to(**like)))

    by_output, by_input = copies["output"], copies["input"]
    first, second, third, fourth = (drawn(inputs) for _ in range(4))
    gate = drawn(outputs)
    return {
        BASELINES[0]: lambda: F.linear(first(), by_output()),
        BASELINES[1]: lambda: F.linear(second(), by_input().t()),
        SKIP: lambda: gs.ops.skip_mv(third(), by_input()),
        GATED: lambda: gs.ops.gated_mv(fourth(), by_output(), gate()),
        **_engines(batch, copies["whole"], drawn),
    }


def _engines(batch: int, weights: list[Tensor], drawn: Callable[[int], Callable[[], Tensor]]) -> dict[str, Any]:
    """The other dense engines of this machine, each with copies of its own, stored by output."""
    out: dict[str, Any] = {}
    if weights[0].is_cuda:
        return out
    for name in OTHERS:
        engine = ENGINES[name]
        if engine.missing() is None:
            x, turn = drawn(weights[0].shape[1]), _turn([engine.prepare(weight, batch) for weight in weights])
            out[name] = lambda x=x, turn=turn: turn()(x(), None)  # bound now, not later
    return out


@torch.inference_mode()
def rows(settings: Settings) -> Iterator[Row]:
    """One row per shape, rows at once and share of zeros; ratios are over the fastest dense product."""
    # The dtype that people decode in: 16 bits on a GPU.
    like: dict[str, Any] = {
        "device": settings.device,
        "dtype": torch.bfloat16 if settings.device == "cuda" else torch.float32,
    }
    for inputs, outputs in ((64, 96),) if settings.quick else SHAPES:
        weight = torch.randn(inputs, outputs, generator=torch.Generator().manual_seed(4)) / 64
        weight = weight.to(**like)
        by_output = [weight.t().contiguous() for _ in range(COPIES)]
        copies = {"input": _copies(weight), "output": _turn(by_output), "whole": by_output}
        batches, shares = (1, 2, 4, 8) if settings.full else (1, 4), (0.0, 0.9) if settings.quick else ZEROS
        for batch, zeros in product(batches, shares):
            calls = candidates(inputs, outputs, batch, zeros, copies, like)
            found = {name: calls[name] for name in (*BASELINES, *OTHERS) if name in calls}
            facts = choose(found, {}, "", settings, 2 * batch * inputs * outputs)
            run = gs.measure.interleave(calls, baseline=facts["engine"], reps=settings.reps, seconds=4)
            yield {"in": inputs, "out": outputs, "batch": batch, "zeros": zeros, **facts, **run.to_dict()}


COLUMNS = (
    ("features", lambda row: f"{row['in']} to {row['out']}"), ("rows", value("batch")),
    ("zeros", value("zeros", ".0%")), *((f"{name.replace(',', '')} ms", milliseconds(name)) for name in BASELINES),
    ("over", value("baseline")), *((f"`{name}`", ratio(name)) for name in (SKIP, GATED)), CONTROL,
)  # fmt: skip


SECTION = Section(rows, Table(COLUMNS))
