"""What endpoints that generate share: how tokens are chosen, texts that are gathered or streamed, log-probabilities."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from gossamer.server.errors import ApiError, invalid
from gossamer.server.generation import Generation, Piece, Text
from gossamer.server.loop import EngineLoop
from gossamer.server.requests import Drawn, Generated
from gossamer.serving.sampling import Choice, Sampling

logger = logging.getLogger(__name__)


def sampling_of(request: Drawn, *, most: int, logprobs: int | None = None) -> Sampling:
    """How the tokens of a request are chosen; what it does not say is as OpenAI has it.

    Raises:
        ApiError: 400, two settings do not go together.
    """
    fields: dict[str, Any] = {
        "top_k": request.top_k,
        "min_p": request.min_p,
        "repetition_penalty": request.repetition_penalty,
    }
    fields |= {"ignore_eos": request.ignore_eos, "top_p": request.top_p}
    if isinstance(request, Generated):
        fields |= {
            "seed": request.seed, "frequency_penalty": request.frequency_penalty,
            "presence_penalty": request.presence_penalty, "logit_bias": _biases(request),
            "stop": (request.stop,) if isinstance(request.stop, str) else request.stop,
        }  # fmt: skip
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        return Sampling(
            max_tokens=most, temperature=1.0 if request.temperature is None else request.temperature, logprobs=logprobs,
            stop_token_ids=tuple(request.stop_token_ids or ()), **given,
        )  # fmt: skip
    except (TypeError, ValueError) as error:
        raise invalid(str(error), str(error).split(" ", 1)[0]) from None


def _biases(request: Generated) -> dict[int, float] | None:
    return None if request.logit_bias is None else {int(token): bias for token, bias in request.logit_bias.items()}


@dataclass
class Gathered:
    """A text that is whole, or as much of it as there is."""

    text: str = ""
    choices: list[Choice] = field(default_factory=list)
    finished: str | None = None

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.choices.extend(piece.choices)
        self.finished = piece.finished or self.finished


class Answer(Protocol):
    """One request, from its fields to its answer. Made in a thread: its prompt is encoded then."""

    def texts(self) -> list[Text]:
        """What it asks for."""

    def whole(self, texts: Sequence[Gathered], generations: Sequence[Generation]) -> dict[str, Any]:
        """The answer, when all texts are whole."""

    def stream(self, generations: Sequence[Generation]) -> AsyncIterator[str]:
        """The answer as server-sent events."""


async def answer(http: HttpRequest, loop: EngineLoop, count: int, made: Callable[[], Answer], stream: bool) -> Response:
    """Run a request for so many texts and answer it, streamed or whole.

    Raises:
        ApiError: it cannot be run, or fails before anything was sent.
    """
    loop.admit(count)  # before its prompts are encoded, which may take long
    answering = await asyncio.to_thread(made)
    generations = loop.submit(answering.texts())
    if stream:
        return Events(answering.stream(generations), generations)
    return JSONResponse(answering.whole(await gathered(http, generations), generations))


class Events(StreamingResponse):
    """Server-sent events of generations, which end with it, however it ends."""

    def __init__(self, events: AsyncIterator[str], generations: Sequence[Generation]) -> None:
        # Proxies must not hold events back.
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(_guarded(events), media_type="text/event-stream", headers=headers)
        self.generations = generations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            for generation in self.generations:
                generation.close()


async def _guarded(events: AsyncIterator[str]) -> AsyncIterator[str]:
    """A stream whose errors are its last event, as clients read them: its status was sent long ago."""
    try:
        async for each in events:
            yield each
    except ApiError as error:
        yield event(error.body)
    except Exception:
        logger.exception("a stream failed")
        yield event(ApiError(500, "the server failed at this request", code="internal_error").body)


async def gathered(http: HttpRequest, generations: Sequence[Generation]) -> list[Gathered]:
    """All texts, when they are whole. A client that leaves ends them.

    Raises:
        ApiError: one of them failed, or the client left; the others are ended.
    """
    texts = [Gathered() for _ in generations]

    async def read(at: int) -> None:
        async for piece in generations[at]:
            texts[at].add(piece)

    tasks = [asyncio.create_task(read(at)) for at in range(len(generations))]
    gone = asyncio.create_task(_left(http))
    try:
        waiting = set(tasks)
        while waiting:
            done, _ = await asyncio.wait({*waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
            waiting -= done
            for task in done - {gone}:
                task.result()
            if waiting and gone in done:
                raise ApiError(408, "the client has left", code="client_left")
        return texts
    finally:
        for generation in generations:
            generation.close()
        for task in (*tasks, gone):
            task.cancel()
        await asyncio.gather(*tasks, gone, return_exceptions=True)


async def _left(http: HttpRequest) -> None:
    """Returns when the client has closed its connection."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def merged(generations: Sequence[Generation]) -> AsyncIterator[tuple[int, Piece]]:
    """The pieces of all texts as they come, no faster than they are taken. Leaving the loop ends the texts."""
    pieces: asyncio.Queue[tuple[int, Piece | Exception]] = asyncio.Queue(maxsize=1)

    async def read(at: int) -> None:
        try:
            async for piece in generations[at]:
                await pieces.put((at, piece))
        except Exception as error:
            await pieces.put((at, error))

    tasks = [asyncio.create_task(read(at)) for at in range(len(generations))]
    left = len(generations)
    try:
        while left:
            at, piece = await pieces.get()
            if isinstance(piece, Exception):
                raise piece
            left -= piece.finished is not None
            yield at, piece
    finally:
        for generation in generations:
            generation.close()
        for task in tasks:
            task.cancel()


def event(data: Any, name: str | None = None) -> str:
    """One server-sent event."""
    head = "" if name is None else f"event: {name}\n"
    # In ASCII: some clients end a line at letters such as U+2028, which end none in this format.
    return f"{head}data: {json.dumps(data, separators=(',', ':'))}\n\n"


DONE = "data: [DONE]\n\n"


def usage(prompt: int, generations: Sequence[Generation]) -> dict[str, Any]:
    """Tokens of a request, as completions count them."""
    made = sum(generation.tokens for generation in generations)
    # Texts of one prompt count it once.
    cached = sum({id(generation.prompt): generation.cached for generation in generations}.values())
    return {
        "prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made,
        "prompt_tokens_details": {"cached_tokens": cached},
    }  # fmt: skip


def chat_logprobs(choices: Sequence[Choice], spell: Callable[[int], tuple[str, bytes]]) -> dict[str, Any]:
    """Log-probabilities of tokens, as chat completions have them; `spell`: the text of one token, and its bytes."""

    def one(token: int, logprob: float | None) -> dict[str, Any]:
        text, raw = spell(token)
        return {"token": text, "logprob": _finite(logprob), "bytes": list(raw)}

    content = [
        one(each.token, each.logprob) | {"top_logprobs": [one(token, logprob) for token, logprob in each.top]}
        for each in choices
    ]
    return {"content": content, "refusal": None}


def plain_logprobs(choices: Sequence[Choice], spell: Callable[[int], tuple[str, bytes]], start: int) -> dict[str, Any]:
    """Log-probabilities of tokens, as plain completions have them; `start`: letters of the text before these."""
    tokens = [spell(each.token)[0] for each in choices]
    offsets = [start + sum(map(len, tokens[:at])) for at in range(len(tokens))]
    return {
        "tokens": tokens, "token_logprobs": [_finite(each.logprob) for each in choices], "text_offset": offsets,
        "top_logprobs": [{spell(token)[0]: _finite(logprob) for token, logprob in each.top} for each in choices],
    }  # fmt: skip


def _finite(logprob: float | None) -> float | None:
    """JSON has no infinity: -9999 stands for a token that cannot come, as OpenAI has it."""
    return None if logprob is None else max(logprob, -9999.0)


def room(longest: int, prompt: int, asked: int | None) -> int:
    """Tokens of an answer at most: those asked for, or all that fit behind the prompt."""
    return asked if asked is not None else max(longest - prompt, 1)


def budget(request: Drawn) -> int | None:
    """How many tokens its attention may read, as the engine takes it."""
    return None if request.sparsity is None else request.sparsity.token_budget
