"""The one clock of the library: whoever measures or decides by time looks at it as `clock.now()`.

So a test need not depend on the machine's load: with another function in its place, time is what the test says.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter, time

now: Callable[[], float] = perf_counter
"""Seconds since some moment in the past; never goes back."""


def seconds_since_epoch() -> int:
    """The time of day, for dates that others read; nothing is measured or decided by it."""
    return int(time())
