"""Measure the cost curves of this machine, in seconds rather than minutes.

Each tile is timed at several densities in turn with the dense product, in one process. What is kept is the least time
of each: whatever else runs on the machine only adds. Where dense and its A/A control still differ, a warning says so.
"""

from __future__ import annotations

import datetime
import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gossamer import ops
from gossamer.measure import interleave
from gossamer.ops import dense
from gossamer.planner.costs import cache as costs_file
from gossamer.planner.costs.cache import Database, Key, Shape
from gossamer.planner.costs.curve import Curve
from gossamer.planner.plan import TILES
from gossamer.planner.tiles import Tile, resolve

SHAPES: dict[str, tuple[Shape, ...]] = {
    "cpu": ((256, 256, 256), (1024, 1024, 256), (2048, 2048, 256), (2048, 1024, 1024)),
    "cuda": ((1024, 1024, 1024), (4096, 4096, 256), (4096, 4096, 4096)),
}
QUICK: dict[str, tuple[Shape, ...]] = {"cpu": ((1024, 1024, 256),), "cuda": ((4096, 4096, 4096),)}
DTYPES = {"cpu": ("float32",), "cuda": ("bfloat16", "float32")}
DENSITIES = (0.0, 1 / 32, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)
_QUICK_DENSITIES = (0.0, 1 / 8, 1 / 2, 1.0)

NOISE = 0.1
_TRIES = 3
_log = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]


def tune(
    device: str = "cpu",
    *,
    quick: bool = False,
    shapes: Sequence[Shape] | None = None,
    tiles: Sequence[Tile] = TILES,
    dtypes: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Database:
    """Measure dense, product, detect and copy at every shape, tile and density. Saves nothing: `database.save()` does.

    Dense is what the fastest engine takes (`gossamer.ops.dense`); each engine's time is kept beside it.

    Args:
        device: "cpu" or "cuda"; the CPU with torch's present number of threads.
        quick: one shape and four densities.
        shapes: (rows, k, n) to measure at; None for a few between 256 and 4096.
        tiles: of the sparse operand; 0 stands for the whole dimension.
        dtypes: names of dtypes; None for those that the kernels of the device are for.
        progress: called as `progress(done, total, what)`.

    Raises:
        RuntimeError: no kernels for the device.
    """
    if shapes is None:
        shapes = (QUICK if quick else SHAPES)[device]
    dtypes = DTYPES[device] if dtypes is None else dtypes
    out = Database(costs_file.machine_of(device), measured=_now())
    steps = [(shape, dtype, tile) for shape in shapes for dtype in dtypes for tile in (None, *tiles)]
    for done, (shape, dtype, tile) in enumerate(steps):
        if progress is not None:
            progress(done, len(steps), _name(shape, dtype, tile))
        densities = _QUICK_DENSITIES if quick else DENSITIES
        measured = _copy(shape, dtype, device) if tile is None else _tile(tile, shape, dtype, device, densities)
        out.curves.update(measured)
    if progress is not None:
        progress(len(steps), len(steps), "done")
    return out


def _name(shape: Shape, dtype: str, tile: Tile | None) -> str:
    return f"{' x '.join(map(str, shape))} {dtype} {'dense' if tile is None else f'tile {tile}'}"


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def _operands(shape: Shape, dtype: str, device: str) -> tuple[Tensor, Tensor]:
    rows, k, n = shape
    generator = torch.Generator().manual_seed(0)
    kind = getattr(torch, dtype)
    s = torch.randn(rows, k, generator=generator, dtype=torch.float32, device="cpu").to(device, kind)
    return s, torch.randn(k, n, generator=generator, dtype=torch.float32, device="cpu").to(device, kind)


def _thinned(s: Tensor, tile: Tile, density: float) -> Tensor:
    """s with a random selection of its tiles left."""
    rows, cols = s.shape
    bm, bk = resolve(tile, (rows, cols))
    generator = torch.Generator().manual_seed(1)
    kept = torch.rand(-(-rows // bm), -(-cols // bk), generator=generator, dtype=torch.float32, device="cpu") < density
    wide = kept.repeat_interleave(bm, 0).repeat_interleave(bk, 1)[:rows, :cols]
    return s * wide.to(s.device)


def _rounds(what: str, calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """The least seconds of each call. Again, and again, if the first call and its A/A control disagree."""
    best: dict[str, float] = {}
    control = math.inf
    for _ in range(_TRIES):
        run = interleave(calls, reps=7, warmup=1, sample=1e-3)
        for row in run.rows:
            best[row.name] = min(row.min, best.get(row.name, math.inf))
        control = min(control, run.control.min)
        first = best[run.baseline]
        if max(first, control) <= (1.0 + NOISE) * min(first, control):
            return best
    _log.warning(
        "%s: two runs of the same product differ by %.0f %%: the machine is busy, and these costs are rough",
        what,
        100.0 * (max(first, control) / min(first, control) - 1.0),
    )
    return best


def _copy(shape: Shape, dtype: str, device: str) -> dict[Key, Curve]:
    s, d = _operands(shape, dtype, device)
    engines = _engines(s, d)
    times = _rounds(_name(shape, dtype, None), {**engines, "copy": lambda: s.t().contiguous()})
    found = {("dense", name): times[name] for name in engines}
    found["matmul", "dense"] = min(found.values())
    found["copy", ""] = times["copy"]
    return {Key(*names, shape, dtype, device): Curve((1.0,), (time,)) for names, time in found.items()}


def _engines(s: Tensor, d: Tensor) -> dict[str, Callable[[], Any]]:
    """The dense product by every engine that `gs.ops.matmul` chooses from; torch's is the first."""
    calls: dict[str, Callable[[], Any]] = {dense.TORCH: partial(torch.matmul, s, d)}
    if s.is_cpu and s.dtype is torch.float32:
        for name, engine in dense.ENGINES.items():
            if name != dense.TORCH and not engine.packs and engine.missing() is None:
                calls[name] = partial(engine.prepare(d.t(), s.shape[0]), s, None)
    return calls


def _tile(tile: Tile, shape: Shape, dtype: str, device: str, densities: Sequence[float]) -> dict[Key, Curve]:
    s, d = _operands(shape, dtype, device)
    elements = resolve(tile, (s.shape[0], s.shape[1]))
    calls: dict[str, Callable[[], Any]] = {"dense": partial(torch.matmul, s, d)}
    found: dict[float, float] = {}
    for density in densities:
        thin = _thinned(s, tile, density)
        index = ops.detect(thin, elements)
        # What is really occupied: of a few tiles drawn at random it is seldom the share asked for.
        found[density] = index.nnz / max(math.prod(index.grid), 1)
        calls[f"matmul {density}"] = partial(ops.matmul, thin, d, index=index)
        calls[f"detect {density}"] = partial(ops.detect, thin, elements)
    times = _rounds(_name(shape, dtype, tile), calls)
    out: dict[Key, Curve] = {}
    for op in ("matmul", "detect"):
        points: dict[float, list[float]] = {}
        for density in densities:
            points.setdefault(found[density], []).append(times[f"{op} {density}"])
        xs = sorted(points)
        out[Key(op, str(tile), shape, dtype, device)] = Curve.fit(xs, [min(points[x]) for x in xs])
    return out
