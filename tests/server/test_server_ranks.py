"""torchrun and `gossamer serve`: real requests through two processes that divide a model, and how they end."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from served import NAME, Served, wait_for

pytestmark = pytest.mark.filterwarnings("ignore")
ASKED = {"model": NAME, "prompt": "the cat", "max_tokens": 12, "temperature": 0, "ignore_eos": True}
FLAGS = ("--static-sparsity", "0.5", "--sink", "32", "--local", "64", "--token-budget", "192", "--prefixes", "4")


class Torchrun:
    """Two processes; `port` is where they listen, `said` what they say, `workers` their numbers by rank."""

    def __init__(self, folder: Path) -> None:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]
        serve = ["gossamer", "serve", str(folder), "--served-model-name", NAME, "--port", "0"]
        self.process = subprocess.Popen(
            [*torchrun, *serve, *FLAGS], stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        self.said: list[str] = []
        threading.Thread(target=lambda: self.said.extend(self.process.stderr), daemon=True).start()
        wait_for(lambda: re.search(r"http://127\.0\.0\.1:(\d+) ", "".join(self.said)), 120)
        self.port = int(re.search(r"http://127\.0\.0\.1:(\d+) ", "".join(self.said)).group(1))

    @property
    def workers(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        ranks = {}
        for child in map(int, children):
            environment = Path(f"/proc/{child}/environ").read_text().split("\0")
            ranks |= {each: child for each in environment if each.startswith("RANK=")}
        return [ranks["RANK=0"], ranks["RANK=1"]]

    def ask(self, path: str, body: Any = None) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        raw = None if body is None else json.dumps(body)
        connection.request("POST" if raw else "GET", path, raw, {"content-type": "application/json"})
        return connection.getresponse()


@contextmanager
def torchrun(folder: Path) -> Iterator[Torchrun]:
    server = Torchrun(folder)
    try:
        yield server
    finally:
        server.process.terminate()
        server.process.wait(60)


def test_a_request_through_two_ranks_and_a_signal_that_ends_both(folder: Path, server: Served) -> None:
    long = "the cat and the dog " * 30
    with torchrun(folder) as two:
        for prompt in ("the cat", long, long + "and"):
            answer = json.loads(two.ask("/v1/completions", {**ASKED, "prompt": prompt}).read())
            assert answer["usage"]["completion_tokens"] == 12
            if prompt == "the cat":
                assert answer["choices"][0]["text"] == server.complete(**{**ASKED, "model": NAME}).text
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
        shown = json.loads(two.ask("/live").read())
        assert shown["layers"] == [{"dense": 1, "streaming": 1}] * 2 and "keys" in shown["read"]
        workers = two.workers
        stream = two.ask("/v1/completions", {**ASKED, "max_tokens": 200, "stream": True})
        assert stream.read(100)
        two.process.send_signal(signal.SIGTERM)
        assert stream.read().endswith(b"data: [DONE]\n\n")  # what runs is finished first
        two.process.wait(60)
        assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
        assert "Traceback" not in "".join(line for line in two.said if "gossamer" in line)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies_ends_the_other(folder: Path, rank: int) -> None:
    with torchrun(folder) as two:
        workers = two.workers
        stream = two.ask("/v1/completions", {**ASKED, "max_tokens": 1500, "stream": True})
        assert stream.read(100)
        os.kill(workers[rank], signal.SIGKILL)
        assert two.process.wait(60) != 0
        assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
        lost = f"rank {1 - rank} of 2 cannot go on, another has ended or a pass failed in its middle"
        assert any(lost in line for line in two.said)
