"""What the engine is doing now, for the page: each request's pages by layer, what is read of them, and how fast.

To be asked of the engine's thread (`EngineLoop.ask`), between two passes.
"""

from __future__ import annotations

from typing import Any

from gossamer.measure import clock
from gossamer.server.generation import Generation
from gossamer.server.state import State
from gossamer.serving.sparsity import View

MOST = 16  # requests that are told of


def picture(state: State) -> dict[str, Any]:
    """JSON for the page."""
    engine = state.llm.engine
    dense = engine.store.pages.get(View(None, 0))
    pages = None if dense is None else {"used": dense.count - dense.free, "count": dense.count}
    layers = [{"dense": _heads(parts, None), "streaming": _heads(parts, True)} for parts in engine.parts]
    shown = sorted(state.loop.running, key=lambda each: each.times.arrived)[:MOST]
    tally = engine.tally
    return {
        "model": state.names[0], "page": engine.store.sparsity.page, "pages": pages, "layers": layers,
        "waiting": len(engine.waiting), "running": len(engine.running), "read": str(tally),
        "kept": len(engine.prefixes.known),
        "token_budget": engine.sparsity.token_budget, "requests": [_request(state, each) for each in shown],
    }  # fmt: skip


def _heads(parts: Any, streaming: bool | None) -> int:
    return sum(part.heads.numel() for part in parts if (part.view.window is not None) == bool(streaming))


def _request(state: State, generation: Generation) -> dict[str, Any]:
    job, times = generation.job, generation.times
    said: dict[str, Any] = {
        "prompt": len(generation.prompt), "tokens": generation.tokens, "cached": generation.cached,
        "seconds": round(clock.now() - times.arrived, 2), "state": "waiting", "layers": [],
    }  # fmt: skip
    request = None if job is None else job.pages
    if request is None or job is None:
        return said
    said["state"] = "reading" if job.done < len(job.prompt) else "writing"
    if times.first is not None and times.last is not None and times.last > times.first:
        said["rate"] = round((generation.tokens - 1) / (times.last - times.first), 1)
    page = state.llm.engine.store.sparsity.page
    total = -(-request.length // page)
    for layer, parts in enumerate(state.llm.engine.store.parts):
        for at, part in enumerate(parts):
            if part.view.window is None:
                each = request.chosen.get((layer, at))
                read = sorted({int(p) for p in each.pages.flatten().tolist()}) if each is not None else None
                said["layers"].append({"layer": layer, "pages": total, "read": read})
    return said
