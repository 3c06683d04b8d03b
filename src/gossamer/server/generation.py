"""Texts that are asked for and made: what goes into the engine's thread, and what comes out of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from gossamer.measure import clock
from gossamer.serving.sampling import Choice, Sampling
from gossamer.serving.stepping.jobs import Constraint, Finished, Job
from gossamer.serving.text import TextStream


@dataclass(frozen=True)
class Text:
    """One text that is asked for.

    Attributes:
        prompt: its tokens. sampling: how those behind it are chosen. constraint: what keeps it to a form.
        token_budget: as in `Engine.add`.
        param: the field of the request that the prompt came from, for errors.
    """

    prompt: Sequence[int]
    sampling: Sampling
    constraint: Constraint | None = None
    token_budget: int | None = None
    param: str = "prompt"


@dataclass(frozen=True)
class Piece:
    """What a pass through the model added to one text.

    Attributes:
        text: what became certain. choices: its tokens; none for those that only end the text.
        finished: why it ended, with its last piece.
    """

    text: str
    choices: tuple[Choice, ...]
    finished: Finished | None


@dataclass(eq=False)
class Times:
    """When things happened to a request, in seconds of `gossamer.measure.clock`.

    Attributes:
        arrived: when it was taken. begun: when the first tokens of its prompt were read. first, last: when its first
            and its newest token were made. gaps: between two of them.
    """

    arrived: float
    begun: float | None = None
    first: float | None = None
    last: float | None = None
    gaps: list[float] = field(default_factory=list)

    def pass_ended(self, now: float, made: bool) -> None:
        """A pass in which it had a part has ended; whether it made a token."""
        if self.begun is None:
            self.begun = now
        if made:
            if self.last is not None:
                self.gaps.append(now - self.last)
            self.first, self.last = now if self.first is None else self.first, now


class Generation:
    """One text that is being made: an asynchronous iterator over its pieces. `close` ends it early.

    Args:
        text: what is asked for. leave: called where it must end early.

    Attributes:
        tokens: how many were made. cached: tokens of the prompt that were there already.
        stopped: the stop string that ended it.
    """

    def __init__(self, text: Text, leave: Callable[[Generation], None]) -> None:
        self.text, self._leave = text, leave
        self.pieces: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        self.events = asyncio.get_running_loop()
        self.times = Times(clock.now())
        self.read = 0  # tokens; asyncio's own
        # The thread's own:
        self.tokens = self.cached = 0
        self.stopped: str | None = None
        self.ended = False
        self.job: Job | None = None
        self.stream: TextStream | None = None

    @property
    def prompt(self) -> Sequence[int]:
        return self.text.prompt

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self._read()

    async def _read(self) -> AsyncIterator[Piece]:
        while True:
            piece = await self.pieces.get()
            if isinstance(piece, Exception):
                raise piece
            self.read += len(piece.choices)
            yield piece
            if piece.finished is not None:
                return

    def close(self) -> None:
        """End it, if it has not ended; its pages are free before the next pass."""
        if not self.ended:
            self._leave(self)
