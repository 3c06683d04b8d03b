"""One of the ranks that hold a model together.

The folder has the cases, pickled; each rank writes there what came of them.
"""

from __future__ import annotations

import os
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from serving_decoders import decoder
from torch import distributed

from gossamer.serving import LLM, Engine, Sampling
from gossamer.serving.stepping.team import RankLost


class Fails:
    """A constraint whose fifth question ends in an error, once."""

    def __init__(self) -> None:
        self.asked = 0

    def narrow(self, logits: torch.Tensor) -> torch.Tensor:
        self.asked += 1
        if self.asked == 5:
            raise ZeroDivisionError
        return logits

    def take(self, token: int) -> bool:
        return False


def work(engine: Engine, case: dict[str, Any]) -> dict[str, Any]:
    """What becomes of requests that come two at a time; of those that are taken back when they have 3 tokens; and of
    those of which a pass fails when its tokens are chosen, so that all in it start again."""
    jobs: list[Any] = []
    requests = case["requests"]
    while engine.busy or len(jobs) < len(requests):
        for prompt in requests[len(jobs) : len(jobs) + 2]:
            jobs.append(engine.add(prompt, Sampling(max_tokens=24)))
            jobs[-1].constraint = Fails() if len(jobs) in case["fails"] else None
        for _ in range(20):
            with suppress(ZeroDivisionError):
                engine.step()
            for at in case["aborted"]:
                if at < len(jobs) and len(jobs[at].tokens) >= 3:
                    engine.stop(jobs[at])
    return {
        "tokens": [job.tokens for job in jobs], "restarts": [job.restarts for job in jobs],
        "cached": [job.cached for job in jobs], "hits": engine.prefixes.hits, "tally": vars(engine.tally),
    }  # fmt: skip


def engine_of(case: dict[str, Any], **more: Any) -> Engine:
    return Engine(decoder(case["family"]), end=[], **{**case["settings"], **more})


def rank_of(rank: int, size: int, port: str, folder: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": str(rank), "WORLD_SIZE": str(size)}
    distributed.init_process_group("gloo")
    torch.set_num_threads(1)
    made = []
    for case in pickle.loads((folder / "cases").read_bytes()):
        share = {"memory": case["settings"]["memory"] // size} if "memory" in case["settings"] else {}
        engine = engine_of(case, group=distributed.group.WORLD, **share)
        result = {"bytes": engine.store.nbytes, "weights": sum(each.numel() for each in engine.model.parameters())}
        if rank:
            engine.follow()
        else:
            result |= work(engine, case)
            engine.close()
        made.append(result)
    made.append(refused(rank, case))
    (folder / f"rank{rank}").write_bytes(pickle.dumps(made))
    (folder / "last").write_text(last(rank, case))
    os._exit(0)  # its group has lost a rank: nothing to take leave of


def refused(rank: int, case: dict[str, Any]) -> list[str]:
    """What is said in each rank where only the second one has no memory, and no model."""
    said = []
    memory = 1000 if rank else 1 << 24
    for make in (
        lambda: engine_of(case, group=distributed.group.WORLD, memory=memory, max_length=256),
        lambda: LLM("no/model" if rank else decoder("llama"), group=distributed.group.WORLD),
    ):
        try:
            make()
        except (ValueError, OSError) as error:
            said.append(f"{type(error).__name__}: {error}")
    return said


def last(rank: int, case: dict[str, Any]) -> str:
    """The last rank goes in the middle of a pass; what the first one says then, now and when it is asked again."""
    engine = engine_of({**case, "settings": {}}, group=distributed.group.WORLD)
    if rank:
        engine.model.model.norm.register_forward_hook(lambda *_: os._exit(7))
        engine.follow()
    said = []
    job = engine.add([5, 6, 7], Sampling(max_tokens=4))
    for _ in range(2):
        try:
            while engine.busy:
                engine.step()
        except RankLost as lost:
            said.append(str(lost))
    engine.stop(job)
    engine.close()
    assert len(said) == 2 and said[0] == said[1]
    return said[0]
