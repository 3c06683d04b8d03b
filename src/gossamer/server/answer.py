"""What endpoints that generate share: how tokens are chosen, texts that are gathered or streamed, log-probabilities."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request as HttpRequest

from gossamer.server.errors import ApiError, invalid
from gossamer.server.loop import EngineLoop, Generation, Piece
from gossamer.server.requests import Drawn, Generated
from gossamer.serving.sampling import Choice, Sampling


def sampling_of(request: Drawn, *, most: int, logprobs: int | None = None, param: str = "max_tokens") -> Sampling:
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
            "presence_penalty": request.presence_penalty, "logit_bias": request.logit_bias,
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


async def gathered(http: HttpRequest, generations: Sequence[Generation]) -> list[Gathered]:
    """All texts, when they are whole. A client that leaves ends them.

    Raises:
        ApiError: one of them failed; the others are ended.
    """
    texts = [Gathered() for _ in generations]

    async def read(at: int) -> None:
        async for piece in generations[at]:
            texts[at].add(piece)

    tasks = [asyncio.create_task(read(at)) for at in range(len(generations))]
    gone = asyncio.create_task(_left(http))
    try:
        everything: asyncio.Future[Any] = asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.wait({everything, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not all(task.done() for task in tasks):
            raise ApiError(408, "the client has left", code="client_left")
        for task in tasks:
            task.result()
        return texts
    finally:
        gone.cancel()
        for generation in generations:
            generation.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, gone, return_exceptions=True)


async def _left(http: HttpRequest) -> None:
    """Returns when the client has closed its connection."""
    while True:
        message = await http.receive()
        if message["type"] == "http.disconnect":
            return


async def merged(generations: Sequence[Generation]) -> AsyncIterator[tuple[int, Piece]]:
    """The pieces of all texts as they come. Leaving the loop ends the texts."""
    pieces: asyncio.Queue[tuple[int, Piece | BaseException]] = asyncio.Queue()

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
            if isinstance(piece, BaseException):
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
    return f"{head}data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"


DONE = "data: [DONE]\n\n"


def usage(prompt: int, generations: Sequence[Generation]) -> dict[str, Any]:
    """Tokens of a request, as completions count them."""
    made = sum(generation.tokens for generation in generations)
    cached = max((generation.cached for generation in generations), default=0)
    return {
        "prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made,
        "prompt_tokens_details": {"cached_tokens": cached},
    }  # fmt: skip


def chat_logprobs(choices: Sequence[Choice], decode: Callable[[int], str]) -> dict[str, Any]:
    """Log-probabilities of tokens, as chat completions have them."""

    def one(token: int, logprob: float | None) -> dict[str, Any]:
        text = decode(token)
        return {"token": text, "logprob": _finite(logprob), "bytes": list(text.encode())}

    content = [
        one(each.token, each.logprob) | {"top_logprobs": [one(token, logprob) for token, logprob in each.top]}
        for each in choices
    ]
    return {"content": content, "refusal": None}


def plain_logprobs(choices: Sequence[Choice], decode: Callable[[int], str], start: int) -> dict[str, Any]:
    """Log-probabilities of tokens, as plain completions have them; `start`: letters of the text before these."""
    tokens = [decode(each.token) for each in choices]
    offsets = [start + sum(map(len, tokens[:at])) for at in range(len(tokens))]
    return {
        "tokens": tokens, "token_logprobs": [_finite(each.logprob) for each in choices], "text_offset": offsets,
        "top_logprobs": [{decode(token): _finite(logprob) for token, logprob in each.top} for each in choices],
    }  # fmt: skip


def _finite(logprob: float | None) -> float | None:
    """JSON has no infinity: -9999 stands for a token that cannot come, as OpenAI has it."""
    return None if logprob is None else max(logprob, -9999.0)


def room(loop: EngineLoop, prompt: int, asked: int | None) -> int:
    """Tokens of an answer at most: those asked for, or all that fit behind the prompt."""
    return asked if asked is not None else max(loop.llm.engine.max_length - prompt, 1)
