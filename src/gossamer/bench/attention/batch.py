"""Requests of many lengths at once: an engine's throughput over that of the same requests one after the other.

A step reads the weights once for all its requests, so decoding gains; a prompt takes its products either way. So there
are two ratios: of decoding behind the prompts, interleaved, and of everything, as the mean of two runs in turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

import gossamer as gs
from gossamer.bench.attention.decoders import SMALL, llama, smollm2, transformers_here
from gossamer.bench.attention.steps import STEPS, Steps, endless, engine, rewind
from gossamer.bench.cells import CONTROL, Cell, of, ratio, short, value
from gossamer.bench.section import MEDIANS, Row, Section, Settings, Table
from gossamer.measure import clock
from gossamer.serving.sparsity import Sparsity

if TYPE_CHECKING:
    from gossamer.serving.engine import Engine
    from gossamer.serving.stepping.jobs import Job

ALONE, TOGETHER = "one after the other", "together"
REQUESTS, NEW, CHUNK = 8, 32, 512  # requests, tokens that each generates, tokens of prompts in a step


def drawn(vocabulary: int, quick: bool) -> list[list[int]]:
    """Prompts of 200 to 1500 tokens."""
    generator = torch.Generator().manual_seed(3)
    low, high = (3, 40) if quick else (200, 1501)
    lengths = torch.randint(low, high, (REQUESTS,), generator=generator).tolist()
    return [torch.randint(vocabulary, (length,), generator=generator).tolist() for length in lengths]


def behind(engine: Engine, prompts: Sequence[list[int]]) -> list[Job]:
    """Requests whose prompts were read, each with one token of its own."""
    jobs = [engine.add(prompt, endless()) for prompt in prompts]
    while not all(job.tokens for job in jobs):
        engine.step()
    for job in jobs:
        rewind(engine, job, len(job.tokens) - 1)
    return jobs


def decoding(model: Any, prompts: Sequence[list[int]]) -> dict[str, Any]:
    """Four steps of each request: alone each in an engine of its own, and all in one."""
    longest = max(map(len, prompts))
    engines = [engine(model, Sparsity(), longest, chunk=CHUNK) for _ in prompts]
    alone = [Steps(each, behind(each, [prompt])) for each, prompt in zip(engines, prompts, strict=True)]
    shared = engine(model, Sparsity(), longest, len(prompts), CHUNK)
    return {
        ALONE: lambda: [made for each in alone for made in each()],
        TOGETHER: Steps(shared, behind(shared, prompts)),
    }


def seconds(engine: Engine, groups: Sequence[Sequence[list[int]]], new: int) -> float:
    """Of all requests of each group in turn, from nothing to their last token."""
    begin = clock.now()
    for group in groups:
        for prompt in group:
            engine.add(prompt, endless(new))
        while engine.busy:
            engine.step()
    return clock.now() - begin


def rows(settings: Settings) -> Iterator[Row]:
    """SmolLM2, or random weights of its sizes where it is not on the machine."""
    if not transformers_here():
        return
    loaded, new = smollm2(settings), 3 if settings.quick else NEW
    if loaded is None:
        model, name = llama(SMALL, torch.float32), "random, of SmolLM2's sizes"
    else:
        model, name = loaded.model, loaded.name
    prompts = drawn(model.config.vocab_size, settings.quick)
    with torch.inference_mode():
        calls = decoding(model, prompts)
        run = gs.measure.interleave(calls, baseline=ALONE, reps=settings.reps, warmup=1, seconds=40)
        whole = engine(model, Sparsity(), max(map(len, prompts)), len(prompts), CHUNK)
        one, all_ = [[prompt] for prompt in prompts], [prompts]
        taken = [seconds(whole, groups, new) for groups in (one, all_, all_, one)]
    yield {
        "model": name, "requests": len(prompts), "prompts": sum(map(len, prompts)),
        "new": new, "alone": (taken[0] + taken[3]) / 2, "together": (taken[1] + taken[2]) / 2, **run.to_dict(),
    }  # fmt: skip


def rate(name: str) -> Cell:
    """Tokens a second while decoding."""

    def cell(row: Row) -> str:
        return of(name, lambda entry: f"{row['requests'] * STEPS / entry['median']:.1f}")(row)

    return cell


COLUMNS = (
    ("model", value("model")), ("requests", value("requests")), ("tokens of prompts", value("prompts", ",")),
    ("decoding, tokens/s alone", rate(ALONE)), ("tokens/s together", rate(TOGETHER)), ("ratio", ratio(TOGETHER)),
    ("with prompts, s alone", value("alone", ".1f")), ("s together", value("together", ".1f")),
    ("ratio", lambda row: f"{row['alone'] / row['together']:.2f}x"), CONTROL,
)  # fmt: skip

BRIEF = (*COLUMNS[:5], ("ratio", short(TOGETHER)), ("with prompts", COLUMNS[8][1]))

SECTION = Section(rows, Table(COLUMNS), {"brief": Table(BRIEF, MEDIANS)}, on_gpu=False)
