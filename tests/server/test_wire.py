"""What the server says on the wire: streamed and whole it is the same text, the one that the engine makes alone."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from served import NAME, Served

import gossamer as gs

pytestmark = pytest.mark.filterwarnings("ignore")
GREEDY = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def alone(folder):
    """What the model says without a server: greedy."""
    llm = gs.serving.LLM(folder)
    return lambda prompt, **how: llm.generate([prompt], gs.serving.Sampling(**{"max_tokens": 12, **how}))[0]


def joined(events: list, index: int = 0) -> str:
    """The text of a stream of either kind of completions."""
    assert events[-1] == "[DONE]"
    choices = [each for event in events[:-1] for each in event["choices"] if each["index"] == index]
    return "".join(each["text"] if "text" in each else each["delta"].get("content") or "" for each in choices)


def test_a_completion_is_the_text_of_the_engine(server, alone):
    whole = server.complete("the cat", **GREEDY)
    assert whole.status == 200 and whole.text == alone("the cat").text
    usage = whole.json["usage"]
    assert usage.pop("prompt_tokens_details")["cached_tokens"] in (0, 1)  # others may have begun alike
    assert usage == {"prompt_tokens": 2, "completion_tokens": 12, "total_tokens": 14}
    assert joined(server.complete("the cat", stream=True, **GREEDY).events) == whole.text
    assert whole.json["object"] == "text_completion" and whole.json["model"] == NAME
    assert whole.json["choices"][0]["finish_reason"] == "length"


def test_a_chat_has_the_models_own_template(server, alone):
    whole = server.chat("the cat", temperature=0, max_completion_tokens=12)
    assert whole.text == alone("<|user|>user the cat: ").text
    events = server.chat("the cat", temperature=0, max_completion_tokens=12, stream=True).events
    assert joined(events) == whole.text
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert [each["choices"][0]["finish_reason"] for each in events[-3:-1]] == [None, "length"]
    assert {each["id"] for each in events[:-1]} == {events[0]["id"]} != {whole.json["id"]}
    assert all("usage" not in each for each in events[:-1])


def test_usage_comes_last_in_a_stream_and_is_null_before(server):
    for reply in (
        server.chat(stream=True, stream_options={"include_usage": True}, ignore_eos=True),
        server.complete(stream=True, stream_options={"include_usage": True}, ignore_eos=True),
    ):
        *pieces, last, done = reply.events
        assert done == "[DONE]" and last["choices"] == [] and last["usage"]["completion_tokens"] == 8
        assert all(each["usage"] is None for each in pieces)


def test_n_texts_differ_and_a_seed_repeats_them(server):
    how = {"n": 3, "seed": 7, "temperature": 1.5, "max_completion_tokens": 10, "ignore_eos": True}
    one, again = server.chat(**how).json, server.chat(**how).json
    texts = [each["message"]["content"] for each in one["choices"]]
    assert [each["index"] for each in one["choices"]] == [0, 1, 2] and len(set(texts)) == 3
    assert texts == [each["message"]["content"] for each in again["choices"]]
    assert one["usage"]["completion_tokens"] == 30 and one["usage"]["prompt_tokens"] == 9
    events = server.chat(**how, stream=True).events
    assert [joined(events, index) for index in range(3)] == texts


def test_several_prompts_are_answered_in_order(server, alone):
    prompts = ["the cat", "naïve café", "日本"]
    reply = server.complete(prompts, n=2, **GREEDY)
    assert [each["text"] for each in reply.json["choices"]] == [
        alone(prompt).text for prompt in prompts for _ in range(2)
    ]
    assert [each["index"] for each in reply.json["choices"]] == list(range(6))
    tokens = [server.state.llm.encode(prompt) for prompt in prompts]
    assert reply.json["usage"]["prompt_tokens"] == sum(map(len, tokens))
    by_token = server.complete(tokens, n=2, **GREEDY)
    assert by_token.json["choices"] == reply.json["choices"]
    assert server.complete(tokens[0], **GREEDY).text == reply.json["choices"][0]["text"]
    echoed = server.complete("the cat", echo=True, **GREEDY)
    assert echoed.text == "the cat" + reply.text
    assert joined(server.complete("the cat", echo=True, stream=True, **GREEDY).events) == echoed.text


def test_a_stop_string_that_straddles_tokens_is_never_shown(server, alone):
    expected = alone("the cat", max_tokens=40, ignore_eos=True)
    text, tokens = expected.text, expected.tokens
    cuts = [len(server.state.decode(tokens[:count])) for count in range(1, 40)]
    at = next(cut for cut in cuts[8:] if text[cut - 1 : cut + 1].isprintable() and text.index(text[cut - 1 : cut + 2]))
    stop = text[at - 1 : at + 2]  # begins in one token, ends in another
    for more in ({"stop": stop}, {"stop": ["never", stop]}):
        how = {"temperature": 0, "max_tokens": 40, "ignore_eos": True, **more}
        whole = server.complete("the cat", **how)
        assert whole.text == text[: text.index(stop)] and whole.json["choices"][0]["finish_reason"] == "stop"
        assert joined(server.complete("the cat", stream=True, **how).events) == whole.text
    ended = server.complete("the cat", stop_token_ids=[tokens[5]], temperature=0, max_tokens=40)
    assert ended.json["usage"]["completion_tokens"] == tokens.index(tokens[5]) + 1


def test_log_probabilities_spell_their_tokens(server):
    how = {"temperature": 0, "max_completion_tokens": 12, "logprobs": True, "top_logprobs": 3, "ignore_eos": True}
    whole = server.chat(**how).json["choices"][0]
    content = whole["logprobs"]["content"]
    assert len(content) == 12
    raw = b"".join(bytes(each["bytes"]) for each in content)
    assert raw.decode(errors="replace") == whole["message"]["content"]  # of parts of letters too
    for each in content:
        best = [one["logprob"] for one in each["top_logprobs"]]
        assert best == sorted(best, reverse=True) and len(best) == 3
        assert best[0] == each["logprob"] and each["top_logprobs"][0]["bytes"] == each["bytes"]
    streamed = [
        one
        for event in server.chat(**how, stream=True).events[:-1]
        for one in ((event["choices"][0]["logprobs"] or {}).get("content") or [])
    ]
    assert streamed == content
    plain = server.complete("the cat", temperature=0, logprobs=2, max_tokens=5).json["choices"][0]["logprobs"]
    assert [len(plain[name]) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")] == [5] * 4
    assert plain["text_offset"][0] == 0 and plain["token_logprobs"][0] == max(plain["top_logprobs"][0].values())
    assert (
        server.complete("the cat", logprobs=0, max_tokens=2).json["choices"][0]["logprobs"]["top_logprobs"] == [{}] * 2
    )


def test_bias_forbids_and_forces(server):
    (forced,) = server.state.llm.encode("Z")
    reply = server.chat(logit_bias={str(forced): 100}, max_completion_tokens=4, temperature=0)
    assert reply.text == "ZZZZ"


WEATHER = {
    "name": "weather",
    "parameters": {
        "type": "object", "properties": {"hot": {"type": "boolean"}}, "required": ["hot"], "additionalProperties": False
    },
}  # fmt: skip
OTHER = {"name": "other", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}
TOOLS = [{"type": "function", "function": each} for each in (WEATHER, OTHER)]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_that_must_come_comes(server, choice):
    how = {"tools": TOOLS, "tool_choice": choice, "max_completion_tokens": 200, "temperature": 0}
    message = server.chat(**how).json["choices"][0]
    (call,) = message["message"]["tool_calls"]
    assert message["finish_reason"] == "tool_calls" and message["message"]["content"] is None
    assert call["type"] == "function" and call["function"]["name"] in ("weather", "other")
    arguments = json.loads(call["function"]["arguments"])
    assert arguments == {} or (list(arguments) == ["hot"] and arguments["hot"] in (True, False))
    if choice != "required":
        assert call["function"]["name"] == "weather"
    events = server.chat(**how, stream=True).events[:-1]
    (streamed,) = [each["choices"][0]["delta"] for each in events if "tool_calls" in each["choices"][0]["delta"]]
    assert streamed["tool_calls"][0] | {"id": ""} == {"index": 0, **call, "id": ""}
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"
    turns = [
        {"role": "user", "content": "hot?"}, message["message"],
        {"role": "tool", "tool_call_id": call["id"], "content": "yes"},
    ]  # fmt: skip
    assert server.chat(messages=turns).status == 200  # what it said may come back


SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["fine", "bad"]}, "legs": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["mood", "legs"], "additionalProperties": False,
}  # fmt: skip


def test_texts_keep_to_schemas(server):
    form = {"type": "json_schema", "json_schema": {"name": "pet", "schema": SCHEMA, "strict": True}}
    how = {"response_format": form, "max_completion_tokens": 120, "n": 3, "temperature": 1, "seed": 1}
    for choice in server.chat(**how).json["choices"]:
        said = json.loads(choice["message"]["content"])
        assert said["mood"] in ("fine", "bad") and said["legs"] in range(10) and choice["finish_reason"] == "stop"
    streamed = joined(server.chat(**how, stream=True).events, 2)
    assert json.loads(streamed) == said
    kept = server.ask("/v1/responses", {
        "model": NAME, "input": "pet", "text": {"format": {"type": "json_schema", "name": "pet", "schema": SCHEMA}},
    })  # fmt: skip
    assert set(json.loads(kept.json["output"][0]["content"][0]["text"])) == {"mood", "legs"}
    wrong = server.chat(response_format={**form, "json_schema": {"name": "x", "schema": {"type": "nothing"}}})
    assert wrong.status == 400 and wrong.error["code"] == "invalid_schema"
    assert server.chat(response_format={"type": "json_object"}, max_completion_tokens=30).text.lstrip().startswith("{")


def test_a_model_that_writes_nothing_but_spaces_must_go_on(server):
    follow = server.state.constraint(SCHEMA, "schema")()
    llm = server.state.llm
    (opens,), (space,) = llm.encode("{"), llm.encode(" ")
    logits = torch.zeros(llm.engine.vocabulary)
    assert follow.narrow(logits)[opens] == 0 and not follow.take(opens)
    for _ in range(8):
        assert follow.narrow(logits)[space] == 0 and not follow.take(space)
    assert follow.narrow(logits)[space] == -torch.inf and follow.failed is None


def test_responses_and_their_own_items_come_back(server):
    asked = {"model": NAME, "input": "the cat", "max_output_tokens": 6, "temperature": 0, "instructions": "be brief"}
    first = server.ask("/v1/responses", asked).json
    assert first["status"] == "incomplete" and first["incomplete_details"] == {"reason": "max_output_tokens"}
    assert first["usage"]["output_tokens"] == 6 and first["instructions"] == "be brief"
    events = server.ask("/v1/responses", {**asked, "stream": True}).events
    assert [each["sequence_number"] for each in events] == list(range(len(events)))
    assert [events[0]["type"], events[-1]["type"]] == ["response.created", "response.incomplete"]
    text = "".join(each["delta"] for each in events if each["type"] == "response.output_text.delta")
    assert text == first["output"][0]["content"][0]["text"] == events[-1]["response"]["output"][0]["content"][0]["text"]
    tools = [{"type": "function", **WEATHER}]
    call = server.ask("/v1/responses", {**asked, "tools": tools, "tool_choice": "required", "max_output_tokens": 200})
    (item,) = call.json["output"]
    assert item["type"] == "function_call" and item["name"] == "weather"
    items = [
        {"role": "user", "content": "the cat"}, *first["output"], {"type": "reasoning", "summary": []}, item,
        {"type": "function_call_output", "call_id": item["call_id"], "output": "true"},
    ]  # fmt: skip
    again = server.ask("/v1/responses", {**asked, "input": items, "tools": tools})
    assert again.status == 200 and again.json["usage"]["input_tokens"] > first["usage"]["input_tokens"]


def test_tokens_are_told(server):
    reply = server.ask("/tokenize", {"prompt": "the cat"})
    assert reply.json == {"count": 2, "max_model_len": 2048, "tokens": server.state.llm.encode("the cat")}
    chat = server.ask("/tokenize", {"model": "other", "messages": [{"role": "user", "content": "the cat"}]})
    assert chat.json["count"] == server.chat("the cat").json["usage"]["prompt_tokens"]


def test_models_have_names_with_slashes(server):
    models = server.ask("/v1/models").json
    assert [each["id"] for each in models["data"]] == [NAME, "other"] and models["object"] == "list"
    for path in (f"/v1/models/{NAME}", "/v1/models/tiny%2Fmodel"):
        assert server.ask(path).json == models["data"][0]
    assert server.ask("/v1/models/none").error["code"] == "model_not_found"
    assert server.chat(model="other").json["model"] == "other"


def test_a_request_has_a_budget_of_its_own(folder):
    """In one batch: that of the server, none, and another."""
    budgets = {None: 256, 0: None, 192: 192}
    prompt = "the cat sat on the mat, never so. " * 40
    with Served(folder, llm={"sparsity": gs.serving.Sparsity(token_budget=256)}) as served:
        with ThreadPoolExecutor(3) as clients:
            asked = [{} if own is None else {"sparsity": {"token_budget": own}} for own in budgets]
            replies = list(clients.map(lambda more: served.complete(prompt, **GREEDY, **more), asked))
        refused = served.complete(prompt, sparsity={"token_budget": 100})
        assert refused.status == 400 and refused.error["param"] == "sparsity.token_budget"
        assert "multiple of the page" in refused.error["message"]
        assert served.pages_in_use() == 0
    texts = []
    for budget in budgets.values():
        llm = gs.serving.LLM(folder, sparsity=gs.serving.Sparsity(token_budget=budget))
        texts.append(llm.generate(prompt, gs.serving.Sampling(max_tokens=12))[0].text)
    assert [reply.text for reply in replies] == texts and len(set(texts)) == 3


def test_a_request_has_a_number(server):
    assert server.ask("/health", x_request_id="mine-1").headers["x-request-id"] == "mine-1"
    made = {server.chat(n=0).headers["x-request-id"] for _ in range(2)}
    assert len(made) == 2 and all(each.startswith("req_") for each in made)
    assert len(server.ask("/health", x_request_id="x" * 900).headers["x-request-id"]) == 128
    assert server.ask("/nothing", x_request_id="mine-2").headers["x-request-id"] == "mine-2"
