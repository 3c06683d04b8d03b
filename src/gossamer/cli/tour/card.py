"""What a card is: a run of one system on real data, and what it has to show.

A module of this package that defines `CARD` is a card. Each runs in a process of its own (`one`), so that none finds
warm caches or a full memory, and one that dies takes no other with it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gossamer.spelling import suggestion

ORDER = ("chase", "popsparse", "pit", "sparsetrain", "spartex", "lserve", "radial")
"""All cards, as the page shows them."""

Say = Callable[[str], None]
"""Takes a few words on what is being done now."""


@dataclass(frozen=True)
class Timed:
    """A measurement, and which of its rows is about the system.

    Attributes:
        what: one sentence: what one call is, and what it is compared with.
        ours: the row.
        comparison: of `gossamer.measure.Comparison.to_dict()`.
    """

    what: str
    ours: str
    comparison: Mapping[str, Any]

    @property
    def row(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = next(row for row in self.comparison["rows"] if row["name"] == self.ours)
        return found


@dataclass(frozen=True)
class Outcome:
    """What a run found.

    Attributes:
        gain: the number that pays. loses: the same system where it does not.
        facts: (value, what it is), of the same run: accuracy, memory ...
        links: (what it is, its file under the card's folder).
    """

    gain: Timed
    loses: Timed
    facts: Sequence[tuple[str, str]] = ()
    links: Sequence[tuple[str, str]] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Outcome:
        """From `to_dict`, as JSON gave it back."""
        pairs = {key: tuple((one, two) for one, two in found[key]) for key in ("facts", "links")}
        return cls(Timed(**found["gain"]), Timed(**found["loses"]), **pairs)


@dataclass(frozen=True)
class Card:
    """One system.

    Attributes:
        system: its name. title: what it is good for, as its user says it. idea: one or two sentences.
        loses: where it does not pay, in words.
        lines: Python that does it on the reader's own `model` (and `x`, `optimizer`, ...), as it stands.
        page: of the docs.
        run: (folder for its files, what to say on the way, toy sizes) -> what was found.
    """

    system: str
    title: str
    idea: str
    loses: str
    lines: str
    page: str
    run: Callable[[Path, Say, bool], Outcome]


@dataclass(frozen=True)
class Shown:
    """A card of the page: what it found, or why it failed, and in how many seconds."""

    name: str
    card: Card
    seconds: float
    outcome: Outcome | None
    error: str | None


def card(name: str) -> Card:
    """The card of a name.

    Raises:
        ValueError: there is none.
    """
    if name not in ORDER:
        raise ValueError(f"there is no card {name!r}; expected some of {', '.join(ORDER)}{suggestion(name, ORDER)}")
    found: Card = importlib.import_module(f"gossamer.cli.tour.{name}").CARD
    return found
