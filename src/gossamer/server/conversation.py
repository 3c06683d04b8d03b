"""A conversation as tokens, with the tools that the model may call, and calls found in what it says."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gossamer.server.errors import invalid
from gossamer.server.requests import Function, Message
from gossamer.server.state import State
from gossamer.serving.template import conversation

_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*(?:</tool_call>|$)", re.DOTALL)
_OPENS = "<tool_call>"
_HOW = (
    "You may call functions. Each is described by a JSON object:\n{tools}\n"
    'To call one, answer with nothing but <tool_call>{{"name": NAME, "arguments": OBJECT}}</tool_call>.'
)


@dataclass(frozen=True)
class Call:
    """A function that the model calls, with arguments as JSON."""

    name: str
    arguments: str
    id: str

    @classmethod
    def made(cls, name: str, arguments: Any) -> Call:
        return cls(name, json.dumps(arguments, ensure_ascii=False), f"call_{secrets.token_hex(12)}")


def tokens_of(state: State, messages: Sequence[Message], tools: Sequence[Function]) -> list[int]:
    """The prompt, by the model's own template.

    Raises:
        ApiError: 400, the model has no template, or it fails or refuses the conversation.
    """
    template = getattr(state.llm.tokenizer, "chat_template", None)
    if template is None:
        raise invalid("the model has no chat template; use /v1/completions", "messages", "no_template")
    turns = [_turn(message) for message in messages]
    if tools and "tools" not in template:
        turns = _with_tools(turns, tools)
    described = [_described(tool) for tool in tools]
    try:
        with state.encoding:
            return conversation(state.llm.tokenizer, turns, tools=described or None)
    except ValueError as error:
        raise invalid(str(error), "messages", "template") from None


def _turn(message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role}
    turn["content"] = message.content or ""
    if message.tool_calls:
        turn["tool_calls"] = [_parsed(call) for call in message.tool_calls]
        if not message.content:
            said = [json.dumps(call["function"], ensure_ascii=False) for call in turn["tool_calls"]]
            turn["content"] = "\n".join(f"<tool_call>{each}</tool_call>" for each in said)
    return turn


def _parsed(call: dict[str, Any]) -> dict[str, Any]:
    """A call of an earlier answer, whose arguments come back as the JSON they were sent as."""
    try:
        function = call["function"]
        return {
            "type": "function",
            "function": {"name": function["name"], "arguments": json.loads(function["arguments"])},
        }
    except (KeyError, TypeError, ValueError):
        raise invalid(
            f"a tool call is {call!r:.80}, expected a function with a name and arguments in JSON", "messages"
        ) from None


def _described(tool: Function) -> dict[str, Any]:
    said = {
        "name": tool.name,
        "description": tool.description or "",
        "parameters": tool.parameters or {"type": "object"},
    }
    return {"type": "function", "function": said}


def _with_tools(turns: list[dict[str, Any]], tools: Sequence[Function]) -> list[dict[str, Any]]:
    """Tell of the tools in the first system message, for templates that do not."""
    said = _HOW.format(tools="\n".join(json.dumps(_described(tool)["function"]) for tool in tools))
    if turns[0]["role"] == "system":
        return [{**turns[0], "content": f"{turns[0]['content']}\n\n{said}"}, *turns[1:]]
    return [{"role": "system", "content": said}, *turns]


def call_schema(tools: Sequence[Function], name: str | None) -> dict[str, Any]:
    """The schema of a call that must come: of the tool with a name, or any of them."""
    some = [tool for tool in tools if name in (None, tool.name)]
    each = [
        {
            "type": "object",
            "properties": {"name": {"const": tool.name}, "arguments": tool.parameters or {"type": "object"}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in some
    ]
    return each[0] if len(each) == 1 else {"anyOf": each}


def forced_call(text: str) -> Call | None:
    """The call that a text under `call_schema` is; None where it was cut off."""
    try:
        said = json.loads(text)
        return Call.made(said["name"], said["arguments"])
    except (ValueError, KeyError, TypeError):
        return None


def calls_in(text: str, tools: Sequence[Function]) -> tuple[str, list[Call]]:
    """What a text says beside calls, and the calls of known tools in it."""
    names, calls = {tool.name for tool in tools}, []
    for found in _CALL.finditer(text):
        try:
            said = json.loads(found.group(1))
        except ValueError:
            continue
        if isinstance(said, dict) and said.get("name") in names:
            calls.append(Call.made(said["name"], said.get("arguments", {})))
    return (_CALL.sub("", text).rstrip(), calls) if calls else (text, [])


class Telling:
    """What of a text can be told while it is made: all, or, where calls may come, what is certainly none of them.

    What was told is the beginning of what `calls_in` says beside calls.

    >>> telling = Telling(calls=True)
    >>> [telling.add(piece) for piece in ("It is ", "hot. <to", "ast> <tool_call>", "{}")]
    ['It is', ' hot.', ' <toast>', '']
    """

    def __init__(self, calls: bool) -> None:
        self.calls, self.text, self.told = calls, "", 0

    def add(self, piece: str) -> str:
        """What can be told now and could not before."""
        self.text += piece
        return self.rest(self.text[: self._certain()].rstrip() if self.calls else self.text)

    def rest(self, said: str) -> str:
        """What was not told yet of what is said in the end."""
        fresh = said[self.told :]
        self.told += len(fresh)
        return fresh

    def _certain(self) -> int:
        at = self.text.find(_OPENS)
        if at >= 0:
            return at
        begun = next(count for count in range(len(_OPENS), -1, -1) if self.text.endswith(_OPENS[:count]))
        return len(self.text) - begun
