"""The call sites of products whose operand may hold zeros: one `Tuner` each, whose prior are the cost curves.

call        0      1 ... 15   16            17            18 ... 32
evaluates   yes    -          yes           yes           -
decision    A      A          A: B gains    B: again      B
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from gossamer.measure import GAIN
from gossamer.planner.costs import cache as costs_file
from gossamer.planner.plan import LEAST_WORK, Axis, Observation, Plan, Sparse, choose, decide, observe
from gossamer.planner.tiles import Tile
from gossamer.planner.tuner.trial import DENSE
from gossamer.planner.tuner.tuner import Tuner

Report = Callable[[float], None]
_PRODUCT = "product"


class _CallSite:
    """One call site: its tuner, the plan in force, and the memory of b that it belongs to."""

    def __init__(self, b: Tensor, tuner: Tuner) -> None:
        self.tuner = tuner
        self.plan: Plan | None = None
        self.turn = 0
        self.move_to(b)

    def move_to(self, b: Tensor) -> None:
        # While it is held, no other storage gets this one's address, so that the address is the storage's name.
        self.memory = StorageWeakRef(b.untyped_storage())
        self.calls = 0


class Planner:
    """Plans for the products of one or more call sites, decided from samples taken every so many calls.

    A site is told from others by the shapes, strides and dtype of the operands, the number of threads, and the memory
    of `b`, which tells layers apart that are alike but for their weights. Memory that is used again, at the same
    address, is another's. Operands that live for one call, such as activations, follow one another as one site.

    Args:
        tiles, axis: as in `plan`.
        every: calls between two samples of the operand.
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
        gain: float = GAIN,
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
        self._sites: dict[object, dict[object, _CallSite]] = {}  # by shapes, and by memory
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, or one read back from a file, knows no call site."""
        names = ("tiles", "axis", "every", "gain", "patience", "window", "most_sites", "database")
        return partial(Planner, **{name: getattr(self, name) for name in names}), ()

    def __call__(self, a: Tensor, b: Tensor, sparse: Sparse = "a") -> Plan:
        """The plan for a @ b now: the one in force, or that of a fresh sample of the operand."""
        return self.ask(a, b, sparse, False)[0]

    def ask(self, a: Tensor, b: Tensor, sparse: Sparse = "a", reports: bool = True) -> tuple[Plan, Report | None]:
        """The plan for a @ b, and now and then a function that wants to know the seconds that it took.

        What it hears puts the costs right: that a prior, or a curve of another day, has wrong. On an accelerator it
        would take a sync, and nothing is asked.
        """
        shapes, memory = _key(a, b, sparse)
        alike = self._sites.get(shapes)
        site = None if alike is None else alike.get(memory) or self._successor(alike, memory, b)
        if site is not None and site.plan is not None and site.tuner.bypassed(self.axis) is not None:
            site.calls += 1
            return site.plan, None
        with self._lock:
            return self._evaluate(a, b, sparse, reports and a.device.type == "cpu")

    def reconsider(self, a: Tensor, b: Tensor, sparse: Sparse = "a") -> None:
        """Sample again at the next call, and forget the samples: for callers that found more tiles than they promised.

        `gs.ops.matmul` says so. Such an operand is another one than before.
        """
        shapes, memory = _key(a, b, sparse)
        site = self._sites.get(shapes, {}).get(memory)
        if site is not None:
            site.tuner.forget()

    def explain(self) -> str:
        """The plan in force at each call site, for a person."""
        with self._lock:
            plans = [str(site.plan) for alike in self._sites.values() for site in alike.values()]
        return "\n\n".join(plans) or "no product was planned yet"

    def _evaluate(self, a: Tensor, b: Tensor, sparse: Sparse, reports: bool) -> tuple[Plan, Report | None]:
        shapes, memory = _key(a, b, sparse)
        site = self._sites.get(shapes, {}).get(memory)
        # One sample serves `every` calls, if they come: of memory that is new nobody knows.
        calls = 1 if site is None else self.every
        seen = observe(a, b, sparse, self.tiles, self.axis, self.database, site.turn if site else 0, calls)
        self.evaluations += 1
        if site is None:
            if sum(map(len, self._sites.values())) >= self.most_sites:
                self._sites.clear()
            site = self._sites.setdefault(shapes, {})[memory] = _CallSite(b, self._tuner(()))
        reports = reports and bool(seen.fractions)  # else there is nothing to compare
        site.turn += 1
        site.calls += 1
        chosen, site.plan = self._choose(site, seen, reports)
        if not seen.fractions and calls == 1 and seen.prices.dense * self.every >= LEAST_WORK:
            site.tuner.forget()  # dense for now; a second call is worth a sample
        return site.plan, partial(site.tuner.observe, _PRODUCT, chosen) if reports else None

    def _choose(self, site: _CallSite, seen: Observation, reports: bool) -> tuple[str, Plan]:
        tiles: dict[str, Tile] = {str(tile): tile for tile in seen.prices.products}
        means: dict[str, float] = {}

        def price(question: str, name: str, occupied: Mapping[str, float]) -> float:
            means.update(occupied)
            return seen.candidate(tiles.get(name), occupied.get(name)).total

        if not set(tiles) <= set(site.tuner.alternatives[_PRODUCT]):
            site.tuner = self._tuner(tiles)
        occupied = dict(zip(tiles, seen.fractions, strict=True))
        names = (DENSE, *tiles)
        chosen = site.tuner.choose(_PRODUCT, names, self.axis, occupied, price, reports)
        wrong, why = site.tuner.corrections(_PRODUCT)
        found = {name: seen.candidate(tiles.get(name), means.get(name), wrong.get(name, 1.0)) for name in names}
        best = decide(seen, list(found.values()))
        if best.candidates[0] is found[chosen] and not wrong:
            return chosen, best
        kept = found[chosen]
        if kept.occupied is not None:  # what is kept, or tried, is not given up for the tiles that were expected
            kept = replace(kept, break_even=max(kept.break_even, min(kept.occupied * (1.0 + self.gain), 1.0)))
        return chosen, choose(best, kept, why)

    def _tuner(self, names: Iterable[str]) -> Tuner:
        options: dict[str, Any] = {x: getattr(self, x) for x in ("every", "gain", "patience", "window")}
        return Tuner({_PRODUCT: {name: name for name in names}}, call=0.0, **options)

    def _successor(self, alike: dict[object, _CallSite], memory: object, b: Tensor) -> _CallSite | None:
        """The call site of an operand that lived for one call and is gone, for the next one of its shape.

        The oldest first, so that layers that are alike go on in their order.
        """
        with self._lock:
            gone = next((old for old, site in alike.items() if site.memory.expired()), None)
            site = alike.pop(gone, None)
            if site is None or site.calls > 1:
                return None
            alike[memory] = site
            site.move_to(b)
            return site


def _key(a: Tensor, b: Tensor, sparse: Sparse) -> tuple[object, object]:
    shapes = (sparse, a.shape, a.stride(), b.shape, b.stride(), a.dtype, torch.get_num_threads())
    return shapes, (b.untyped_storage()._cdata, b.storage_offset())
