"""`gossamer serve` under torchrun: real requests through two processes that divide a model, and how they end."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from served import NAME, Apart, Served

pytestmark = pytest.mark.filterwarnings("ignore")
ASKED = {"model": NAME, "prompt": "the cat", "max_tokens": 12, "temperature": 0, "ignore_eos": True}
FLAGS = ("--static-sparsity", "0.5", "--sink", "32", "--local", "64", "--token-budget", "192", "--prefixes", "4")


def test_a_request_through_two_ranks_and_a_signal_that_ends_both(folder: Path, server: Served) -> None:
    long = "the cat and the dog " * 30
    with Apart(folder, *FLAGS, ranks=2) as two:
        for prompt in ("the cat", long, long + "and"):
            answer = json.loads(two.ask("/v1/completions", {**ASKED, "prompt": prompt}).read())
            assert answer["usage"]["completion_tokens"] == 12
            if prompt == "the cat":
                assert answer["choices"][0]["text"] == server.complete(**{**ASKED, "model": NAME}).text
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
        shown = json.loads(two.ask("/live").read())
        assert shown["layers"] == [{"dense": 1, "streaming": 1}] * 2 and "keys" in shown["read"]
        stream = two.ask("/v1/completions", {**ASKED, "max_tokens": 200, "stream": True})
        assert stream.read(100)
        two.signal(signal.SIGTERM)  # to both, as torchrun passes on its own
        assert stream.read().endswith(b"data: [DONE]\n\n")  # what runs is finished first
        codes, _, said = zip(*(each.end() for each in two.processes), strict=True)
        assert codes == (0, 0) and "Traceback" not in "".join(said)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies_ends_the_other(folder: Path, rank: int) -> None:
    with Apart(folder, *FLAGS, ranks=2) as two:
        stream = two.ask("/v1/completions", {**ASKED, "max_tokens": 1500, "stream": True})
        assert stream.read(100)
        two.processes[rank].send_signal(signal.SIGKILL)
        code, _, said = two.processes[1 - rank].end()
        lost = f"rank {1 - rank} of 2 cannot go on, another has ended or a pass failed in its middle"
        assert code != 0 and lost in said
