"""A real server in a thread: uvicorn, the engine, a tiny model with random weights; and a client that hides nothing."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import re
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Forked, pair
from small_tokenizers import byte_level

import gossamer as gs
from gossamer.server import Limits, State, application

transformers = pytest.importorskip("transformers")
uvicorn = pytest.importorskip("uvicorn")

NAME = "tiny/model"  # names of models may have slashes
CHAT, PLAIN, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
BODIES = {
    CHAT: {"model": NAME, "messages": [{"role": "user", "content": "the cat"}], "max_completion_tokens": 4},
    PLAIN: {"model": NAME, "prompt": "the cat", "max_tokens": 4},
    RESPONSES: {"model": NAME, "input": "the cat", "max_output_tokens": 4},
}
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'broken' or m['content'] == 'refuse me' %}"
    "{{ raise_exception('no such turn') }}{% endif %}<|user|>{{ m['role'] }} {{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}: {% endif %}"
)


def tiny_model(place: Path) -> Path:
    """A checkpoint that never ends its text by itself: what a test sees of an end, it has asked for."""
    tokenizer = byte_level()
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, eos_token_id=0, bos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
        # One channel of the residual stream is the same for all tokens, and speaks only against the end.
        model.model.embed_tokens.weight[:, 0] = 0.08
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = layer.mlp.down_proj.weight[0] = 0
        model.lm_head.weight[:, 0] = model.lm_head.weight[config.eos_token_id] = 0
        model.lm_head.weight[config.eos_token_id, 0] = -600
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


class Served:
    """A server at `url`; `state` is its engine's side, for tests that look behind the wire."""

    def __init__(self, folder: Path, *, limits: Limits | None = None, llm: dict[str, Any] | None = None, **state: Any):
        made = gs.serving.LLM(folder, **{"max_requests": 4, "chunk": 64, "prefixes": 8, **(llm or {})})
        self.state = State(made, [NAME, "other"], **state)
        self._bound = socket.create_server(("127.0.0.1", 0))
        self.port = self._bound.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.app = application(self.state, limits)
        config = uvicorn.Config(self.app, log_level="error", lifespan="off", timeout_graceful_shutdown=2)
        self._server = uvicorn.Server(config)
        self._server.capture_signals = contextlib.nullcontext
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve(sockets=[self._bound])))

    def __enter__(self) -> Served:
        self._thread.start()
        wait_for(lambda: self._server.started)
        return self

    def __exit__(self, *error: object) -> None:
        wait_for(lambda: not self.state.loop.open, 20)
        self.state.loop.close()
        self._server.should_exit = True
        self._thread.join(20)
        self._bound.close()

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._server.server_state.connections)

    def pages_in_use(self) -> int:
        """Pages that are held, when nothing is being made any more, beside those of texts that are kept for others."""
        wait_for(lambda: not self.state.loop.open and not self.state.llm.engine.busy)
        self.state.loop.tell(self.state.llm.engine.prefixes.clear)
        wait_for(lambda: not self.state.llm.engine.prefixes.known)
        return sum(pages.count - pages.free for pages in self.state.llm.engine.store.pages.values())

    def ask(self, path: str, body: Any = None, *, method: str | None = None, **headers: str) -> Reply:
        """One request on a connection of its own; a body that is no bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        kind = {"content-type": "application/json"} if raw is not None else {}
        said = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method or ("GET" if raw is None else "POST"), path, raw, {**kind, **said})
        answer = connection.getresponse()
        reply = Reply(answer.status, dict(answer.getheaders()), answer.read())
        connection.close()
        return reply

    def chat(self, text: str = "the cat", **more: Any) -> Reply:
        fields = {"model": NAME, "messages": [{"role": "user", "content": text}], "max_completion_tokens": 8, **more}
        return self.ask("/v1/chat/completions", {name: value for name, value in fields.items() if value is not ...})

    def complete(self, prompt: Any = "the cat", **more: Any) -> Reply:
        return self.ask("/v1/completions", {"model": NAME, "prompt": prompt, "max_tokens": 8, **more})

    def begin(self, path: str, body: Any, receive: int | None = None) -> socket.socket:
        """Send a request and read nothing yet; `receive`: bytes that this end takes in."""
        connection = socket.socket()
        if receive is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        connection.connect(("127.0.0.1", self.port))
        raw = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
        )
        connection.sendall(head.encode() + raw)
        return connection


class Apart:
    """A server in a process of its own, or in two that divide its model, as `torchrun` starts them."""

    def __init__(self, folder: Path, *flags: str, port: int = 0, ranks: int = 1) -> None:
        words = ["serve", str(folder), "--served-model-name", NAME, "--port", str(port), "--threads", "1", *flags]
        self.processes = pair(words) if ranks == 2 else [Forked(words)]
        wait_for(lambda: re.search(r"http://127\.0\.0\.1:(\d+)", self.said))
        self.port = int(re.search(r"http://127\.0\.0\.1:(\d+)", self.said).group(1))

    @property
    def said(self) -> str:
        return "".join(each.errors for each in self.processes)

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, *error: object) -> None:
        for each in self.processes:
            each.process.kill()
            each.process.join()

    def signal(self, number: signal.Signals) -> None:
        for each in self.processes:
            each.send_signal(number)

    def ask(self, path: str, body: Any = None) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        raw = None if body is None else json.dumps(body)
        connection.request("POST" if raw else "GET", path, raw, {"content-type": "application/json"})
        return connection.getresponse()


class Reply:
    """What came back."""

    def __init__(self, status: int, headers: dict[str, str], raw: bytes) -> None:
        self.status, self.headers, self.raw = status, headers, raw

    @property
    def json(self) -> Any:
        return json.loads(self.raw)

    @property
    def error(self) -> dict[str, Any]:
        said = self.json
        assert set(said) == {"error"} and set(said["error"]) == {"message", "type", "param", "code"}
        return said["error"]

    @property
    def events(self) -> list[Any]:
        """Server-sent events: their data, and [DONE] as it is."""
        assert self.headers["content-type"].startswith("text/event-stream")
        blocks = self.raw.decode("ascii").split("\n\n")
        assert blocks[-1] == ""
        data = [next(line[6:] for line in block.split("\n") if line.startswith("data: ")) for block in blocks[:-1]]
        return [each if each == "[DONE]" else json.loads(each) for each in data]

    @property
    def text(self) -> str:
        choice = self.json["choices"][0]
        return choice["text"] if "text" in choice else choice["message"]["content"]


_PAUSE = threading.Event()


def wait_for(happened: Any, seconds: float = 120.0) -> None:
    """Return when it has happened; fail if it does not."""
    for _ in range(int(seconds * 100)):
        if happened():
            return
        _PAUSE.wait(0.01)
    raise AssertionError("it did not happen in time")
