"""What a compiled graph has done so far, for `explain`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Tally:
    """Calls of one graph.

    Attributes:
        packed_calls, dense_calls: with padding left out, and dense.
        padding: sum of the shares of padding of all calls.
        tokens, pairs: sums over all calls of the share of tokens, and of pairs of tokens, that were left out.
        broken: conditions that did not hold, and how often.
        compilations: of its parts, so far.
        refused: why padding is never left out of this graph.
    """

    packed_calls: int = 0
    dense_calls: int = 0
    padding: float = 0.0
    tokens: float = 0.0
    pairs: float = 0.0
    broken: Counter[str] = field(default_factory=Counter)
    refused: str = ""
    compilations: int = 0
    later: Tally | None = None
    """Of the tokens of a decoder, where those of its encoder are left out first."""

    def packed(self, padding: float, pairs: float) -> None:
        """A call that left out these shares of its tokens and of their pairs."""
        self.packed_calls += 1
        self.padding += padding
        self.tokens += padding
        self.pairs += pairs

    @property
    def calls(self) -> int:
        return self.packed_calls + self.dense_calls

    def tokens_saved(self) -> float:
        return self.tokens / max(self.calls, 1)

    def pairs_saved(self) -> float:
        return self.pairs / max(self.calls, 1)

    def dense(self, padding: float, broken: list[str]) -> None:
        self.dense_calls += 1
        self.padding += padding
        self.broken.update(broken)

    def __str__(self) -> str:
        calls = self.calls
        if not calls:
            return "not called yet"
        text = f"{calls} calls, {self.padding / calls:.0%} padding on average, {self.packed_calls} without it"
        for condition, count in self.broken.items():
            text += f"; dense {count} times, because it was not so that {condition}"
        return text if self.later is None else f"{text}; then, behind it, {self.later}"
