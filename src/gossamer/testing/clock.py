"""Time as a test wants it, in place of `gossamer.measure.clock.now`: no result then depends on the machine's load.

@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("gossamer.measure.clock.now", clock)
    return clock
"""

from __future__ import annotations


class Clock:
    """Seconds that pass when a test says so, and `step` of them from each look to the next.

    >>> clock = Clock(step=0.5)
    >>> clock(), clock()
    (0.0, 0.5)
    >>> clock.advance(2.0)
    >>> clock()
    3.0
    """

    def __init__(self, step: float = 0.0) -> None:
        self.seconds, self.step = 0.0, step

    def __call__(self) -> float:
        now = self.seconds
        self.seconds += self.step
        return now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.seconds += seconds
