"""A model behind OpenAI's API: the engine in a thread of its own, HTTP in front of it, a page to look at.

    app = application(State(gs.serving.LLM("smollm2"), ["smollm2"]))          # an ASGI application

`gossamer serve` runs it. Needs the packages of the extra `server`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gossamer.lazy import surface

if TYPE_CHECKING:
    from gossamer.server.app import Limits, application
    from gossamer.server.state import State

_NAMES = {
    "Limits": "gossamer.server.app",
    "State": "gossamer.server.state",
    "application": "gossamer.server.app",
}

__all__ = ["Limits", "State", "application"]

__getattr__, __dir__ = surface(__name__, _NAMES, extra="server")
