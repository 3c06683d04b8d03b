"""The two products of the backward pass: S^T c for the dense operand, c b^T at the pattern only for the values."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch

import gossamer as gs
from gossamer.bench import Settings
from gossamer.bench.matmul.operands import draw, normal, square


def _sides(block: int, density: float, settings: Settings) -> dict[str, dict[str, Callable[[], Any]]]:
    size, n = square(settings)
    dense, pattern = draw(size, size, (block, block), density, settings)
    b, c = normal(size, n, settings, seed=1), normal(size, n, settings, seed=2)
    values, transposed = pattern.pack(dense), gs.ops.transpose(pattern)
    return {
        "dense operand": {
            "torch dense": lambda: dense.t() @ c,
            "ours": lambda: gs.ops.dds(c.t(), values, pattern, transposed=transposed).t(),
            "index transposed in the call": lambda: gs.ops.dds(c.t(), values, pattern).t(),
        },
        "values": {"torch dense": lambda: c @ b.t(), "ours": lambda: gs.ops.sdd(c, b.t(), pattern)},
    }


def rows(settings: Settings) -> list[dict[str, Any]]:
    """One row per block size, density and gradient."""
    blocks = (16, 32, 64, 128) if settings.device == "cuda" else (1, 4, 8, 16, 32, 64)
    out = []
    for block, density in product(blocks, (1 / 4, 1 / 10, 1 / 16)):
        for gradient, calls in _sides(block, density, settings).items():
            with torch.inference_mode():
                run = gs.measure.interleave(calls, baseline="torch dense", reps=settings.reps, seconds=4)
            out.append({"gradient": gradient, "block": block, "density": density, **run.to_dict()})
    return out
