"""A call site's memory: look now and then, and change one's mind only for a clear and repeated gain.

call        0      1 ... 15   16            17            18 ... 32
evaluates   yes    -          yes           yes           -
decision    A      A          A: B gains    B: again      B

Samples are averaged, but not over a leap: one that is far from the mean starts anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.planner.costs import cache as costs_file
from gossamer.planner.costs.occupancy import Window
from gossamer.planner.plan import Axis, Plan, Sparse, choose, decide, look
from gossamer.planner.tiles import Tile

LEAP = 0.2
"""A covered fraction that is so far from the mean of the window is another density, not noise of sampling."""


@dataclass
class _Site:
    plan: Plan
    window: Window
    tiles: tuple[Tile, ...]
    left: int = 0
    turn: int = 0
    streak: int = 0


class Planner:
    """Plans for the products of one or more call sites, decided from samples taken every so many calls.

    A site is told from others by the shapes, strides and dtype of the operands, the address of `b`'s memory (which
    tells layers apart that are alike but for their weights), and the number of threads.

    Args:
        tiles, axis: as in `plan`.
        every: calls between two looks at the operand.
        gain: a new choice must be cheaper than the present one by more than this fraction ...
        patience: ... in this many evaluations in a row. While a change is pending every call evaluates.
        window: samples whose mean is used.
        most_sites: sites remembered; when there are more, all are forgotten.

    >>> planner = Planner(axis="m", database=costs_file.Database({"threads": 2, "isa": "avx2"}))
    >>> a, b = torch.zeros(1024, 1024), torch.ones(1024, 1024)
    >>> planner(a, b).kind, planner(a, b) is planner(a, b), planner.evaluations
    ('m', True, 1)
    """

    def __init__(
        self,
        *,
        tiles: Sequence[Tile] | None = None,
        axis: Axis = "auto",
        every: int = 16,
        gain: float = 0.05,
        patience: int = 2,
        window: int = 4,
        most_sites: int = 1024,
        database: costs_file.Database | None = None,
    ) -> None:
        for name, value in (("every", every), ("patience", patience), ("window", window), ("most_sites", most_sites)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an int of at least 1, got {value!r}")
        if not gain >= 0.0:
            raise ValueError(f"gain must be a fraction of at least 0, got {gain}")
        self.tiles, self.axis, self.every, self.gain, self.patience = tiles, axis, every, gain, patience
        self.window, self.most_sites, self.database = window, most_sites, database
        self.evaluations = 0
        self._sites: dict[object, _Site] = {}

    def __call__(self, a: Tensor, b: Tensor, sparse: Sparse = "a") -> Plan:
        """The plan for a @ b now: the one in force, or a fresh look at the operand."""
        site = self._sites.get(_key(a, b, sparse))
        if site is not None and site.left > 0:
            site.left -= 1
            return site.plan
        return self._evaluate(a, b, sparse, site)

    def reconsider(self, a: Tensor, b: Tensor, sparse: Sparse = "a") -> None:
        """Look again at the next call, and forget the samples: for callers that found more tiles than they promised.

        `gs.ops.matmul` says so. Such an operand is another one than before, or memory that another one had.
        """
        site = self._sites.get(_key(a, b, sparse))
        if site is not None:
            site.left, site.window = 0, Window(self.window)

    def _evaluate(self, a: Tensor, b: Tensor, sparse: Sparse, site: _Site | None) -> Plan:
        seen = look(a, b, sparse, self.tiles, self.axis, self.database, site.turn if site else 0, self.every)
        self.evaluations += 1
        tiles = tuple(seen.prices.products)
        if site is None:
            if len(self._sites) >= self.most_sites:
                self._sites.clear()
            window = Window(self.window)
            best = decide(seen, window.add(seen.fractions))
            site = self._sites[_key(a, b, sparse)] = _Site(best, window, tiles)
        else:
            # Other candidates were assigned, or `gossamer tune` ran in between; or the density leapt.
            if site.tiles != tiles or _far(seen.fractions, site.window.mean()):
                site.tiles, site.window = tiles, Window(self.window)
            site.plan = self._settle(site, decide(seen, site.window.add(seen.fractions)))
        site.turn += 1
        # A pending change is confirmed or dropped at the next call, not `every` calls later.
        site.left = 0 if site.streak else self.every - 1
        return site.plan

    def _settle(self, site: _Site, best: Plan) -> Plan:
        """`best`, or the present choice at its new price if the gain is small or too new."""
        now = (site.plan.kind, site.plan.tile)
        present = next((c for c in best.candidates if (c.kind, c.tile) == now), None)
        if present is None or (best.kind, best.tile) == now:
            site.streak = 0
            return best
        gain = present.total / best.candidates[0].total - 1.0
        site.streak = site.streak + 1 if gain > self.gain else 0
        if site.streak >= self.patience:
            site.streak = 0
            return best
        why = f"kept: the cheapest gains {gain:.0%}"
        why += f", {site.streak} of {self.patience} times in a row" if site.streak else f", not above {self.gain:.0%}"
        return choose(best, present, why)


def _far(fractions: Sequence[float], others: Sequence[float]) -> bool:
    return any(abs(x - y) > LEAP for x, y in zip(fractions, others, strict=False))  # no others yet: not far


def _key(a: Tensor, b: Tensor, sparse: Sparse) -> tuple[object, ...]:
    return (sparse, a.shape, a.stride(), b.shape, b.stride(), a.dtype, b.data_ptr(), torch.get_num_threads())
