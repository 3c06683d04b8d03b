"""Whatever comes over the wire: no 500, no crash, and the next request is answered. The OpenAPI document is true."""

from __future__ import annotations

import importlib.util
import json
import socket
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served import BODIES, NAME, Served

from gossamer.server.openapi import ANSWERS, ENDPOINTS, document

pytestmark = pytest.mark.filterwarnings("ignore")
EXAMPLES = {"fast": 40, "slow": 2000}
SCHEMAS = document([NAME])["components"]["schemas"]
FIELDS = sorted({name for request in ENDPOINTS.values() for name in request.model_fields})
WORDS = [NAME, "user", "tool", "function", "json_object", "required", "auto", "text", "9" * 400]
PLAIN = st.none() | st.booleans() | st.integers(-5, 2000) | st.integers() | st.floats(allow_nan=False)
VALUES = st.recursive(
    PLAIN | st.text(max_size=20) | st.sampled_from(WORDS),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


def said(server: Served, raw: bytes) -> list[int]:
    """The statuses that come back for what is sent on one connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while more := connection.recv(1 << 16):
                answer += more
        except ConnectionResetError:  # it had more to read than it wanted
            pass
    return [int(line.split()[1]) for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]


def posted(path: str, body: bytes, *headers: str) -> bytes:
    head = [
        f"POST {path} HTTP/1.1",
        "host: x",
        "content-type: application/json",
        f"content-length: {len(body)}",
        *headers,
    ]
    return "\r\n".join([*head, "connection: close", "", ""]).encode() + body


@st.composite
def mutated(draw) -> bytes:
    """A request that was right, with some bytes changed, lost, or doubled."""
    path = draw(st.sampled_from(sorted(BODIES)))
    raw = bytearray(posted(path, json.dumps(BODIES[path]).encode()))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(raw) - 1))
        end = draw(st.integers(at, min(at + 20, len(raw))))
        raw[at:end] = draw(st.binary(max_size=8) | st.just(bytes(raw[at:end]) * 2))
    return bytes(raw)


@st.composite
def altered(draw) -> bytes:
    """A request in JSON, some of whose fields are anything."""
    path = draw(st.sampled_from(sorted(BODIES)))
    body = BODIES[path] | draw(st.dictionaries(st.sampled_from(FIELDS), VALUES, min_size=1, max_size=4))
    return posted(path, json.dumps(body).encode())


NAMES = ["origin", "host", "authorization", "content-type", "content-length", "x-request-id", "expect", "connection",
         "transfer-encoding", "accept", "access-control-request-method"]  # fmt: skip
LETTERS = st.characters(min_codepoint=32, max_codepoint=255, blacklist_characters="\x7f")
TEXTS = st.text(LETTERS, max_size=12) | st.sampled_from(
    ["http://[", "null", "Bearer x", "application/json;", "[::1]:1"]
)


@st.composite
def headed(draw) -> bytes:
    """A request with headers of anything, of which some may come twice, and any method and path."""
    method = draw(st.sampled_from(["POST", "GET", "HEAD", "OPTIONS", "PUT", "X"]))
    path = draw(st.sampled_from([*sorted(BODIES), "/", "/live", "/v1/models/x", "*", "/%ff/%00", "//"]))
    body = json.dumps(BODIES["/v1/completions"])
    more = draw(st.lists(st.tuples(st.sampled_from(NAMES), TEXTS), max_size=4))
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {text}" for name, text in more), "connection: close", "", body]
    return "\r\n".join(lines).encode("latin-1")


def check(server: Served, raw: bytes) -> None:
    statuses = said(server, raw)
    assert not [status for status in statuses if status >= 500], raw


@pytest.fixture(scope="module")
def short(folder):
    with Served(folder, llm={"max_length": 128}) as server:
        yield server
        assert server.pages_in_use() == 0 and server.complete().status == 200


RELAXED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)


@settings(RELAXED, max_examples=EXAMPLES["fast"])
@given(raw=st.binary(max_size=200) | mutated() | altered() | headed())
def test_no_bytes_break_it(short, raw):
    check(short, raw)


@pytest.mark.slow
@settings(RELAXED, max_examples=EXAMPLES["slow"], derandomize=False)
@given(raw=st.binary(max_size=400) | mutated() | altered() | headed())
def test_no_bytes_break_it_at_length(short, raw):
    check(short, raw)


@pytest.mark.slow
def test_schemathesis_finds_the_document_true(short, tmp_path):
    """Thousands of requests made from the document: answers have the documented statuses, types and shapes, and what
    the document forbids is refused. What it allows may be refused too: a template, a length."""
    if importlib.util.find_spec("schemathesis") is None:
        pytest.skip("schemathesis is not installed: pip install 'schemathesis>=4'")
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{short.url}/openapi.json", "--phases", "coverage,fuzzing",
        "--max-examples", "300", "--continue-on-failure", "--exclude-checks", "positive_data_acceptance", "--seed", "1",
        "--max-time", "240",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-6000:]


def test_the_document_names_every_route(server):
    told = server.ask("/openapi.json").json
    routes = {route.path.replace(":path", "") for route in server.app.routes}
    assert set(told["paths"]) == routes and set(ANSWERS) <= routes
    for path, request in ENDPOINTS.items():
        schema = told["components"]["schemas"][request.__name__]
        aliases = {field.alias or name for name, field in request.model_fields.items()}
        assert set(schema["properties"]) == aliases and schema["additionalProperties"] is False, path
    assert SCHEMAS["Chat"]["properties"]["model"] == {"type": "string", "enum": [NAME]}
