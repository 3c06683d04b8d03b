"""The engine in a thread of its own, and asyncio's side of it: requests go in, pieces of text come out.

    loop = EngineLoop(llm)
    generation = loop.submit(tokens, sampling)
    async for piece in generation:
        piece.text, piece.finished

Only the thread touches the engine. What asyncio's side decides (whether there is room, whether a prompt is too long) it
decides at once, without waiting for a pass through the model.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gossamer.measure import clock
from gossamer.server.errors import ApiError, invalid
from gossamer.serving.engine import Constraint, Finished, Job
from gossamer.serving.llm import LLM
from gossamer.serving.sampling import Choice, Sampling
from gossamer.serving.text import TextStream

logger = logging.getLogger(__name__)


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
    """When things happened to a request, in seconds of `gossamer.measure.clock`."""

    arrived: float
    begun: float | None = None
    first: float | None = None
    last: float | None = None
    gaps: list[float] = field(default_factory=list)


class Generation:
    """One text that is being made: an asynchronous iterator over its pieces. `close` ends it early.

    Attributes:
        prompt: its tokens. tokens: how many were made. cached: tokens of the prompt that were there already.
        stopped: the stop string that ended it.
    """

    def __init__(
        self, owner: EngineLoop, prompt: Sequence[int], sampling: Sampling, constraint: Constraint | None
    ) -> None:
        self.owner, self.prompt, self.sampling, self.constraint = owner, list(prompt), sampling, constraint
        self.pieces: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        self.events = asyncio.get_running_loop()
        self.times = Times(clock.now())
        self.tokens = self.cached = 0
        self.stopped: str | None = None
        self.ended = False
        # The thread's own:
        self.job: Job | None = None
        self.stream: TextStream | None = None
        self.unread = 0

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self._read()

    async def _read(self) -> AsyncIterator[Piece]:
        while True:
            piece = await self.pieces.get()
            if isinstance(piece, Exception):
                raise piece
            self.unread -= len(piece.choices)
            yield piece
            if piece.finished is not None:
                return

    def close(self) -> None:
        """End it, if it has not ended; its pages are free before the next pass."""
        if not self.ended:
            self.owner.tell(lambda: self.owner.abort(self))


class EngineLoop:
    """Runs an engine until it is closed.

    Args:
        llm: the model. queue: requests that may wait or run at once; more are told to come later.
        unread: tokens that a client may leave unread before its request is ended.
        seconds: that a request may take; None: as long as it does.
        ended: called with each generation when it has ended, and the reason.
    """

    def __init__(
        self, llm: LLM, *, queue_size: int = 64, unread: int = 4096, seconds: float | None = None,
        ended: Callable[[Generation, str], None] | None = None,
    ) -> None:  # fmt: skip
        self.llm, self.queue_size, self.unread, self.seconds = llm, queue_size, unread, seconds
        self.ended = ended or (lambda generation, reason: None)
        self.open: set[Generation] = set()
        self.draining = False
        self.failure: BaseException | None = None
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._work = threading.Event()
        self._closed = False
        self._by_job: dict[int, Generation] = {}
        self._thread = threading.Thread(target=self._run, name="gossamer-engine", daemon=True)
        self._thread.start()

    # asyncio's side

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and self.failure is None

    def check(self, prompt: Sequence[int], sampling: Sampling, count: int) -> None:
        """Refuse what cannot run, or not now.

        Raises:
            ApiError: 400 for a prompt that is empty or too long, 503 while draining, 429 where the queue is full.
        """
        longest = self.llm.engine.max_length
        if not prompt:
            raise invalid("the prompt has no tokens, expected at least 1", "prompt")
        if len(prompt) + sampling.max_tokens > longest:
            raise invalid(
                f"the prompt has {len(prompt)} tokens and max_tokens is {sampling.max_tokens}: "
                f"{len(prompt) + sampling.max_tokens} together, expected at most {longest}",
                "messages", "context_length_exceeded",
            )  # fmt: skip
        if self.draining or not self.alive:
            raise ApiError(503, "the server is shutting down", code="draining", retry_after=5)
        if len(self.open) + count > self.queue_size:
            raise ApiError(
                429, f"{len(self.open)} texts are being made or wait, expected at most {self.queue_size}",
                code="overloaded", retry_after=1,
            )  # fmt: skip

    def submit(
        self, prompt: Sequence[int], sampling: Sequence[Sampling], constraint: Callable[[], Constraint] | None = None
    ) -> list[Generation]:
        """One text for each sampling.

        Raises:
            ApiError: see `check`.
        """
        self.check(prompt, sampling[0], len(sampling))
        made = [Generation(self, prompt, each, constraint() if constraint else None) for each in sampling]
        for generation in made:
            self.open.add(generation)
            self.tell(lambda generation=generation: self._add(generation))  # type: ignore[misc]
        return made

    def tell(self, command: Callable[[], None]) -> None:
        """Have the thread run a command before its next pass."""
        self._inbox.put(command)
        self._work.set()

    async def drain(self, seconds: float) -> bool:
        """Take no new requests and finish those that there are; whether all did in time."""
        self.draining = True
        until = clock.now() + seconds
        while self.open and self.alive and clock.now() < until:
            await asyncio.sleep(0.02)
        return not self.open

    def close(self) -> None:
        """End every request and the thread."""
        self.draining = self._closed = True
        self._work.set()
        self._thread.join(timeout=60)

    # the thread's side

    def _run(self) -> None:
        try:
            while not self._closed:
                self._commands()
                if not self.llm.engine.busy:
                    self._work.wait(timeout=1.0)
                    self._work.clear()
                    continue
                self._step()
        except BaseException as error:
            logger.exception("the engine's thread has ended")
            self.failure = error
        for generation in list(self._by_job.values()):
            self._send(generation, ApiError(503, "the server was stopped", code="stopped"))

    def _commands(self) -> None:
        self._work.clear()
        while True:
            try:
                command = self._inbox.get_nowait()
            except queue.Empty:
                return
            command()

    def _add(self, generation: Generation) -> None:
        if generation.ended:
            return
        try:
            job = self.llm.engine.add(generation.prompt, generation.sampling)
        except (ValueError, TypeError) as error:
            self._send(generation, invalid(str(error)))
            return
        job.constraint = generation.constraint
        generation.job = job
        if self.llm.tokenizer is not None:
            generation.stream = TextStream(self.llm.tokenizer, generation.sampling.stop)
        self._by_job[id(job)] = generation

    def abort(self, generation: Generation) -> None:
        """End a request whose client has gone."""
        if not generation.ended:
            if generation.job is not None:
                self.llm.engine.stop(generation.job)
            self._send(generation, Piece("", (), "abort"))

    def _step(self) -> None:
        try:
            jobs = self.llm.engine.step()
        except Exception:
            # One of them may be the cause; which one is not known, so none of them comes again.
            logger.exception("a pass through the model failed")
            for generation in list(self._by_job.values()):
                self.llm.engine.stop(generation.job)  # type: ignore[arg-type]
                self._send(generation, ApiError(500, "a pass through the model failed", code="engine_error"))
            return
        now = clock.now()
        for job in jobs:
            generation = self._by_job[id(job)]
            text = self.llm.advance(job, generation.stream)
            generation.stopped = generation.stream.stopped if generation.stream is not None else None
            generation.cached = job.cached
            _note(generation.times, now)
            self._send(generation, Piece(text, (job.choices[-1],), job.finished))
        if self.seconds is not None or self.unread:
            self._end_late(now)

    def _end_late(self, now: float) -> None:
        for generation in list(self._by_job.values()):
            late = self.seconds is not None and now - generation.times.arrived > self.seconds
            if late or generation.unread > self.unread:
                assert generation.job is not None
                self.llm.engine.stop(generation.job)
                what = f"took more than {self.seconds} seconds" if late else f"left {generation.unread} tokens unread"
                self._send(generation, ApiError(408, f"the request {what}", code="timeout"))

    def _send(self, generation: Generation, piece: Piece | Exception) -> None:
        """Hand a piece to asyncio's side; the last one ends the generation."""
        reason: str | None = "error" if isinstance(piece, Exception) else piece.finished
        if isinstance(piece, Piece):
            generation.unread += len(piece.choices)
            generation.tokens += len(piece.choices)
        if reason is not None:
            generation.ended = True
            if generation.job is not None:
                self._by_job.pop(id(generation.job), None)

        def arrive() -> None:
            generation.pieces.put_nowait(piece)
            if reason is not None:
                self.open.discard(generation)
                self.ended(generation, reason)

        try:
            generation.events.call_soon_threadsafe(arrive)
        except RuntimeError:  # its event loop is closed: nobody reads
            self.open.discard(generation)


def _note(times: Times, now: float) -> None:
    if times.first is None:
        times.first = now
    if times.last is not None:
        times.gaps.append(now - times.last)
    times.last = now


def model_of(llm: LLM) -> Any:
    """The model of transformers that an engine runs."""
    return llm.engine.model
