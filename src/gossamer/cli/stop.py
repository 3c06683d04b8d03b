"""Ctrl-C and SIGTERM end a run between two steps instead of inside one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(Exception):
    """Training stopped on a signal after it had saved; `str` says where."""

    def __init__(self, place: str, number: int) -> None:
        super().__init__(place)
        self.signal = number


class Stop:
    """Which signal asked to stop, or 0."""

    def __init__(self) -> None:
        self.signal = 0

    def __bool__(self) -> bool:
        return self.signal != 0


@contextmanager
def catch_signals() -> Iterator[Stop]:
    """Inside, the first SIGINT or SIGTERM only sets the flag; a second SIGINT interrupts at once.

    Under torchrun one Ctrl-C is two signals, the terminal's and torchrun's own: there the third one interrupts.
    """
    stop = Stop()
    left = 2 if "TORCHELASTIC_RUN_ID" in os.environ else 1

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal left
        if number == signal.SIGINT:
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
        stop.signal = stop.signal or number

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
