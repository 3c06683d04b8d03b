"""What the compiler did with each graph, for whoever asks while it compiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gossamer.compile.finding import Finding
from gossamer.compile.tally import Tally


@dataclass(frozen=True)
class Record:
    """One graph: what was found in it, and what its calls did."""

    findings: tuple[Finding, ...]
    tally: Tally


observers: list[Callable[[Record], None]] = []
"""Called with the record of every graph that is compiled."""
