"""/v1/chat/completions and /v1/completions."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any

from gossamer.measure import clock
from gossamer.server.answer import (
    DONE,
    Gathered,
    budget,
    chat_logprobs,
    event,
    merged,
    plain_logprobs,
    room,
    sampling_of,
    usage,
)
from gossamer.server.conversation import Call, Telling, call_schema, calls_in, forced_call, tokens_of
from gossamer.server.errors import invalid
from gossamer.server.generation import Generation, Text
from gossamer.server.grammar import any_object
from gossamer.server.requests import Chat, Completions, Function, NamedTool
from gossamer.server.state import State
from gossamer.serving.sampling import Choice, Sampling


def seeded(sampling: Sampling, count: int) -> list[Sampling]:
    """One sampling for each of n texts; with a seed each has its own, so that they differ and repeat."""
    if sampling.seed is None:
        return [sampling] * count
    return [replace(sampling, seed=sampling.seed + at) for at in range(count)]


class ChatAnswer:
    """One request for a chat completion, from its fields to its answer."""

    def __init__(self, state: State, request: Chat) -> None:
        self.state, self.request = state, request
        self.tools: list[Function] = [tool.function for tool in request.tools or []]
        if request.tool_choice == "none":
            self.tools = []
        self.forced = request.tool_choice == "required" or isinstance(request.tool_choice, NamedTool)
        self.id, self.created = f"chatcmpl-{secrets.token_hex(12)}", clock.seconds_since_epoch()
        self.prompt = tokens_of(state, request.messages, self.tools)
        logprobs = (request.top_logprobs or 0) if request.logprobs else None
        asked = request.max_completion_tokens or request.max_tokens
        self.sampling = sampling_of(request, most=room(state.longest, len(self.prompt), asked), logprobs=logprobs)

        self.constraint = self._constraint()

    def texts(self) -> list[Text]:
        each, follow = seeded(self.sampling, self.request.n or 1), self.constraint or (lambda: None)
        return [Text(self.prompt, one, follow(), budget(self.request), "messages") for one in each]

    def _constraint(self) -> Callable[[], Any] | None:
        request = self.request
        schema, param = None, "response_format"
        if self.forced:
            choice = request.tool_choice
            schema = call_schema(self.tools, choice.function.name if isinstance(choice, NamedTool) else None)
            param = "tools"
        elif request.response_format is not None and request.response_format.type != "text":
            named = request.response_format.json_schema
            schema = any_object() if named is None else named.schema_
        return None if schema is None else self.state.constraint(schema, param)

    def whole(self, texts: Sequence[Gathered], generations: Sequence[Generation]) -> dict[str, Any]:
        choices = []
        for at, text in enumerate(texts):
            said, calls, finish = self._read(text)
            message: dict[str, Any] = {"role": "assistant", "content": said, "refusal": None, "annotations": []}
            if calls:
                message["tool_calls"] = [_call(call) for call in calls]
            logprobs = chat_logprobs(text.choices, self.state.spell) if self.request.logprobs else None
            choices.append({"index": at, "message": message, "logprobs": logprobs, "finish_reason": finish})
        return self._body("chat.completion", choices) | {"usage": usage(len(self.prompt), generations)}

    def _read(self, text: Gathered) -> tuple[str | None, list[Call], str | None]:
        """What was said, which calls, and why it ended."""
        if self.forced:
            call = forced_call(text.text)
            return (text.text, [], text.finished) if call is None else (None, [call], "tool_calls")
        said, calls = calls_in(text.text, self.tools) if self.tools else (text.text, [])
        return (said or None if calls else said), calls, "tool_calls" if calls else text.finished

    def _body(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id, "object": kind, "created": self.created, "model": self.request.model, "choices": choices,
            "service_tier": "default", "system_fingerprint": self.state.fingerprint,
        }  # fmt: skip

    async def stream(self, generations: Sequence[Generation]) -> AsyncIterator[str]:
        """Server-sent events: a role, pieces, an end for each text; then the usage, if it was asked for."""
        counted = self.request.stream_options is not None and bool(self.request.stream_options.include_usage)

        def chunk(choices: list[dict[str, Any]], used: Any = None) -> str:
            body = self._body("chat.completion.chunk", choices)
            return event(body | {"usage": used} if counted else body)

        def choice(at: int, delta: dict[str, Any], logprobs: Any = None, finish: str | None = None) -> dict[str, Any]:
            return {"index": at, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

        for at in range(len(generations)):
            yield chunk([choice(at, {"role": "assistant", "content": None if self.forced else "", "refusal": None})])
        texts = [Gathered() for _ in generations]
        tellings = [Telling(calls=bool(self.tools)) for _ in generations]
        untold: list[list[Choice]] = [[] for _ in generations]
        async for at, piece in merged(generations):
            texts[at].add(piece)
            untold[at].extend(piece.choices)
            fresh = "" if self.forced else tellings[at].add(piece.text)
            finish: str | None = piece.finished
            calls: list[Call] = []
            if finish is not None:
                said, calls, finish = self._read(texts[at])
                fresh += tellings[at].rest(said or "")
            if fresh or (self.request.logprobs and untold[at] and (finish is not None or not self.tools)):
                logprobs = chat_logprobs(untold[at], self.state.spell) if self.request.logprobs else None
                yield chunk([choice(at, {"content": fresh}, logprobs)])
                untold[at].clear()
            for number, call in enumerate(calls):
                yield chunk([choice(at, {"tool_calls": [{"index": number, **_call(call)}]})])
            if finish is not None:
                yield chunk([choice(at, {}, None, finish)])
        if counted:
            yield chunk([], usage(len(self.prompt), generations))
        yield DONE


def _call(call: Call) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


class PlainAnswer:
    """One request for completions of texts, each n times."""

    def __init__(self, state: State, request: Completions) -> None:
        self.state, self.request = state, request
        self.id, self.created = f"cmpl-{secrets.token_hex(12)}", clock.seconds_since_epoch()
        prompts = request.prompts
        if not prompts:
            raise invalid("prompt is an empty list, expected at least one", "prompt")
        self.prompts = [self.state.encode(prompt, "prompt") for prompt in prompts]
        self.echoed = [state.decode(prompt) if request.echo else "" for prompt in self.prompts]
        self.sampling = sampling_of(request, most=request.max_tokens or 16, logprobs=request.logprobs)

    def texts(self) -> list[Text]:
        return [
            Text(prompt, one, None, budget(self.request))
            for prompt in self.prompts
            for one in seeded(self.sampling, self.request.n or 1)
        ]

    def _choice(self, at: int, text: str, choices: Sequence[Any], start: int, finish: str | None) -> dict[str, Any]:
        asked = self.request.logprobs is not None
        logprobs = plain_logprobs(choices, self.state.spell, start) if asked else None
        return {"text": text, "index": at, "logprobs": logprobs, "finish_reason": finish}

    def _body(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id, "object": "text_completion", "created": self.created, "model": self.request.model,
            "choices": choices, "system_fingerprint": self.state.fingerprint,
        }  # fmt: skip

    @property
    def tokens(self) -> int:
        return sum(map(len, self.prompts))

    def whole(self, texts: Sequence[Gathered], generations: Sequence[Generation]) -> dict[str, Any]:
        each = self.request.n or 1
        choices = [
            self._choice(at, self.echoed[at // each] + text.text, text.choices, 0, text.finished)
            for at, text in enumerate(texts)
        ]
        return self._body(choices) | {"usage": usage(self.tokens, generations)}

    async def stream(self, generations: Sequence[Generation]) -> AsyncIterator[str]:
        """Server-sent events: pieces of each text; then the usage, if it was asked for."""
        counted = self.request.stream_options is not None and bool(self.request.stream_options.include_usage)
        each, lengths = self.request.n or 1, [0] * len(generations)

        def chunk(choices: list[dict[str, Any]], used: Any = None) -> str:
            return event(self._body(choices) | ({"usage": used} if counted else {}))

        for at in range(len(generations)):
            if self.request.echo:
                yield chunk([self._choice(at, self.echoed[at // each], (), 0, None)])
        async for at, piece in merged(generations):
            if piece.text or piece.finished or (self.request.logprobs is not None and piece.choices):
                yield chunk([self._choice(at, piece.text, piece.choices, lengths[at], piece.finished)])
            lengths[at] += len(piece.text)
        if counted:
            yield chunk([], usage(self.tokens, generations))
        yield DONE
