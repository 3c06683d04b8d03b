"""The engine in a thread of its own, and asyncio's side of it: requests go in, pieces of text come out.

    loop = EngineLoop(llm)
    (generation,) = loop.submit([Text(tokens, sampling)])
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
from collections.abc import Callable, Sequence
from typing import TypeVar

from gossamer.measure import clock
from gossamer.server.errors import ApiError, invalid
from gossamer.server.generation import Generation, Piece, Text
from gossamer.serving.llm import LLM
from gossamer.serving.sampling import Sampler
from gossamer.serving.stepping.jobs import Job
from gossamer.serving.stepping.team import RankLost
from gossamer.serving.text import TextStream

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")


class EngineLoop:
    """Runs an engine until it is closed.

    Args:
        llm: the model. queue_size: texts that may wait or be made at once; more are told to come later.
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
        self._over = False  # the thread runs no commands any more
        self._lock = threading.Lock()
        self._by_job: dict[int, Generation] = {}
        self._thread = threading.Thread(target=self._run, name="gossamer-engine", daemon=True)
        self._thread.start()

    # asyncio's side

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and self.failure is None

    @property
    def running(self) -> list[Generation]:
        """Those that the engine has; for the thread (`ask`)."""
        return list(self._by_job.values())

    def admit(self, count: int) -> None:
        """Refuse so many more texts, if they cannot be made, or not now. Takes no time.

        Raises:
            ApiError: 400 for more than may ever be made at once, 503 while draining, 429 where the queue is full.
        """
        if count > self.queue_size:
            raise invalid(f"the request asks for {count} texts, expected at most {self.queue_size} at once", "n")
        if self.draining or not self.alive:
            raise ApiError(503, "the server is shutting down", code="draining", retry_after=5)
        if len(self.open) + count > self.queue_size:
            raise ApiError(
                429, f"{len(self.open)} texts are being made or wait, expected at most {self.queue_size}",
                code="overloaded", retry_after=1,
            )  # fmt: skip

    def check(self, text: Text) -> None:
        """Refuse a text that the engine would refuse, or that would end a pass of others with an error.

        Raises:
            ApiError: 400, naming the field.
        """
        engine, length, more = self.llm.engine, len(text.prompt), text.sampling.max_tokens
        if not length:
            raise invalid("the prompt has no tokens, expected at least 1", text.param)
        if length + more > engine.max_length:
            raise invalid(
                f"the prompt has {length} tokens and max_tokens is {more}: {length + more} together, expected at most "
                f"{engine.max_length}", text.param, "context_length_exceeded",
            )  # fmt: skip
        try:
            Sampler(text.sampling, text.prompt, engine.vocabulary)
        except (TypeError, ValueError) as error:
            named = [name for name in ("stop_token_ids", "logit_bias", "logprobs") if name in str(error)]
            raise invalid(str(error), named[0] if named else None) from None
        try:
            engine.check_budget(text.token_budget)
        except ValueError as error:
            raise invalid(str(error), "sparsity.token_budget") from None
        if text.sampling.stop and self.llm.tokenizer is None:
            raise invalid("the model has no tokenizer, which stop strings need", "stop")

    def submit(self, texts: Sequence[Text]) -> list[Generation]:
        """Begin all of them, or none.

        Raises:
            ApiError: see `admit` and `check`.
        """
        self.admit(len(texts))
        for before, text in zip((None, *texts), texts, strict=False):
            if before is None or text.prompt is not before.prompt:  # texts of one prompt differ by their seeds only
                self.check(text)
        made = [Generation(text, self._left) for text in texts]
        self.open.update(made)
        for generation in made:
            self.tell(lambda generation=generation: self._add(generation))  # type: ignore[misc]
        return made

    def _left(self, generation: Generation) -> None:
        self.tell(lambda: self.abort(generation))

    def tell(self, command: Callable[[], None]) -> None:
        """Have the thread run a command before its next pass; where it has ended, run it here."""
        with self._lock:
            if not self._over:
                self._inbox.put(command)
                self._work.set()
                return
        command()

    async def ask(self, question: Callable[[], Answer]) -> Answer:
        """What the thread answers between two passes, when nothing of the engine changes."""
        events = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = events.create_future()

        def settle(value: Answer | None, error: Exception | None) -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(value)  # type: ignore[arg-type]

        def command() -> None:
            value, failed = None, None
            try:
                value = question()
            except Exception as error:
                failed = error
            _to(events, lambda: settle(value, failed))

        self.tell(command)
        return await answer

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
                    continue
                self._step()
        except RankLost as error:  # whoever runs the server says it
            self.failure = error
        except BaseException as error:
            logger.exception("the engine's thread has ended")
            self.failure = error
        with self._lock:
            self._over = True
        self._commands()  # those that came before; texts among them are refused
        for generation in list(self._by_job.values()):
            self._fail(generation, _stopped())

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
        if self._over:
            return self._send(generation, _stopped())
        text = generation.text
        try:
            if self.llm.tokenizer is not None:
                generation.stream = TextStream(self.llm.tokenizer, text.sampling.stop)
            job = self.llm.engine.add(text.prompt, text.sampling, token_budget=text.token_budget)
        except Exception as error:
            logger.exception("a request that was checked could not be added")
            return self._send(
                generation, ApiError(500, f"the engine refused the request: {error}", code="engine_error")
            )
        job.constraint = text.constraint
        generation.job = job
        self._by_job[id(job)] = generation

    def abort(self, generation: Generation) -> None:
        """End a request whose client has gone."""
        if not generation.ended:
            self._stop(generation)
            self._send(generation, Piece("", (), "abort"))

    def _stop(self, generation: Generation) -> None:
        if generation.job is not None:
            self.llm.engine.stop(generation.job)

    def _fail(self, generation: Generation, error: Exception) -> None:
        self._stop(generation)
        self._send(generation, error)

    def _step(self) -> None:
        try:
            jobs = self.llm.engine.step()
        except RankLost:
            raise
        except Exception:
            # One of them may be the cause; which one is not known, so none of them comes again.
            logger.exception("a pass through the model failed")
            for generation in self.running:
                self._fail(generation, ApiError(500, "a pass through the model failed", code="engine_error"))
            return
        now = clock.now()
        for generation in self._by_job.values():
            job, made = generation.job, generation.job in jobs
            if made or (job is not None and job.done):
                generation.times.pass_ended(now, made)
        for each in jobs:
            generation = self._by_job[id(each)]
            try:
                self._advance(generation, each)
            except Exception as error:  # a tokenizer or a grammar fails at this text, and at no other
                if not isinstance(error, ApiError):
                    logger.exception("a text could not be continued")
                    error = ApiError(500, f"the text could not be continued: {error}", code="text_error")
                self._fail(generation, error)
        self._end_late(now)

    def _advance(self, generation: Generation, job: Job) -> None:
        failed = getattr(job.constraint, "failed", None)
        if failed is not None:
            raise failed
        text = self.llm.advance(job, generation.stream)
        generation.stopped = generation.stream.stopped if generation.stream is not None else None
        generation.cached = job.cached
        self._send(generation, Piece(text, (job.choices[-1],), job.finished))

    def _end_late(self, now: float) -> None:
        for generation in list(self._by_job.values()):
            late = self.seconds is not None and now - generation.times.arrived > self.seconds
            unread = generation.tokens - generation.read
            if late or unread > self.unread:
                what = f"took more than {self.seconds} seconds" if late else f"left {unread} tokens unread"
                self._fail(generation, ApiError(408, f"the request {what}", code="timeout"))

    def _send(self, generation: Generation, piece: Piece | Exception) -> None:
        """Hand a piece to asyncio's side; the last one ends the generation."""
        reason: str | None = "error" if isinstance(piece, Exception) else piece.finished
        if isinstance(piece, Piece):
            generation.tokens += len(piece.choices)
        if reason is not None:
            generation.ended = True
            self._by_job.pop(id(generation.job), None)

        def arrive() -> None:
            generation.pieces.put_nowait(piece)
            if reason is not None:
                self._leave(generation, reason)

        if not _to(generation.events, arrive):  # nobody is there to read: what still runs is ended
            generation.ended = True
            self._stop(generation)
            self._by_job.pop(id(generation.job), None)
            self._leave(generation, reason or "abort")

    def _leave(self, generation: Generation, reason: str) -> None:
        if generation in self.open:
            self.open.discard(generation)
            self.ended(generation, reason)


def _to(events: asyncio.AbstractEventLoop, call: Callable[[], None]) -> bool:
    """Have an event loop run a call; False: it is closed."""
    try:
        events.call_soon_threadsafe(call)
    except RuntimeError:
        return False
    return True


def _stopped() -> ApiError:
    return ApiError(503, "the server was stopped", code="stopped", retry_after=5)
