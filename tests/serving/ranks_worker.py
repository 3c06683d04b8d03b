"""One of the ranks that hold a model together: python ranks_worker.py RANK SIZE PORT FOLDER.

The folder has the cases, pickled; each rank writes there what came of them.
"""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import torch
from serving_decoders import decoder
from torch import distributed

from gossamer.serving import Engine, Sampling
from gossamer.serving.team import RankLost


def work(engine: Engine, requests: list[list[int]], aborted: list[int]) -> dict[str, Any]:
    """What becomes of requests that come two at a time; those in `aborted` are taken back when they have 3 tokens."""
    jobs: list[Any] = []
    while engine.busy or len(jobs) < len(requests):
        for prompt in requests[len(jobs) : len(jobs) + 2]:
            jobs.append(engine.add(prompt, Sampling(max_tokens=40)))
        for _ in range(20):
            engine.step()
            for at in aborted:
                if at < len(jobs) and len(jobs[at].tokens) >= 3:
                    engine.stop(jobs[at])
    return {
        "tokens": [job.tokens for job in jobs], "restarts": [job.restarts for job in jobs],
        "cached": [job.cached for job in jobs], "hits": engine.prefixes.hits, "tally": vars(engine.tally),
    }  # fmt: skip


def engine_of(case: dict[str, Any], **more: Any) -> Engine:
    return Engine(decoder(case["family"]), end=[], **{**case["settings"], **more})


def main(rank: int, size: int, port: str, folder: Path) -> None:
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
            result |= work(engine, case["requests"], case["aborted"])
            engine.close()
        made.append(result)
    (folder / f"rank{rank}").write_bytes(pickle.dumps(made))
    (folder / "last").write_text(last(rank, case))
    os._exit(0)  # its group has lost a rank: nothing to take leave of


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


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
