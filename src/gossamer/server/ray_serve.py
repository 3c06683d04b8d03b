"""Replicas of the server behind Ray Serve, on one machine or many, at one address.

    from ray import serve
    serve.run(replicas("smollm2", count=2), blocking=True)        # http://127.0.0.1:8000, as `gossamer serve smollm2`

Each replica is a process with an engine of its own. Needs the packages of the extra `ray`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gossamer.extras import needed
from gossamer.server.app import Limits, application
from gossamer.server.state import State
from gossamer.serving.llm import LLM

_BESIDE = 64
"""Requests that a replica takes beyond its queue: those that it tells to come later, and those that ask no text."""


def replicas(
    model: str | Path, *, count: int = 1, names: Sequence[str] = (), limits: Limits | None = None, queue_size: int = 64,
    seconds: float | None = None, drain: float = 30.0, cpus: float = 1.0, gpus: float = 0.0, **settings: Any,
) -> Any:  # fmt: skip
    """An application of Ray Serve with the routes of `gossamer.server.application`.

    Args:
        model: as in `gossamer.serving.LLM`; each replica reads it, so it lies on every machine.
        count: replicas. cpus, gpus: of each; its engine computes with so many threads, one at least.
        names: by which clients ask for the model; that of the folder or file when there are none.
        limits: as in `application`. queue_size, seconds: as in `State`, for each replica.
        drain: seconds that running requests have to end in when a replica is stopped.
        settings: of `LLM`.

    Raises:
        ImportError: ray[serve] is not installed. ValueError: of Ray, naming the number.
    """
    serve: Any = needed("ray.serve", "replicas need Ray Serve", "ray")
    called = list(names) or [Path(model).name or str(model)]

    class Replica:
        """One server; Ray asks `check_health` and starts another where it raises."""

        def __init__(self) -> None:
            import torch

            torch.set_num_threads(max(1, int(cpus)))
            self.state = State(LLM(model, **settings), called, queue_size=queue_size, seconds=seconds)

        def __serve_build_asgi_app__(self) -> Any:
            return application(self.state, limits)

        def check_health(self) -> None:
            if not self.state.loop.alive:
                raise RuntimeError(f"the engine has ended: {self.state.loop.failure}")

        def __del__(self) -> None:
            if hasattr(self, "state"):
                self.state.loop.close()

    Replica.__name__ = Replica.__qualname__ = "Gossamer"
    return serve.deployment(
        serve.ingress()(Replica), num_replicas=count, max_ongoing_requests=queue_size + _BESIDE,
        graceful_shutdown_timeout_s=drain, ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
    ).bind()  # fmt: skip
