"""What a pass of the compiler says about one operator: where its zeros come from, and what became of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One operator of a graph, as a pass saw it.

    Attributes:
        node: its name in the graph.
        operator: "linear", "attention", ...
        expression: what it computes, in the grammar of `gossamer.compile.expressions.expression`.
        zeros: where the zeros come from: "padding", "relu", "mask", ...; empty where there are none.
        axes: axes of the expression along which they may be left out.
        choice: what takes the operator's place, or "dense".
        why: one sentence; for "dense" the reason.
        gain: once it has run, what was measured in words, or the share of `work` that was left out, 0 to 1; None for
            what measures nothing.
        work: multiply-adds of the dense operator for the sizes that were seen first; 0 where they are not counted.
    """

    node: str
    operator: str
    expression: str
    zeros: str
    axes: tuple[str, ...]
    choice: str
    why: str
    gain: Callable[[], str | float] | None = None
    work: int = 0
