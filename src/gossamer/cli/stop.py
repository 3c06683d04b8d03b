"""Ctrl-C and SIGTERM end a run between two steps instead of inside one."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(Exception):
    """Training stopped on a signal after it had saved; `str` says where, `speaks` is False in all but one process."""

    def __init__(self, place: str, number: int, speaks: bool = True) -> None:
        super().__init__(place)
        self.signal = number
        self.speaks = speaks


class Stop:
    """Which signal asked to stop, or 0."""

    def __init__(self) -> None:
        self.signal = 0

    def __bool__(self) -> bool:
        return self.signal != 0


@contextmanager
def catch_signals() -> Iterator[Stop]:
    """Inside, the first SIGINT or SIGTERM only sets the flag; a second SIGINT interrupts at once."""
    stop = Stop()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.signal = number

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
