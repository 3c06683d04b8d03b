"""What users of OpenAI's own client do, against a server: `python openai_checks.py URL MODEL` runs all of it.

Apart from the tests, so that another release of the client can run it in a process of its own.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import openai

USER: Any = {"role": "user", "content": "the cat"}
PARAMETERS = {
    "type": "object", "properties": {"hot": {"type": "boolean"}}, "required": ["hot"], "additionalProperties": False
}  # fmt: skip
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}


def chats(client: openai.OpenAI, model: str) -> None:
    whole = client.chat.completions.create(
        model=model, messages=[USER], max_completion_tokens=8, temperature=0, extra_body={"ignore_eos": True}
    )
    assert whole.usage is not None and whole.usage.completion_tokens == 8
    assert whole.choices[0].finish_reason == "length" and whole._request_id.startswith("req_")  # type: ignore[union-attr]
    pieces = client.chat.completions.create(
        model=model, messages=[USER], max_tokens=8, temperature=0, stream=True, stream_options={"include_usage": True},
        extra_body={"ignore_eos": True, "sparsity": {"token_budget": 0}},
    )  # fmt: skip
    chunks = list(pieces)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == whole.choices[0].message.content
    assert chunks[-1].usage is not None and chunks[-1].usage.total_tokens == whole.usage.total_tokens


def helpers_of_streams(client: openai.OpenAI, model: str) -> None:
    with client.chat.completions.stream(
        model=model, messages=[USER], max_completion_tokens=6, temperature=0, logprobs=True, top_logprobs=2
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.current_completion_snapshot
    assert {"chunk", "content.delta", "content.done"} <= kinds
    logprobs = final.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None and len(logprobs.content[0].top_logprobs) == 2


def texts(client: openai.OpenAI, model: str) -> None:
    several = client.completions.create(model=model, prompt=["the cat", "the mat"], n=2, max_tokens=5, seed=3)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    streamed = {0: "", 1: "", 2: "", 3: ""}
    for chunk in client.completions.create(
        model=model, prompt=["the cat", "the mat"], n=2, max_tokens=5, seed=3, stream=True
    ):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert [streamed[at] for at in range(4)] == [choice.text for choice in several.choices]
    stop = several.choices[0].text[2:4]
    cut = client.completions.create(model=model, prompt="the cat", max_tokens=5, seed=3, stop=[stop])
    assert stop not in cut.choices[0].text


def tools(client: openai.OpenAI, model: str) -> None:
    asked: Any = {"model": model, "messages": [USER], "tools": [TOOL], "tool_choice": "required", "temperature": 0}
    message = client.chat.completions.create(**asked).choices[0].message
    assert message.tool_calls is not None
    call: Any = message.tool_calls[0]
    assert call.function.name == "weather" and isinstance(json.loads(call.function.arguments)["hot"], bool)
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "yes"}
    assert client.chat.completions.create(
        model=model, messages=[USER, message, result], tools=[TOOL], max_completion_tokens=4
    ).choices  # type: ignore[list-item]
    schema: Any = {"type": "json_schema", "json_schema": {"name": "hot", "schema": PARAMETERS, "strict": True}}
    kept = client.chat.completions.create(model=model, messages=[USER], response_format=schema)
    assert isinstance(json.loads(kept.choices[0].message.content or "")["hot"], bool)


def responses(client: openai.OpenAI, model: str) -> None:
    first = client.responses.create(model=model, input="the cat", max_output_tokens=8, temperature=0)
    assert first.status == "incomplete" and first.output_text
    second = client.responses.create(
        model=model, input=[USER, *first.output, {"role": "user", "content": "and?"}], max_output_tokens=8
    )  # type: ignore[list-item]
    assert second.usage is not None and first.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens
    with client.responses.stream(model=model, input="the cat", max_output_tokens=8, temperature=0) as stream:
        events = list(stream)
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == first.output_text and events[-1].type == "response.incomplete"


def errors(client: openai.OpenAI, model: str) -> None:
    for kind, asked in (
        (openai.BadRequestError, {"model": model, "temperature": 3}),
        (openai.BadRequestError, {"model": model, "extra_body": {"wings": 2}}),
        (openai.BadRequestError, {"model": model, "max_tokens": 10**6}),
        (openai.NotFoundError, {"model": "none"}),
    ):
        try:
            client.chat.completions.create(messages=[USER], **asked)  # type: ignore[call-overload]
        except openai.APIStatusError as error:
            assert type(error) is kind and error.body["message"], error  # type: ignore[index]
        else:
            raise AssertionError(f"{asked} was taken")


def leaving(client: openai.OpenAI, model: str) -> None:
    stream = client.chat.completions.create(
        model=model, messages=[USER], max_tokens=1800, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()


def models(client: openai.OpenAI, model: str) -> None:
    assert model in [each.id for each in client.models.list()]
    assert client.models.retrieve(model).id == model


def many_at_once(client: openai.OpenAI, model: str) -> None:
    async def everything() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=str(client.base_url), api_key="none") as many:
            asked: Any = {"model": model, "messages": [USER], "max_tokens": 10, "temperature": 0}
            return await asyncio.gather(*(many.chat.completions.create(**asked) for _ in range(12)))

    assert len({each.choices[0].message.content for each in asyncio.run(everything())}) == 1


CHECKS: list[Callable[[openai.OpenAI, str], None]] = [
    chats, helpers_of_streams, texts, tools, responses, errors, leaving, models, many_at_once,
]  # fmt: skip

if __name__ == "__main__":
    for check in CHECKS:
        check(openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none", max_retries=0), sys.argv[2])
    print(openai.__version__, "passed", len(CHECKS))
