"""Which tokens a slot holds: layers that tokens skip have fewer keys than the text has tokens."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(eq=False)
class Kept:
    """Positions of the tokens whose keys a slot holds of one text, in the order in which they lie in its pages.

    Attributes:
        whole: the slot holds the tokens [0, whole), and then those of `more`, all of which are behind them.
        last: the largest position; -1 without tokens.

    >>> kept = Kept(2)
    >>> kept.add(range(2, 4))
    >>> kept.add([5, 8])
    >>> len(kept), kept.positions, kept.cropped(6).positions
    (6, [0, 1, 2, 3, 5, 8], [0, 1, 2, 3, 5])
    """

    whole: int = 0
    more: array[int] = field(default_factory=lambda: array("q"))

    def __post_init__(self) -> None:
        self.last = max(self.more, default=self.whole - 1)

    def __len__(self) -> int:
        return self.whole + len(self.more)

    @property
    def positions(self) -> list[int]:
        return [*range(self.whole), *self.more]

    def add(self, positions: Sequence[int]) -> None:
        """Keys of further tokens, ascending, lie behind those that it has."""
        if not len(positions):
            return
        if not self.more and positions[0] == self.whole and positions[-1] == self.whole + len(positions) - 1:
            self.whole = positions[-1] + 1
        else:
            self.more.extend(positions)
        self.last = max(self.last, positions[-1])

    def has(self, positions: Sequence[int]) -> list[int]:
        """Which of some tokens, ascending, it holds."""
        if positions[0] > self.last:
            return []
        more = set(self.more)
        return [each for each in positions if each < self.whole or each in more]

    def copy(self) -> Kept:
        return Kept(self.whole, self.more[:])

    def cropped(self, length: int) -> Kept:
        """What is left of a text of `length` tokens.

        Raises:
            ValueError: keys of tokens that stay lie behind keys of tokens that go.
        """
        if length <= self.whole:
            return Kept(length)
        stay = [position < length for position in self.more]
        count = sum(stay)
        if not all(stay[:count]):
            raise ValueError(
                f"a text cannot be cropped to {length} tokens: keys of an earlier token lie behind those of later ones"
            )
        return Kept(self.whole, self.more[:count])
