"""Many clients at once: what they count, and for a minute of all that clients do, that nothing is lost or grows."""

from __future__ import annotations

import contextlib
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from served import NAME, Served

from gossamer.bench.serve.load import Load, ask

pytestmark = pytest.mark.filterwarnings("ignore")


def test_what_the_load_generator_counts_is_what_was_made(server):
    more = {"ignore_eos": True}
    load = Load(server.port, NAME, clients=3, requests=5, new=6, prompt=lambda number: f"cat {number}", more=more)
    load()
    load()
    assert load.tokens == [30, 30] and len(load.answered) == 10
    for each in load.answered:
        assert each.tokens == 6 and 1 <= len(each.pieces) <= 6 and each.asked < each.pieces[0] <= each.pieces[-1]
        assert each.prompt == server.chat("cat 1").json["usage"]["prompt_tokens"]
    found = load.latencies()
    assert set(found) == {"ttft", "tpot", "itl"} and found["ttft"]["mean"] > 0
    with pytest.raises(RuntimeError, match="answered 404"):
        ask(server.port, "none", "cat", 3, {})


def resident() -> int:
    """Bytes of memory that this process has."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


class Client:
    """One that does all that clients do, in an order of its own."""

    def __init__(self, server: Served, number: int, stop: threading.Event) -> None:
        self.server, self.draw, self.stop = server, random.Random(number), stop
        self.admitted = 0

    def __call__(self) -> None:
        while not self.stop.is_set():
            self.draw.choice([self.whole, self.streamed, self.leaves, self.wrong, self.kept, self.looks])()

    def fields(self) -> dict:
        draw = self.draw
        words = " ".join(draw.choice(["the", "cat", "mat", "never"]) for _ in range(draw.choice([1, 10, 90])))
        return {
            "model": NAME, "messages": [{"role": "user", "content": words}], "temperature": draw.choice([0, 1]),
            "max_completion_tokens": draw.choice([1, 8, 40]), "n": draw.choice([1, 1, 2]),
        }  # fmt: skip

    def answered(self, reply) -> bool:
        """Whether it was admitted; then it is whole."""
        assert reply.status in (200, 429), reply.raw
        self.admitted += reply.status == 200
        return reply.status == 200

    def whole(self) -> None:
        fields = self.fields()
        reply = self.server.ask("/v1/chat/completions", fields)
        if self.answered(reply):
            assert len(reply.json["choices"]) == fields["n"]
            assert all(each["finish_reason"] in ("stop", "length") for each in reply.json["choices"])

    def streamed(self) -> None:
        reply = self.server.ask("/v1/chat/completions", {**self.fields(), "stream": True})
        if self.answered(reply):
            assert reply.events[-1] == "[DONE]"

    def leaves(self) -> None:
        body = {**self.fields(), "max_completion_tokens": 400, "ignore_eos": True, "stream": self.draw.random() < 0.5}
        with self.server.begin("/v1/chat/completions", body) as connection:
            connection.settimeout(self.draw.choice([0.01, 0.2]))
            with contextlib.suppress(TimeoutError):
                connection.recv(100)

    def wrong(self) -> None:
        reply = self.server.ask("/v1/chat/completions", {**self.fields(), **self.draw.choice([{"n": 0}, {"wings": 1}])})
        assert reply.status == 400

    def kept(self) -> None:
        reply = self.server.ask("/v1/chat/completions", {**self.fields(), "response_format": {"type": "json_object"}})
        self.answered(reply)

    def looks(self) -> None:
        for path in ("/live", "/metrics", "/health"):
            assert self.server.ask(path).status == 200


@pytest.mark.slow
def test_a_minute_of_clients_of_every_kind(folder):
    with Served(folder, llm={"max_requests": 8, "max_length": 512}, queue_size=48) as server:
        stop = threading.Event()
        clients = [Client(server, number, stop) for number in range(32)]
        with ThreadPoolExecutor(len(clients)) as threads:
            running = [threads.submit(client) for client in clients]
            stop.wait(30)
            before = resident()
            stop.wait(60)
            after = resident()
            stop.set()
            for each in running:
                each.result()
        admitted = sum(client.admitted for client in clients)
        assert admitted > 200 and server.pages_in_use() == 0
        print(f"{admitted} requests answered; memory {before >> 20} MiB, then {after >> 20} MiB")
        assert after < before * 1.02
        errors = server.state.metrics.text()[0].decode()
        assert 'finished_reason="error"' not in errors
