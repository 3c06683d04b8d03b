"""Two replicas behind Ray Serve: the same answers, streams, errors, and a client that leaves."""

from __future__ import annotations

import http.client
import json
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import NAME, Served, wait_for

import gossamer.server.ray_serve as ours

LONG = {"model": NAME, "prompt": "the cat", "max_tokens": 1500, "ignore_eos": True, "stream": True, "temperature": 0}


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.serve", None)
    with pytest.raises(ImportError, match=r"replicas need Ray Serve: pip install .*gossamer\[ray\]"):
        ours.replicas("smollm2")


@pytest.fixture(scope="module")
def port(folder: Path) -> Iterator[int]:
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install gossamer[ray]")
    serve = pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install gossamer[ray]")
    with socket.create_server(("127.0.0.1", 0)) as free:
        chosen = free.getsockname()[1]
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": chosen})
        serve.run(ours.replicas(folder, count=2, names=[NAME], queue_size=4, max_length=2048, drain=5.0))
        yield chosen
    finally:
        serve.shutdown()
        ray.shutdown()


def ask(port: int, path: str, body: Any = None) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    raw = None if body is None else json.dumps(body)
    connection.request("POST" if raw else "GET", path, raw, {"content-type": "application/json"})
    return connection.getresponse()


def running(port: int) -> set[float]:
    """What replicas say they make, asked often enough that both are likely to answer."""
    texts = [ask(port, "/metrics").read().decode() for _ in range(8)]
    lines = [line for text in texts for line in text.splitlines() if line.startswith("vllm:num_requests_running{")]
    return {float(line.split()[-1]) for line in lines}


@pytest.mark.slow
def test_the_page_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    serve = pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install gossamer[ray]")
    page = (Path(__file__).parents[2] / "docs" / "server.md").read_text()
    source = re.search(r"^```py\n(from ray import serve\n.*?)^```", page, re.DOTALL | re.MULTILINE)
    ran = []
    monkeypatch.setattr(serve, "run", lambda application, blocking: ran.append((application, blocking)))
    exec(source[1], {})
    assert [(type(application), blocking) for application, blocking in ran] == [(serve.Application, True)]


@pytest.mark.slow
def test_replicas_answer_as_one_server(port: int, server: Served) -> None:
    from ray import serve

    (application,) = serve.status().applications.values()
    (deployment,) = application.deployments.values()
    assert deployment.replica_states == {"RUNNING": 2}
    asked = {"model": NAME, "prompt": "the cat", "max_tokens": 12, "temperature": 0}
    texts = {json.loads(ask(port, "/v1/completions", asked).read())["choices"][0]["text"] for _ in range(6)}
    assert texts == {server.complete(**asked).text}
    stream = ask(port, "/v1/completions", {**asked, "stream": True})
    events = stream.read().decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""] and len(events) > 5
    wrong = ask(port, "/v1/completions", {**asked, "max_tokens": -1})
    assert wrong.status == 400 and json.loads(wrong.read())["error"]["param"] == "max_tokens"
    assert ask(port, "/v1/models/none").status == 404


@pytest.mark.slow
def test_a_client_that_leaves_ends_its_text(port: int) -> None:
    stream = ask(port, "/v1/completions", LONG)
    assert stream.read(200)
    wait_for(lambda: 1.0 in running(port))
    stream.close()
    wait_for(lambda: running(port) == {0.0}, 60)
    ended = "".join(ask(port, "/metrics").read().decode() for _ in range(8))
    assert 'finished_reason="abort"' in ended
