"""The call sites of products whose operand may hold zeros: one `Tuner` each, asked now and then.

call        0      1 ... 15   16            17            18 ... 32
evaluates   yes    -          yes           yes           -
decision    A      A          A: B gains    B: again      B
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from gossamer.measure import GAIN
from gossamer.planner.costs import cache as costs_file
from gossamer.planner.plan import LEAST_WORK, Axis, Candidate, Observation, Plan, Sparse, choose, decide, observe
from gossamer.planner.tiles import Tile
from gossamer.planner.tuner.trial import DENSE
from gossamer.planner.tuner.tuner import Tuner

_PRODUCT = "product"


class _CallSite:
    """One call site: its tuner, the plan in force, and the memory of b that it belongs to."""

    def __init__(self, tuner: Tuner) -> None:
        self.tuner = tuner
        self.plan: Plan | None = None
        self.turn = 0

    def moved_to(self, b: Tensor) -> _CallSite:
        """The same call site at other memory."""
        # While it is held, no other storage gets this one's address, so that the address is the storage's name.
        self.memory = StorageWeakRef(b.untyped_storage())
        self.calls = 0
        return self


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
        shapes, memory = _key(a, b, sparse)
        alike = self._sites.get(shapes)
        site = None if alike is None else alike.get(memory) or self._successor(alike, memory, b)
        if site is not None and site.plan is not None and site.tuner.is_bypassed(self.axis):
            site.calls += 1
            return site.plan
        with self._lock:
            return self._evaluate(a, b, sparse, self._sites.get(shapes, {}).get(memory))

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

    def _evaluate(self, a: Tensor, b: Tensor, sparse: Sparse, site: _CallSite | None) -> Plan:
        # One sample serves `every` calls, if they come: of memory that is new nobody knows.
        calls = 1 if site is None else self.every
        seen = observe(a, b, sparse, self.tiles, self.axis, self.database, site.turn if site else 0, calls)
        self.evaluations += 1
        if site is None:
            if sum(map(len, self._sites.values())) >= self.most_sites:
                self._sites.clear()
            options: dict[str, Any] = {x: getattr(self, x) for x in ("every", "gain", "patience", "window")}
            site = _CallSite(Tuner({_PRODUCT: {}}, **options)).moved_to(b)
            shapes, memory = _key(a, b, sparse)
            self._sites.setdefault(shapes, {})[memory] = site
        site.turn += 1
        site.calls += 1
        site.plan = self._settle(site.tuner, seen)
        if not seen.fractions and calls == 1 and seen.prices.dense * self.every >= LEAST_WORK:
            site.tuner.forget()  # dense for now; a second call is worth a sample
        return site.plan

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
            return site.moved_to(b)

    def _settle(self, tuner: Tuner, seen: Observation) -> Plan:
        """The cheapest candidate at the mean of the latest samples, or the present one at its new price."""
        tiles: dict[str, Tile] = {str(tile): tile for tile in seen.prices.products}
        found: dict[str, Candidate] = {}

        def price(question: str, name: str, occupied: Mapping[str, float]) -> float:
            found[name] = seen.candidate(tiles.get(name), occupied.get(name))
            return found[name].total

        tuner.alternatives[_PRODUCT].update({name: name for name in tiles})
        occupied = dict(zip(tiles, seen.fractions, strict=True))
        chosen, why = tuner.evaluate(_PRODUCT, (DENSE, *tiles), self.axis, occupied, price)
        best = decide(seen, list(found.values()))
        if best.candidates[0] is found[chosen]:
            return best
        return choose(best, found[chosen], why)


def _key(a: Tensor, b: Tensor, sparse: Sparse) -> tuple[object, object]:
    shapes = (sparse, a.shape, a.stride(), b.shape, b.stride(), a.dtype, torch.get_num_threads())
    return shapes, (b.untyped_storage()._cdata, b.storage_offset())
