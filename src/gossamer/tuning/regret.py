"""How much slower is what the planner chose than the best it could have chosen?

    regret = seconds(chosen) / min over candidates of seconds        1 is perfect

Measured over masks that the curves were not made from: correlated, clustered, skewed, full.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gossamer import ops
from gossamer.measure import clock, interleave
from gossamer.planner.costs.cache import Database
from gossamer.planner.plan import plan
from gossamer.planner.tiles import Tile

Measure = Callable[[Sequence[Tile | None], Tensor, Tensor], Sequence[float]]


@dataclass(frozen=True)
class Case:
    """What was chosen for one mask. Seconds include the search for tiles; `decide` is the plan itself."""

    name: str
    chosen: str
    best: str
    regret: float
    seconds: float
    best_seconds: float
    dense_seconds: float
    decide: float

    @property
    def loss(self) -> float:
        """What the wrong choice cost, as a share of the dense product."""
        return (self.seconds - self.best_seconds) / self.dense_seconds


@dataclass(frozen=True)
class Regret:
    """All masks. A regret of 2 where both products take a fiftieth of dense is a small `loss`."""

    cases: tuple[Case, ...]

    @property
    def median(self) -> float:
        return statistics.median(case.regret for case in self.cases)

    @property
    def max(self) -> float:
        return max(case.regret for case in self.cases)

    @property
    def max_loss(self) -> float:
        return max(case.loss for case in self.cases)

    def to_dict(self) -> dict[str, Any]:
        rows = [{**asdict(case), "loss": case.loss} for case in self.cases]
        return {"median": self.median, "max": self.max, "max_loss": self.max_loss, "rows": rows}

    def __str__(self) -> str:
        lines = [f"{'':28}{'chosen':>16}{'best':>16}{'regret':>8}{'of dense':>10}{'decide':>10}"]
        for case in self.cases:
            lines.append(
                f"{case.name:28}{case.chosen:>16}{case.best:>16}{case.regret:>8.2f}"
                f"{case.seconds / case.dense_seconds:>10.2f}{case.decide * 1e6:>7.0f} us"
            )
        return "\n".join(
            [*lines, f"median {self.median:.2f}, max {self.max:.2f}, worst loss {self.max_loss:.0%} of dense"]
        )


def masks(rows: int, k: int, seed: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Held-out masks bool[rows, k], none of them tiles drawn at random as in tuning."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float32, device="cpu")

    yield "no zeros", torch.ones(rows, k, dtype=torch.bool, device="cpu")
    for density in (0.5, 0.1, 0.01):
        yield f"independent {density:g}", rand(rows, k) < density
    for density in (0.9, 0.5, 0.25, 0.06):
        # Sequences of 64 rows, each full up to its length: padding.
        length = (2 * density * 64 * rand(-(-rows // 64), 1)).clamp(max=64)
        real = (torch.arange(64, device="cpu") < length).reshape(-1, 1)[:rows]
        yield f"padded {density:g}", real.expand(rows, k).clone()
    for density in (0.5, 0.2, 0.05):
        # Features shared by runs of rows, as after a ReLU on similar tokens.
        shared = rand(-(-rows // 40), k) < density
        yield f"shared features {density:g}", shared.repeat_interleave(40, 0)[:rows] & (rand(rows, k) < 0.9)
    # Rows of lengths that fall like 1 / rank, in random order.
    rank = torch.randperm(rows, generator=generator, device="cpu") + 1
    yield "power-law rows", rand(rows, k) < (8.0 / rank).clamp(max=1.0).unsqueeze(1)
    centre = torch.arange(rows, device="cpu").unsqueeze(1) * k // max(rows, 1)
    for width in (k // 32, k // 4):
        yield f"band of {width}", (torch.arange(k, device="cpu") - centre).abs() <= width // 2
    blocks = rand(-(-rows // 48), -(-k // 48)) < 0.1
    yield "blocks of 48", blocks.repeat_interleave(48, 0).repeat_interleave(48, 1)[:rows, :k]
    yield "nothing", torch.zeros(rows, k, dtype=torch.bool, device="cpu")


def measured(tiles: Sequence[Tile | None], a: Tensor, b: Tensor) -> list[float]:
    """Seconds of each alternative, timed in turn on the device of the operands."""
    calls = {str(tile): partial(torch.matmul, a, b) if tile is None else partial(ops.matmul, a, b, tile=tile)
             for tile in tiles}  # fmt: skip
    return [row.min for row in interleave(calls, reps=5, warmup=1, sample=1e-3).rows]


def regret(
    shape: tuple[int, int, int] = (2048, 2048, 256),
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    tiles: Sequence[Tile] | None = None,
    database: Database | None = None,
    measure: Measure = measured,
    seed: int = 0,
) -> Regret:
    """Plan for every held-out mask of (rows, k, n), time every candidate, and compare.

    Args:
        shape: (rows, k, n) of the product; the mask is of the left operand.
        dtype, device: of the operands.
        tiles, database: as in `plan`.
        measure: `measure(tiles, a, b)` -> seconds of each, None being dense. Replace it to test with known costs.
        seed: of masks and operands.
    """
    rows, k, n = shape
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, k, generator=generator, dtype=torch.float32, device="cpu").to(device, dtype)
    b = torch.randn(k, n, generator=generator, dtype=torch.float32, device="cpu").to(device, dtype)
    out = []
    for name, mask in masks(rows, k, seed):
        a = values * mask.to(device)
        plan(a, b, tiles=tiles, database=database)
        start = clock.now()
        choice = plan(a, b, tiles=tiles, database=database)
        decide = clock.now() - start
        ran = [candidate.tile for candidate in sorted(choice.candidates, key=lambda c: c.tile is not None)]
        seconds = dict(zip(ran, measure(ran, a, b), strict=True))
        best = min(seconds, key=lambda tile: seconds[tile])
        out.append(
            Case(
                name, _name(choice.tile), _name(best), seconds[choice.tile] / seconds[best], seconds[choice.tile],
                seconds[best], seconds[None], decide,
            )
        )  # fmt: skip
    return Regret(tuple(out))


def _name(tile: Tile | None) -> str:
    return "dense" if tile is None else f"({tile[0]}, {tile[1]})"
