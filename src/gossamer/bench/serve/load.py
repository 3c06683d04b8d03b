"""A load of clients over HTTP: each asks again as soon as it was answered; when its pieces came is written down.

load = Load(port, model, clients=8, requests=16, new=64, prompt=prompt, more={})
load()                                  # one run: so many streamed chat completions
load.latencies()                        # of all runs, by the names that vLLM's bench gives them
"""

from __future__ import annotations

import http.client
import itertools
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from gossamer.measure import clock


@dataclass
class Answered:
    """One request, in seconds of the clock.

    Attributes:
        asked: when it was sent. pieces: when each piece of its text came. tokens: how many the server says it made.
        prompt: tokens of its prompt, as the server counts them.
    """

    asked: float
    pieces: list[float] = field(default_factory=list)
    tokens: int = 0
    prompt: int = 0

    @property
    def first(self) -> float:
        """Time to the first token."""
        return self.pieces[0] - self.asked

    @property
    def each(self) -> float:
        """Time for each token after the first."""
        return (self.pieces[-1] - self.pieces[0]) / max(self.tokens - 1, 1)

    @property
    def gaps(self) -> list[float]:
        """Between two pieces."""
        return [after - before for before, after in itertools.pairwise(self.pieces)]


def ask(port: int, model: str, prompt: str, new: int, more: Mapping[str, Any]) -> Answered:
    """One streamed chat completion of `new` tokens; `more`: further fields of the request.

    Raises:
        RuntimeError: the server answered with an error, or with nothing.
    """
    body = {
        "model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": new, "stream": True,
        "temperature": 0, "stream_options": {"include_usage": True}, **more,
    }  # fmt: skip
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3600)
    answered = Answered(clock.now())
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        raise RuntimeError(f"the server at port {port} answered {answer.status}: {answer.read(500)!r}")
    for line in answer:
        if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(f"the server at port {port} failed: {event['error']}")
            if any(choice["delta"].get("content") for choice in event.get("choices", ())):
                answered.pieces.append(clock.now())
            if used := event.get("usage"):
                answered.tokens, answered.prompt = used["completion_tokens"], used["prompt_tokens"]
    connection.close()
    if not answered.pieces:
        raise RuntimeError(f"the server at port {port} made no text for a prompt of {len(prompt)} letters")
    answered.tokens = answered.tokens or len(answered.pieces)  # for servers that do not say
    return answered


class Load:
    """So many requests by so many clients at once, as often as it is called.

    Args:
        port, model: of the server. clients: who ask at once. requests: of all of them, in a run. new: tokens of each.
        prompt: the prompt of a number. Numbers are given out in order, so that loads of several servers ask the same.
        more: further fields of a request.

    Attributes:
        answered: all requests. tokens: that each run made.
    """

    def __init__(
        self, port: int, model: str, *, clients: int, requests: int, new: int, prompt: Callable[[int], str],
        more: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self.port, self.model, self.clients, self.requests, self.new = port, model, clients, requests, new
        self.prompt, self.more, self.numbers = prompt, more, itertools.count()
        self.answered: list[Answered] = []
        self.tokens: list[int] = []

    def __call__(self) -> None:
        numbers = [next(self.numbers) for _ in range(self.requests)]
        with ThreadPoolExecutor(self.clients) as clients:
            done = list(clients.map(self._ask, numbers))
        self.answered += done
        self.tokens.append(sum(each.tokens for each in done))

    def _ask(self, number: int) -> Answered:
        return ask(self.port, self.model, self.prompt(number), self.new, self.more)

    def latencies(self) -> dict[str, dict[str, float]]:
        """Mean, median and 99th percentile in milliseconds: to the first token, for each further one, between two."""
        kinds = {
            "ttft": [each.first for each in self.answered],
            "tpot": [each.each for each in self.answered],
            "itl": [gap for each in self.answered for gap in each.gaps],
        }
        return {name: shape([second * 1e3 for second in seconds]) for name, seconds in kinds.items()}


def shape(numbers: Sequence[float]) -> dict[str, float]:
    """Mean, median and 99th percentile: the smallest number that 99 % are no larger than.

    >>> shape([1.0, 2.0, 9.0])
    {'mean': 4.0, 'median': 2.0, 'p99': 9.0}
    """
    if not numbers:
        return {"mean": 0.0, "median": 0.0, "p99": 0.0}
    ordered = sorted(numbers)
    last = ordered[math.ceil(0.99 * len(ordered)) - 1]
    return {"mean": statistics.fmean(numbers), "median": statistics.median(numbers), "p99": last}
