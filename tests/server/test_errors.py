"""Every wrong request has the right status, in OpenAI's shape, and names what was wrong; nothing else is disturbed."""

from __future__ import annotations

import json
import socket

import pytest
from served import BODIES, CHAT, NAME, PLAIN, RESPONSES, Reply, Served

from gossamer.server import Limits

pytestmark = pytest.mark.filterwarnings("ignore")
USER = {"role": "user", "content": "the cat"}


def schema(kind: str, **more: object) -> dict:
    return {"type": kind, "json_schema": {"name": "x", "schema": {"type": "object"}}, **more}


CHATS = [
    ({"messages": ...}, "messages", "messages is missing"),
    ({"model": ...}, "model", "model is missing"),
    ({"messages": []}, "messages", "at least 1 item"),
    ({"messages": "the cat"}, "messages", "valid list"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role", "'wizard'"),
    ({"messages": [{"role": "user"}]}, "messages.0", "content is missing in a message of the user"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content", "'image_url'"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content", "has no text"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0", "tool_call_id is missing"),
    ({"messages": [{**USER, "wings": 2}]}, "messages.0.wings", "wings is no field"),
    ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, "messages", "a tool call is {}"),
    ({"messages": [{"role": "user", "content": "refuse me"}]}, "messages", "no such turn"),
    ({"bogus": 1}, "bogus", "bogus is no field of this request"),
    ({"n": 0}, "n", "n is 0"), ({"n": 129}, "n", "n is 129"), ({"n": 100}, "n", "asks for 100 texts"),
    ({"n": True}, "n", "n is True"), ({"n": 1.5}, "n", "n is 1.5"), ({"n": "2"}, "n", "n is '2'"),
    ({"temperature": -1}, "temperature", "is -1"), ({"temperature": "hot"}, "temperature", "'hot'"),
    ({"top_p": 0}, "top_p", "is 0"), ({"top_p": 1.1}, "top_p", "1.1"),
    ({"presence_penalty": 3}, "presence_penalty", "is 3"),
    ({"repetition_penalty": 1e308}, "repetition_penalty", "1e+308"),
    ({"seed": 2**63}, "seed", "9223372036854775808"), ({"seed": 1.5}, "seed", "1.5"),
    ({"stop": ""}, "stop", "at least 1 char"), ({"stop": ["a", ""]}, "stop.1", "at least 1 char"),
    ({"stop": ["a"] * 17}, "stop", "at most 16"),
    ({"stop_token_ids": [10**6]}, "stop_token_ids", "below the vocabulary"),
    ({"stop_token_ids": [-1]}, "stop_token_ids.0", "is -1"),
    ({"logit_bias": {"999999": 1}}, "logit_bias", "below the vocabulary"),
    ({"logit_bias": {"cat": 1}}, "logit_bias.cat", "should match pattern"),
    ({"logit_bias": {"5": 101}}, "logit_bias.5", "is 101"),
    ({"max_completion_tokens": 0}, "max_completion_tokens", "is 0"),
    ({"max_completion_tokens": 5000}, "messages", "expected at most 2048"),
    ({"messages": [{"role": "user", "content": "the cat " * 3000}]}, "messages", "expected at most 2048"),
    ({"max_tokens": 5}, "the body", "max_tokens and max_completion_tokens differ"),
    ({"top_logprobs": 3}, "the body", "top_logprobs is for logprobs=true"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "is 21"),
    ({"stream": False, "stream_options": {"include_usage": True}}, "the body", "stream_options is for stream=true"),
    ({"tool_choice": "required"}, "the body", "tool_choice is for requests with tools"),
    ({"tools": [{"type": "web"}]}, "tools.0.type", "'web'"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name", "'a b'"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "comes with type json_schema"),
    ({"response_format": schema("text")}, "response_format", "comes with type json_schema"),
    ({"response_format": {"type": "grammar"}}, "response_format.type", "'grammar'"),
    ({"functions": []}, "functions", "deprecated; use tools"),
    ({"reasoning_effort": "high"}, "reasoning_effort", "'high': this model does not reason apart"),
    ({"store": True}, "store", "nothing is stored"), ({"store": 0}, "store", "nothing is stored"),
    ({"audio": {}}, "audio", "this server makes text"),
    ({"sparsity": {"token_budget": 192}}, "sparsity.token_budget", "needs an engine with a budget"),
    ({"sparsity": {"token_budget": -1}}, "sparsity.token_budget", "is -1"),
    ({"sparsity": {"bucket": 1}}, "sparsity.bucket", "bucket is no field"),
    ({"sparsity": 64}, "sparsity", "valid dictionary"),
]  # fmt: skip
PLAINS = [
    ({"prompt": []}, "prompt", "empty list"), ({"prompt": ""}, "prompt", "no tokens"),
    ({"prompt": [[]]}, "prompt", "no tokens"), ({"prompt": ["a", ""]}, "prompt", "no tokens"),
    ({"prompt": [999999]}, "prompt", "expected 0 to"), ({"prompt": [True]}, "prompt.0", "is True"),
    ({"prompt": [1, "a"]}, "prompt.0", "is 1"), ({"prompt": ["a"] * 65}, "n", "asks for 65 texts"),
    ({"echo": True, "logprobs": 1}, "the body", "echo is for requests without logprobs"),
    ({"suffix": "x"}, "suffix", "texts are continued"), ({"best_of": 2}, "best_of", "use n"),
    ({"best_of": True}, "best_of", "use n"), ({"max_tokens": 3000}, "prompt", "expected at most 2048"),
]  # fmt: skip
ITEMS = [
    ({"input": []}, "input", ""), ({"input": [{"type": "picture"}]}, "input[0].type", "'picture'"),
    ({"input": [{"type": "function_call"}]}, "input[0]", "a call without name"),
    ({"input": [{"type": "reasoning"}]}, "input", "no message"),
    ({"input": [{"type": ["x"]}]}, "input[0].type", "['x']"), ({"input": [{"role": []}]}, "role", ""),
    ({"previous_response_id": "resp_1"}, "previous_response_id", "send the items again"),
    ({"tool_choice": "required"}, "tool_choice", "which tools lacks"),
    ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema", "schema is missing"),
    ({"reasoning": {"effort": "high"}}, "reasoning", "'high'"), ({"background": True}, "background", "True"),
    ({"metadata": {"a": 1}}, "metadata.a", "is 1"), ({"max_output_tokens": 9999}, "input", "expected at most 2048"),
]  # fmt: skip
CASES = [(path, *case) for path, cases in ((CHAT, CHATS), (PLAIN, PLAINS), (RESPONSES, ITEMS)) for case in cases]


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_is_named(server, stream):
    """Before a stream begins: its errors have a status too."""
    wrong = []
    for path, fields, param, said in CASES:
        body = {name: value for name, value in {**BODIES[path], "stream": stream, **fields}.items() if value is not ...}
        reply = server.ask(path, body)
        error = reply.error if reply.status == 400 else {"message": "", "param": reply.status, "type": ""}
        if said not in error["message"] or error["param"] != param or error["type"] != "invalid_request_error":
            wrong.append((fields, error))
    assert not wrong, "\n".join(map(str, wrong))
    assert server.pages_in_use() == 0


@pytest.mark.parametrize(
    ("template", "said"),
    [("{% for m in messages %}", "Unexpected end of template"), ("{{ messages.foo.bar }}", "no attribute 'foo'"),
     ("{{ 1 / 0 }}", "division by zero"), ("{{ raise_exception('roles must alternate') }}", "roles must alternate")],
)  # fmt: skip
def test_a_template_that_fails_is_an_error_of_the_request(server, monkeypatch, template, said):
    monkeypatch.setattr(server.state.llm.tokenizer, "chat_template", template)
    for path in (CHAT, RESPONSES):
        reply = server.ask(path, BODIES[path])
        assert (reply.status, reply.error["code"]) == (400, "template")
        assert "the model's chat template" in reply.error["message"] and said in reply.error["message"]


def test_bodies_that_are_none(server):
    deep = b'{"messages": ' + b"[" * 5000 + b"]" * 5000 + b"}"
    for body, said in (
        (b"", "is no JSON"), (b"{", "is no JSON"), (b"[]", "expected an object"), (b"null", "expected an object"),
        (b'{"model": "\xff"}', "is no JSON"), (b'{"model": "\\ud800"}', "surrogates not allowed"),
        (b'{"\\uDC00": 1}', "surrogates not allowed"), ('{"model": 1}'.encode("utf-16"), "is no JSON"),
        (b'{"temperature": NaN}', "NaN is no number"), (b'{"temperature": -Infinity}', "-Infinity is no number"),
        (b'{"temperature": 1e999}', "larger than a number can be"), (deep, "no JSON"),
        (b'{"a": ' + b"[" * 70 + b"]" * 70 + b"}", "more than 64 lists"),
        (b'{"n": ' + b"9" * 5000 + b"}", "no JSON"),
    ):  # fmt: skip
        reply = server.ask(CHAT, body)
        assert reply.status == 400 and reply.error["code"] == "invalid_json", body[:40]
        assert said in reply.error["message"] or "recursion" in reply.error["message"], (body[:40], reply.error)
    smile = json.dumps({**BODIES[CHAT], "messages": [{"role": "user", "content": "😀 \u2028"}]}).encode()
    assert b"\\ud83d" in smile and server.ask(CHAT, smile).status == 200  # a whole letter in two escapes


def test_every_status_has_its_shape(folder, server):
    for reply, status, code in (
        (server.chat(model="none"), 404, "model_not_found"),
        (server.ask("/v1/nothing"), 404, "not_found"), (server.ask(CHAT), 405, "method_not_allowed"),
        (server.ask("/health", {}), 405, "method_not_allowed"), (server.ask("/../etc"), 404, "not_found"),
        (server.ask(CHAT, b"model=tiny", content_type="application/x-www-form-urlencoded"), 415, "content_type"),
        (server.ask(CHAT, BODIES[CHAT], origin="http://elsewhere.example"), 403, "origin_not_allowed"),
        (server.ask(CHAT, BODIES[CHAT], origin="null"), 403, "origin_not_allowed"),
        (server.ask(CHAT, BODIES[CHAT], origin="http://[", host="["), 403, "origin_not_allowed"),
        # A name that its owner has made to mean this machine.
        (server.ask(CHAT, BODIES[CHAT], origin="http://rebound.example", host="rebound.example"), 403,
         "origin_not_allowed"),
    ):  # fmt: skip
        assert (reply.status, reply.error["code"]) == (status, code)
    assert server.ask(CHAT).headers["allow"] == "POST"
    own = f"http://127.0.0.1:{server.port}"
    assert server.ask(CHAT, BODIES[CHAT], origin=own, content_type="application/json; charset=utf-8").status == 200


def test_head_and_options(server):
    for path in ("/health", "/v1/models", "/"):
        reply = server.ask(path, method="HEAD")
        assert reply.status == 200 and reply.raw == b"" and int(reply.headers["content-length"]) > 0
    reply = server.ask(CHAT, method="OPTIONS")
    assert reply.status == 405 and "access-control-allow-origin" not in reply.headers


def test_limits_of_a_server(folder):
    limits = Limits(body=2000, seconds=0.2, key="sesame-ß", origins=("https://chat.example",))
    with Served(folder, limits=limits, queue_size=3) as server:
        key = "Bearer sesame-ß".encode().decode("latin-1")
        body = BODIES[PLAIN]
        for wrong in (None, "Bearer ", "sesame", "Bearer sesame", key.replace("Bearer", "Basic"), key + "x"):
            reply = server.ask(PLAIN, body, **({} if wrong is None else {"authorization": wrong}))
            assert reply.status == 401 and reply.error["code"] == "invalid_api_key"
            assert reply.error["type"] == "authentication_error" and reply.headers["www-authenticate"] == "Bearer"
        assert server.ask("/metrics").status == server.ask("/live").status == 401
        for path in ("/health", "/ready", "/"):
            assert server.ask(path).status == 200
        assert server.ask(PLAIN, body, authorization=key).status == 200
        assert server.ask(PLAIN, body, authorization=key.replace("Bearer", "bearer")).status == 200
        for size in (2001, 9000):
            reply = server.ask(PLAIN, b" " * size, authorization=key)
            assert reply.status == 413 and reply.error["code"] == "body_too_large"
        # One that says it is huge is not waited for.
        with socket.create_connection(("127.0.0.1", server.port)) as huge:
            head = f"POST {PLAIN} HTTP/1.1\r\nhost: x\r\nauthorization: {key}\r\ncontent-length: 99999999\r\n\r\n"
            huge.sendall(head.encode("latin-1"))
            assert huge.recv(12, socket.MSG_WAITALL) == b"HTTP/1.1 413"
        with socket.create_connection(("127.0.0.1", server.port)) as endless:
            endless.sendall(head.replace("content-length: 99999999", "transfer-encoding: chunked").encode("latin-1"))
            endless.sendall(b"".join(b"400\r\n" + b" " * 1024 + b"\r\n" for _ in range(9)))
            assert endless.recv(12, socket.MSG_WAITALL) == b"HTTP/1.1 413"
        # One that does not come is not waited for either.
        with socket.create_connection(("127.0.0.1", server.port)) as slow:
            slow.sendall(head.replace("99999999", "50").encode("latin-1") + b'{"model"')
            assert slow.recv(12, socket.MSG_WAITALL) == b"HTTP/1.1 408"
        page = {"authorization": key, "origin": "https://chat.example"}
        reply = server.ask(PLAIN, body, **page)
        assert reply.status == 200 and reply.headers["access-control-allow-origin"] == "https://chat.example"
        asked = server.ask(PLAIN, method="OPTIONS", access_control_request_method="POST", origin=page["origin"])
        assert asked.status == 200 and asked.headers["access-control-allow-origin"] == "https://chat.example"
        reply = server.ask(PLAIN, {**body, "n": 4}, authorization=key)
        assert reply.status == 400 and "at most 3 at once" in reply.error["message"]


def test_who_comes_too_many_is_told_to_come_later(folder):
    with Served(folder, queue_size=2) as server:
        long = {"model": NAME, "prompt": "the cat", "max_tokens": 1500, "ignore_eos": True, "n": 2, "stream": True}
        with server.begin(PLAIN, long) as first:
            assert first.recv(1000)
            for stream in (False, True):
                reply: Reply = server.complete(stream=stream)
                assert reply.status == 429 and reply.headers["retry-after"] == "1"
                assert reply.error["type"] == "rate_limit_error" and reply.error["code"] == "overloaded"
            assert server.ask("/health").status == 200
        assert server.pages_in_use() == 0 and server.complete().status == 200
        server.state.loop.draining = True
        reply = server.complete()
        assert reply.status == 503 and reply.headers["retry-after"] == "5" and server.ask("/ready").status == 503
        assert server.ask("/health").status == 200
