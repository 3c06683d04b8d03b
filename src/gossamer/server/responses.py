"""/v1/responses: stateless; the items of an answer may come back as input of the next request."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from gossamer.measure import clock
from gossamer.server.answer import Gathered, budget, event, merged, room, sampling_of
from gossamer.server.conversation import Call, Telling, call_schema, calls_in, forced_call, tokens_of
from gossamer.server.errors import ApiError, invalid
from gossamer.server.fields import read
from gossamer.server.generation import Generation, Text
from gossamer.server.grammar import any_object
from gossamer.server.requests import FlatNamedTool, Function, Message, Responses
from gossamer.server.state import State


def messages_of(given: str | Sequence[dict[str, Any]]) -> list[Message]:
    """The items of an input as turns of a conversation: messages, calls and their outputs; reasoning is passed over.

    Raises:
        ApiError: 400, an item that this server does not know.
    """
    if isinstance(given, str):
        return [Message(role="user", content=given)]
    turns: list[dict[str, Any]] = []
    for at, item in enumerate(given):
        kind = item.get("type", "message")
        if kind == "message":
            turns.append({"role": item.get("role"), "content": item.get("content")})
        elif kind == "function_call":
            call = {"id": item.get("call_id"), "type": "function", "function": _named(item, at)}
            if turns and turns[-1]["role"] == "assistant" and "tool_calls" in turns[-1]:
                turns[-1]["tool_calls"].append(call)
            else:
                turns.append({"role": "assistant", "content": None, "tool_calls": [call]})
        elif kind == "function_call_output":
            said = item.get("output")
            content = said if isinstance(said, (str, list)) else json.dumps(said)
            turns.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
        elif kind != "reasoning":
            raise invalid(
                f"input[{at}] has the type {kind!r:.40}, expected message, function_call, function_call_output or "
                "reasoning", f"input[{at}].type", "unsupported",
            )  # fmt: skip
    return [read(Message, turn) for turn in turns]


def _named(item: dict[str, Any], at: int) -> dict[str, Any]:
    if not isinstance(item.get("name"), str) or not isinstance(item.get("arguments"), str):
        raise invalid(f"input[{at}] is a call without name or arguments", f"input[{at}]")
    return {"name": item["name"], "arguments": item["arguments"]}


class ResponsesAnswer:
    """One request for a response, from its fields to its answer."""

    def __init__(self, state: State, request: Responses) -> None:
        self.state, self.request = state, request
        self.id, self.created = f"resp_{secrets.token_hex(16)}", clock.seconds_since_epoch()
        self.item, self.completed = f"msg_{secrets.token_hex(16)}", 0
        messages = messages_of(request.input)
        if request.instructions is not None:
            messages = [Message(role="system", content=request.instructions), *messages]
        if not messages:
            raise invalid("input has no message, expected at least one", "input")
        self.tools = [Function(**tool.model_dump(exclude={"type"})) for tool in request.tools or []]
        if request.tool_choice == "none":
            self.tools = []
        self.named = request.tool_choice.name if isinstance(request.tool_choice, FlatNamedTool) else None
        self.forced = request.tool_choice == "required" or self.named is not None
        if self.forced and (not self.tools or self.named not in (None, *(tool.name for tool in self.tools))):
            raise invalid(f"tool_choice asks for a call of {self.named or 'a tool'}, which tools lacks", "tool_choice")
        self.prompt = tokens_of(state, messages, self.tools)
        most = room(state.longest, len(self.prompt), request.max_output_tokens)
        self.sampling = sampling_of(request, most=most)
        self.constraint = self._constraint()

    def texts(self) -> list[Text]:
        follow = self.constraint or (lambda: None)
        return [Text(self.prompt, self.sampling, follow(), budget(self.request), "input")]

    def _constraint(self) -> Callable[[], Any] | None:
        schema, param = None, "text.format"
        form = self.request.text.format if self.request.text else None
        if self.forced:
            schema, param = call_schema(self.tools, self.named), "tools"
        elif form is not None and form.type != "text":
            if form.type == "json_schema" and form.schema_ is None:
                raise invalid("schema is missing in a format of type json_schema", "text.format.schema")
            schema = form.schema_ or any_object()
        return None if schema is None else self.state.constraint(schema, param)

    def _items(self, text: Gathered) -> list[dict[str, Any]]:
        if self.forced:
            call = forced_call(text.text)
            said, calls = (text.text, []) if call is None else ("", [call])
        else:
            said, calls = calls_in(text.text, self.tools) if self.tools else (text.text, [])
        status = "completed" if text.finished == "stop" else "incomplete"
        items = [self._message(said, status)] if said or not calls else []
        return items + [_function_call(call) for call in calls]

    def _message(self, text: str, status: str) -> dict[str, Any]:
        content = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
        return {"type": "message", "id": self.item, "status": status, "role": "assistant", "content": content}

    def body(self, status: str, output: list[dict[str, Any]], generation: Generation | None) -> dict[str, Any]:
        """The response object, with everything that the request said."""
        request, form = self.request, self.request.text
        return {
            "id": self.id, "object": "response", "created_at": self.created,
            "completed_at": clock.seconds_since_epoch() if status == "completed" else None, "status": status,
            "background": False, "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": request.instructions, "max_output_tokens": request.max_output_tokens,
            "max_tool_calls": None, "model": request.model, "output": output,
            "parallel_tool_calls": request.parallel_tool_calls is not False, "previous_response_id": None,
            "prompt_cache_key": request.prompt_cache_key, "safety_identifier": request.safety_identifier,
            "reasoning": {"effort": None, "summary": None}, "service_tier": "default", "store": False,
            "temperature": self.sampling.temperature, "top_p": self.sampling.top_p, "top_logprobs": 0,
            "presence_penalty": 0.0, "frequency_penalty": 0.0,
            "text": _form(form),
            "tool_choice": _choice(request.tool_choice), "tools": [_tool(tool) for tool in request.tools or []],
            "truncation": "disabled", "user": request.user, "metadata": request.metadata or {},
            "usage": None if generation is None else self._usage(generation),
        }  # fmt: skip

    def _usage(self, generation: Generation) -> dict[str, Any]:
        return {
            "input_tokens": len(self.prompt), "input_tokens_details": {"cached_tokens": generation.cached},
            "output_tokens": generation.tokens, "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": len(self.prompt) + generation.tokens,
        }  # fmt: skip

    def whole(self, texts: Sequence[Gathered], generations: Sequence[Generation]) -> dict[str, Any]:
        status = "incomplete" if texts[0].finished == "length" else "completed"
        return self.body(status, self._items(texts[0]), generations[0])

    async def stream(self, generations: Sequence[Generation]) -> AsyncIterator[str]:
        """The events of a response, numbered."""
        number = 0

        def say(kind: str, **fields: Any) -> str:
            nonlocal number
            number += 1
            return event({"type": kind, "sequence_number": number - 1, **fields}, kind)

        yield say("response.created", response=self.body("in_progress", [], None))
        yield say("response.in_progress", response=self.body("in_progress", [], None))
        text, opened, telling = Gathered(), False, Telling(calls=bool(self.tools))
        place = {"item_id": self.item, "output_index": 0, "content_index": 0}
        try:
            async for _, piece in merged(generations):
                text.add(piece)
                fresh = "" if self.forced else telling.add(piece.text)
                if fresh and not opened:
                    opened = True
                    for each in self._open(say):
                        yield each
                if fresh:
                    yield say("response.output_text.delta", **place, delta=fresh, logprobs=[])
        except ApiError as error:
            failed = self.body("failed", [], generations[0]) | {
                "error": {"code": "server_error", "message": error.message}
            }
            yield say("response.failed", response=failed)
            return
        items = self._items(text)
        for index, item in enumerate(items):
            for each in self._item(say, index, item, telling if opened and index == 0 else None):
                yield each
        status = "incomplete" if text.finished == "length" else "completed"
        yield say(f"response.{status}", response=self.body(status, items, generations[0]))

    def _open(self, say: Any) -> list[str]:
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        item = {**self._message("", "in_progress"), "content": []}
        return [
            say("response.output_item.added", output_index=0, item=item),
            say("response.content_part.added", item_id=self.item, output_index=0, content_index=0, part=part),
        ]

    def _item(self, say: Any, index: int, item: dict[str, Any], begun: Telling | None) -> list[str]:
        """The events of one whole item, of which some text may have been told."""
        events = []
        if item["type"] == "message":
            part = item["content"][0]
            place = {"item_id": item["id"], "output_index": index, "content_index": 0}
            if begun is None:
                events += self._open(say)
            if rest := part["text"] if begun is None else begun.rest(part["text"]):
                events.append(say("response.output_text.delta", **place, delta=rest, logprobs=[]))
            events.append(say("response.output_text.done", **place, text=part["text"], logprobs=[]))
            events.append(say("response.content_part.done", **place, part=part))
        else:
            place = {"item_id": item["id"], "output_index": index}
            added = {**item, "arguments": "", "status": "in_progress"}
            events.append(say("response.output_item.added", output_index=index, item=added))
            events.append(say("response.function_call_arguments.delta", **place, delta=item["arguments"]))
            events.append(
                say("response.function_call_arguments.done", **place, name=item["name"], arguments=item["arguments"])
            )
        events.append(say("response.output_item.done", output_index=index, item=item))
        return events


def _function_call(call: Call) -> dict[str, Any]:
    return {
        "type": "function_call", "id": f"fc_{call.id[5:]}", "call_id": call.id, "name": call.name,
        "arguments": call.arguments, "status": "completed",
    }  # fmt: skip


def _tool(tool: Any) -> dict[str, Any]:
    return {
        "type": "function", "name": tool.name, "description": tool.description, "parameters": tool.parameters,
        "strict": bool(tool.strict),
    }  # fmt: skip


def _form(form: Any) -> dict[str, Any]:
    if form is None or form.format is None:
        return {"format": {"type": "text"}}
    said: dict[str, Any] = form.model_dump(exclude_none=True, by_alias=True)
    return said


def _choice(choice: Any) -> Any:
    return {"type": "function", "name": choice.name} if isinstance(choice, FlatNamedTool) else choice or "auto"
