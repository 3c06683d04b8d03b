"""Find the attributes with which a model's own code follows its shrunk tensors, each try checked as a whole.

Which attribute means which axis cannot be read off its value: heads, head size, batch and tokens may all be 4. So the
likely ones are changed first, and where the code then fails says whose attributes to doubt next. A try counts as far
as it got before it failed; the search goes on from the one that got furthest.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import TypeVar

from torch import nn

from .attributes import Changes, Proposal
from .structure import StructureError

TRIES = 40
T = TypeVar("T")
State = tuple[int, ...]


def search(model: nn.Module, proposals: list[Proposal], attempt: Callable[[Changes], T]) -> T:
    """The first result of `attempt(changes)` that raises no StructureError.

    Raises:
        StructureError: that of the try that got furthest; `attempt` undoes what it has done.
    """
    classes = {path: type(module) for path, module in model.named_modules()}
    likely = tuple(int(proposal.likely) for proposal in proposals)
    own = tuple(int(proposal.own) for proposal in proposals)
    waiting: list[tuple[int, int, State]] = []  # (-place its parent got to, number, state)
    seen: set[State] = set()
    furthest: StructureError | None = None

    def propose(state: State, place: int) -> None:
        if state not in seen:
            seen.add(state)
            heapq.heappush(waiting, (-place, len(seen), state))

    for state in (likely, (0,) * len(proposals), own):
        propose(state, len(proposals))
    for _ in range(TRIES):
        if not waiting:
            break
        *_, state = heapq.heappop(waiting)
        try:
            return attempt(_changes(proposals, state))
        except StructureError as error:
            if furthest is None or error.place > furthest.place:
                furthest = error
            for number in _doubtful(proposals, classes, error.paths):
                for choice in range(proposals[number].choices):
                    propose((*state[:number], choice, *state[number + 1 :]), error.place)
    assert furthest is not None
    raise furthest


def _changes(proposals: list[Proposal], state: State) -> Changes:
    changes: Changes = {}
    for proposal, choice in zip(proposals, state, strict=True):
        for path, value in proposal.at(choice).items():
            changes.setdefault(path, {})[proposal.name] = value
    return changes


def _doubtful(proposals: list[Proposal], classes: dict[str, type], paths: tuple[str, ...]) -> list[int]:
    """Numbers of the attributes that code running in `paths` (innermost first) can have read, the nearest first."""
    near: dict[type, int] = {}
    for distance, path in enumerate(paths):
        near.setdefault(classes.get(path, nn.Module), distance)
    for path, cls in classes.items():  # attributes of children that the code of a parent reads
        if path and path.rpartition(".")[0] in paths[:1]:
            near.setdefault(cls, len(paths))
    known = [number for number, proposal in enumerate(proposals) if proposal.cls in near]
    return sorted(known, key=lambda number: (not proposals[number].own, near[proposals[number].cls]))
