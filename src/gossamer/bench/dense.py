"""The dense baseline of products: the fastest engine that a user can get at a shape (`gossamer.ops.dense`).

Every row says how fast each of them was. An engine that packs an operand takes part where that operand is constant in
use, as a weight is; packing is then not timed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

import gossamer as gs
from gossamer.bench.section import Row, Settings
from gossamer.ops.dense import ENGINES, TORCH, Engine

_REPS, _SECONDS = 7, 1.5
_SETTLE = 24  # calls in which a call site has settled
_CUBE = 1536  # of the product whose best rate counts as the machine's peak: 27 MB of operands

Call = Callable[[], Any]


def engines(a: Tensor, b: Tensor, constant: Literal["a", "b"] | None = None) -> dict[str, Call]:
    """a @ b by every engine, torch's first. With a constant `a` a packing engine returns the result column-major."""
    calls: dict[str, Call] = {TORCH: lambda: a @ b}
    if a.device.type != "cpu" or a.dtype is not torch.float32:
        return calls
    for name, engine in ENGINES.items():
        if name != TORCH and engine.missing() is None and (constant or not engine.packs):
            calls[name] = _by(engine, a, b, turned=engine.packs and constant == "a")
    return calls


def _by(engine: Engine, a: Tensor, b: Tensor, turned: bool) -> Call:
    """a @ b, or the transpose of b^T @ a^T, so that a is what the engine packs."""
    if turned:
        run = engine.prepare(a, b.shape[1])
        return lambda: run(b.t(), None).t()
    run = engine.prepare(b.t(), a.shape[0])
    return lambda: run(a, None)


def use_fastest(
    calls: dict[str, Call], name: str, settings: Settings, a: Tensor, b: Tensor,
    constant: Literal["a", "b"] | None = None,
) -> Row:  # fmt: skip
    """Make `calls[name]`, which is a @ b, that of the engine which a few interleaved rounds find the fastest.

    Returns:
        What a row says of it: {"engine": its name, "engines": {name: GFLOP/s of its median}}.
    """
    found = engines(a, b, constant)
    return choose(found, calls, name, settings, 2 * a.shape[0] * a.shape[1] * b.shape[1])


def choose(found: dict[str, Call], calls: dict[str, Call], name: str, settings: Settings, operations: int) -> Row:
    """As `use_fastest`, of products made elsewhere."""
    run = gs.measure.interleave(found, reps=1 if settings.quick else _REPS, warmup=1, seconds=_SECONDS)
    rates = {row.name: operations / row.median / 1e9 for row in run.rows}
    best = max(rates, key=lambda each: rates[each])
    calls[name] = found[best]
    return {"engine": best, "engines": rates}


def over_dense(
    calls: dict[str, Call], settings: Settings, a: Tensor, b: Tensor, constant: Literal["a", "b"] | None = None,
    *, name: str = "dense", seconds: float,
) -> Row:  # fmt: skip
    """Interleaved rounds of all calls over the fastest dense product, which becomes `calls[name]`."""
    with torch.inference_mode():
        facts = use_fastest(calls, name, settings, a, b, constant)
        run = gs.measure.interleave(calls, baseline=name, reps=settings.reps, seconds=seconds)
    return {**facts, **run.to_dict()}


def settle(settings: Settings, call: Call) -> None:
    """Call as often as it takes until the plan and the dense engine of a call site have settled."""
    for _ in range(0 if settings.quick else _SETTLE):
        call()


def peak(settings: Settings) -> Row:
    """The best rate of a large dense float32 product here, of any engine: what shares of a peak refer to.

    Measured, not computed from a data sheet: clocks under load and a machine's neighbours are in it.
    """
    if settings.device != "cpu":
        return {}
    size = 256 if settings.quick else _CUBE
    a, b = torch.randn(size, size), torch.randn(size, size)
    with torch.inference_mode():
        run = gs.measure.interleave(engines(a, b, "b"), reps=3 if settings.quick else 15, warmup=1, seconds=10)
    rates = {row.name: 2 * size**3 / row.min / 1e9 for row in run.rows}
    best = max(rates, key=lambda name: rates[name])
    return {"gflops": rates[best], "engine": best, "size": size}


def named(where: Row) -> str:
    """The microarchitecture, for the foot of a table; nothing where a result does not know it."""
    name = where.get("microarchitecture")
    return f", {name}" if name else ""


def shares(where: Row, rows: list[Row]) -> str:
    """For the foot of a table: which engines the dense baselines are, and what share of the peak they reached."""
    top = where.get("peak")
    found = [each for row in rows for each in (row, *row.get("points", ())) if "engines" in each]
    if not top or not found:
        return ""
    used = ", ".join(sorted({each["engine"] for each in found}))
    rates = [each["engines"][each["engine"]] / top["gflops"] for each in found]
    return (
        f" Dense is its fastest engine ({used}), at {min(rates):.0%} to {max(rates):.0%} of "
        f"{top['gflops']:.0f} GFLOP/s, the best product of {top['size']}^3 here, by {top['engine']}."
    )
