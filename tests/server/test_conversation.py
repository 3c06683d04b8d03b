"""Calls in texts: found where they are, told when they are whole, and never a part of one as text."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from served import NAME

from gossamer.server.conversation import Telling, calls_in
from gossamer.server.requests import Function

pytestmark = pytest.mark.filterwarnings("ignore")
TOOLS = [Function(name="weather"), Function(name="time")]
CALL = '<tool_call>{"name": "weather", "arguments": {"hot": true}}</tool_call>'
PARTS = st.lists(
    st.sampled_from([CALL, CALL.replace("weather", "other"), "<tool_call>{", "<tool", "<", " ", "\n", "so", "ü", "{}"])
)


@example(parts=["so", " ", CALL, " ", "so"], cuts=[2, 3, 5])
@example(parts=[" ", CALL], cuts=[])
@given(parts=PARTS, cuts=st.lists(st.integers(0, 300)))
def test_what_is_told_is_what_is_said(parts, cuts):
    """However the text is cut, pieces joined are the text beside calls."""
    text = "".join(parts)
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    said, calls = calls_in(text, TOOLS)
    telling = Telling(calls=True)
    told = "".join(telling.add(text[a:b]) for a, b in itertools.pairwise(places))
    assert said.startswith(told) and "<tool_call>" not in told
    assert told + telling.rest(said) == said
    assert len(calls) <= text.count(CALL) and (calls or said == text)
    plain = Telling(calls=False)
    assert "".join(plain.add(text[a:b]) for a, b in itertools.pairwise(places)) == text


@pytest.mark.parametrize(
    ("text", "said", "names"),
    [
        (CALL, "", ["weather"]), (f"Well. {CALL}", "Well.", ["weather"]), (f"{CALL}\n{CALL}", "", ["weather"] * 2),
        ('<tool_call>\n{"name": "time", "arguments": {}}', "", ["time"]),
        ('<tool_call>{"name": "other"}</tool_call>', '<tool_call>{"name": "other"}</tool_call>', []),
        ("<tool_call>{broken}</tool_call>", "<tool_call>{broken}</tool_call>", []), ("no call", "no call", []),
    ],
)  # fmt: skip
def test_calls_are_found(text, said, names):
    found = calls_in(text, TOOLS)
    assert (found[0].strip(), [call.name for call in found[1]]) == (said, names)
    assert all(isinstance(json.loads(call.arguments), dict) for call in found[1])


@pytest.fixture
def saying(server, monkeypatch):
    """Have the model say a text, three letters a token, whatever it was asked."""

    def begin(text: str) -> None:
        pieces = [text[at : at + 3] for at in range(0, len(text), 3)]

        def advance(job, stream):
            at = len(job.tokens) - 1
            if at + 1 >= len(pieces):
                server.state.llm.engine.stop(job)
                job.finished = "stop"
            return pieces[at] if at < len(pieces) else ""

        monkeypatch.setattr(server.state.llm, "advance", advance)

    return SimpleNamespace(says=begin)


def test_text_is_streamed_before_a_call(server, saying):
    saying.says(f"Let me look. {CALL}")
    tools = [{"type": "function", "function": {"name": "weather"}}]
    how = {"tools": tools, "ignore_eos": True, "max_completion_tokens": 200, "logprobs": True}
    message = server.chat(**how).json["choices"][0]
    assert message["message"]["content"] == "Let me look." and message["finish_reason"] == "tool_calls"
    events = [each["choices"][0] for each in server.chat(**how, stream=True).events[:-1]]
    texts = [each["delta"]["content"] for each in events if each["delta"].get("content")]
    assert "".join(texts) == "Let me look." and len(texts) > 2
    (call,) = [each["delta"]["tool_calls"][0] for each in events if "tool_calls" in each["delta"]]
    assert call["function"] == message["message"]["tool_calls"][0]["function"]
    assert sum(len(each["logprobs"]["content"]) for each in events if each["logprobs"]) == len(
        message["logprobs"]["content"]
    )
    flat = [{"type": "function", "name": "weather"}]
    body = {"model": NAME, "input": "hot?", "tools": flat, "ignore_eos": True, "stream": True}
    events = server.ask("/v1/responses", body).events
    kinds = [each["type"].removeprefix("response.") for each in events]
    assert "".join(each["delta"] for each in events if each["type"].endswith("output_text.delta")) == "Let me look."
    assert [kind for kind in kinds if "delta" not in kind] == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.done", "content_part.done",
        "output_item.done", "output_item.added", "function_call_arguments.done", "output_item.done", "completed",
    ]  # fmt: skip
    message, call = events[-1]["response"]["output"]
    assert message["content"][0]["text"] == "Let me look." and json.loads(call["arguments"]) == {"hot": True}
    assert [each["sequence_number"] for each in events] == list(range(len(events)))


def test_a_call_alone_has_no_text(server, saying):
    saying.says(f"\n{CALL}")
    tools = [{"type": "function", "function": {"name": "weather"}}]
    message = server.chat(tools=tools, ignore_eos=True, max_completion_tokens=200).json["choices"][0]["message"]
    assert message["content"] is None and len(message["tool_calls"]) == 1
    body = {"model": NAME, "input": "hot?", "tools": [{"type": "function", "name": "weather"}], "ignore_eos": True}
    assert [each["type"] for each in server.ask("/v1/responses", body).json["output"]] == ["function_call"]
