"""Clients of one model over HTTP, few and many, with short and long prompts: dense, sparse, and `transformers serve`.

Each candidate is a server in a process of its own, all of the same float32 weights; rounds are interleaved, so an
idle server is the only company of the one that works. A round is the same requests for each; the other server has no
way to go on after an end token, so it may make fewer tokens, and is compared by its tokens a second.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable, Iterator

import torch

import gossamer as gs
from gossamer.bench.attention.decoders import transformers_here
from gossamer.bench.cells import CONTROL, Cell, ratio, value
from gossamer.bench.section import Row, Section, Settings, Table
from gossamer.bench.serve.load import Load
from gossamer.bench.serve.servers import folder, of_transformers, ours, running

DENSE, SPARSE, OTHER = "dense", "sparse", "transformers serve"
CASES = ((60, 1), (60, 8), (60, 32), (3000, 1), (3000, 8))  # words of a prompt, clients
NEW, ROUNDS = 32, 2  # tokens of an answer, requests of each client in a round
SPARSITY = ("--static-sparsity", "0.5", "--token-budget", "1024")
WORDS = (
    "river",
    "stone",
    "morning",
    "letter",
    "window",
    "garden",
    "paper",
    "winter",
    "music",
    "road",
    "bread",
    "light",
)


def prompt(words: int) -> Callable[[int], str]:
    """Prompts of so many words, another one for each number."""

    def made(number: int) -> str:
        draw = random.Random(number)
        said = " ".join(draw.choice(WORDS) for _ in range(words))
        return f"{number}. Tell a long story with these words: {said}"

    return made


def rows(settings: Settings) -> Iterator[Row]:
    if not transformers_here():
        return
    threads = settings.threads or torch.get_num_threads()
    cases, new = (((6, 1), (40, 3)), 4) if settings.quick else (CASES, NEW)
    sparsity = ("--static-sparsity", "0.5", "--sink", "16", "--local", "64", "--token-budget", "192")
    with folder(settings) as found, contextlib.ExitStack() as servers:
        if found is None:
            return
        model, name = found
        commands = {DENSE: ours(model), SPARSE: ours(model, *(sparsity if settings.quick else SPARSITY))}
        if (other := of_transformers(model)) is not None:
            commands[OTHER] = other
        ports = {each: servers.enter_context(running(command, threads)) for each, command in commands.items()}
        for words, clients in cases:
            loads = {
                each: Load(
                    port,
                    str(model),
                    clients=clients,
                    requests=ROUNDS * clients,
                    new=new,
                    prompt=prompt(words),
                    more={} if each == OTHER else {"ignore_eos": True},
                )
                for each, port in ports.items()
            }
            run = gs.measure.interleave(loads, baseline=DENSE, reps=settings.reps, warmup=1, seconds=240)
            first = loads[DENSE].answered[0]
            yield {
                "model": name, "clients": clients, "prompt": first.prompt, "new": new,
                "requests": ROUNDS * clients, **run.to_dict(),
                "latency ms": {each: load.latencies() for each, load in loads.items()},
                "tokens a round": {each: sum(load.tokens) / len(load.tokens) for each, load in loads.items()},
            }  # fmt: skip


def rate(name: str) -> Cell:
    """Tokens of answers a second, of all clients together."""

    def cell(row: Row) -> str:
        medians = {each["name"]: each["median"] for each in row["rows"]}
        return f"{row['tokens a round'][name] / medians[name]:.1f}" if name in medians else ""

    return cell


def latency(kind: str, name: str) -> Cell:
    """Mean, median and 99th percentile of a latency, in milliseconds."""

    def cell(row: Row) -> str:
        found = row["latency ms"].get(name)
        return " / ".join(f"{found[kind][each]:.0f}" for each in ("mean", "median", "p99")) if found else ""

    return cell


COLUMNS = (
    ("clients", value("clients")), ("tokens of a prompt", value("prompt")),
    *((f"{name}, tokens/s", rate(name)) for name in (DENSE, SPARSE, OTHER)), ("sparse", ratio(SPARSE)), CONTROL,
)  # fmt: skip
WAITS = (
    ("clients", value("clients")), ("tokens of a prompt", value("prompt")),
    *itertools.chain.from_iterable(
        ((f"{kind.upper()} {name}", latency(kind, name)) for name in (DENSE, SPARSE, OTHER))
        for kind in ("ttft", "tpot", "itl")
    ),
)  # fmt: skip

SECTION = Section(
    rows, Table(COLUMNS), {"waits": Table(WAITS, "Mean / median / 99th percentile, in milliseconds.")}, on_gpu=False
)
