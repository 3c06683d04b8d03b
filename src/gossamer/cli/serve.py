"""`gossamer serve`: a model behind OpenAI's API on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from torch import distributed

from gossamer.cli.flags import as_bytes, use_threads
from gossamer.cli.language import check_pattern, language_model
from gossamer.extras import needed
from gossamer.integrations.distributed import World, connected
from gossamer.ops.paged.pool import Stored
from gossamer.ops.paged.scores import PageScore
from gossamer.serving.checkpoints import models
from gossamer.serving.sparsity import Sparsity

if TYPE_CHECKING:
    from gossamer.server.state import State
    from gossamer.serving.llm import LLM


@dataclass(frozen=True)
class Serve:
    """Serve a language model by OpenAI's API, with a page to look at. `gossamer serve demo` needs no model of yours.

    Under torchrun its processes divide the model: torchrun --nproc-per-node 2 -m gossamer serve ...
    """

    model: Annotated[str, tyro.conf.Positional]
    """A name of `gossamer model`, a folder of Hugging Face's or with a .gguf, a .gguf file, or demo."""
    host: str = "127.0.0.1"
    """Where to listen; an address that others reach, like 0.0.0.0, needs an API key."""
    port: int = 8000
    """0: any that is free."""
    served_model_name: tuple[str, ...] = ()
    """Names by which clients ask for the model; that of the folder or file when not given."""
    api_key: str | None = None
    """What clients must send; the variable GOSSAMER_API_KEY when not given."""
    origins: tuple[str, ...] = ()
    """Pages elsewhere whose scripts may ask, like https://chat.example; "*" for all. None when not given."""
    router: Path | None = None
    """Tokens choose their layers by it: a file of `gossamer route distill`."""
    static_sparsity: float = 0.0
    """Share of key heads that see the first and the last tokens only."""
    pattern: Path | None = None
    """Which heads those are: a file of `gossamer calibrate`."""
    sink: int = 128
    """First tokens that they see."""
    local: int = 256
    """Last tokens that they see."""
    token_budget: int | None = None
    """Tokens that the other heads read while decoding, in pages that they choose; all when not given."""
    interval: int = 1
    """Tokens after which pages are chosen anew."""
    score: PageScore = "keys"
    """How pages are ranked: by four bits of every key; or by the extremes or the moments of 16 keys together."""
    kv_dtype: Stored | None = None
    """How keys and values are stored; as the weights when not given."""
    memory: str | None = None
    """For keys and values of each process, like 800M or 2G; half of what is free, for all of them, when not given."""
    max_model_len: int | None = None
    """Tokens of prompt and answer together; what the model was made for when not given."""
    max_num_seqs: int = 16
    """Texts that are made at once."""
    chunk: int = 256
    """Tokens of prompts in one pass, beside those that are being written."""
    prefixes: int = 64
    """Texts whose keys stay for others that begin alike, while there is room; 0: none."""
    queue: int = 64
    """Texts that are made or wait; more are told to come later."""
    timeout: float | None = None
    """Seconds that a request may take."""
    drain: float = 30.0
    """Seconds that running requests have to end in when the server is stopped."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the weights; as they were saved when not given."""
    threads: int | None = None
    """CPU threads; torch's own choice when not given."""
    debug: bool = False
    """Show the traceback of an error."""


def run(config: Serve) -> None:
    """Serve until a signal comes."""
    for name in ("uvicorn", "starlette", "pydantic", "prometheus_client"):
        needed(name, f"gossamer serve needs {name}", "server")
    use_threads(config.threads)
    for name, value, holds, expected in (
        ("queue", config.queue, config.queue >= 1, "at least 1"),
        ("prefixes", config.prefixes, config.prefixes >= 0, "at least 0"),
        ("drain", config.drain, config.drain >= 0, "at least 0 seconds"),
        ("timeout", config.timeout, config.timeout is None or config.timeout > 0, "above 0 seconds"),
    ):
        if not holds:
            raise ValueError(f"--{name} must be {expected}, got {value:g}")
    check_pattern("--static-sparsity", config.static_sparsity, config.pattern)
    key = _key(config)
    with connected("cpu") as world:
        if not world.first:
            logging.getLogger("gossamer").setLevel(logging.ERROR)  # the first one warns
        if world.first:
            _lead(config, key, world)
        else:
            _follow(config, world)


def _follow(config: Serve, world: World) -> None:
    """Another rank than the first: compute its part of the model, until the first one has ended."""
    llm = _model(config, world)
    for each in (signal.SIGINT, signal.SIGTERM):  # torchrun sends them to all; the first decides what comes of them
        signal.signal(each, signal.SIG_IGN)
    llm.follow()


def _lead(config: Serve, key: str | None, world: World) -> None:
    """The only process, or the first rank: serve until a signal comes."""
    uvicorn: Any = needed("uvicorn", "gossamer serve needs uvicorn", "server")
    from gossamer.server import Limits, State, application  # here: without its packages it cannot be imported

    bound = _bound(config.host, config.port)  # before a model is read: a port in use is said at once
    llm = _model(config, world)
    names = config.served_model_name or served_names(config.model)
    state = State(llm, names, queue_size=config.queue, seconds=config.timeout)
    served = application(state, Limits(key=key, origins=config.origins))
    server = uvicorn.Server(
        uvicorn.Config(
            served, log_level="warning", lifespan="off", access_log=False, timeout_graceful_shutdown=_LAST_WORDS
        )
    )
    host, port = bound.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    print(f"{state.names[0]} is served at http://{host}:{port} (stop with Ctrl-C)", file=sys.stderr, flush=True)
    try:
        asyncio.run(_serve(server, bound, state, config.drain))
    finally:
        state.loop.close()
        llm.close()
        bound.close()


_LAST_WORDS = 5
"""Seconds that connections stay open for what is still to be read there, when all requests have ended."""


def _key(config: Serve) -> str | None:
    """What clients must send.

    Raises:
        ValueError: others than this machine could ask without one.
    """
    key = os.environ.get("GOSSAMER_API_KEY") if config.api_key is None else config.api_key
    if not key and config.host not in ("localhost", "::1") and not config.host.startswith("127."):
        raise ValueError(f"--host {config.host} is reached by others: give --api-key, or set GOSSAMER_API_KEY")
    return key or None


def _model(config: Serve, world: World) -> LLM:
    sparsity = Sparsity(
        static=config.static_sparsity, pattern=config.pattern, sink=config.sink, local=config.local,
        token_budget=config.token_budget, interval=config.interval, score=config.score, stored=config.kv_dtype,
    )  # fmt: skip
    return language_model(
        config.model, config.router, sparsity=sparsity, dtype=config.dtype, memory=as_bytes(config.memory),
        max_length=config.max_model_len, max_requests=config.max_num_seqs, chunk=config.chunk, prefixes=config.prefixes,
        group=distributed.group.WORLD if world.size > 1 else None,
    )  # fmt: skip


def served_names(model: str) -> tuple[str, ...]:
    """What clients may call it: the last part of a path; `demo` also by the name of the model that it is."""
    names = [Path(model).name or model, *([models.meant(model)] if model == models.DEMO else [])]
    return tuple(dict.fromkeys(names))


def _bound(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ValueError: a port out of range. OSError: it is in use, or the host is not this machine's.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"--port must be from 0 to 65535, got {port}")
    kind = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(kind, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise OSError(error.errno, f"--host {host} --port {port} cannot be used: {error.strerror}") from None
    bound.listen(2048)
    return bound


async def _serve(server: Any, bound: socket.socket, state: State, drain: float) -> None:
    """Serve; at a signal finish what runs, at a second one do not wait for it."""
    stop = asyncio.Event()
    server.install_signal_handlers = lambda: None
    loop = asyncio.get_running_loop()

    def signalled() -> None:
        if stop.is_set():
            server.force_exit = True
        stop.set()

    for each in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(each, signalled)
    with _no_capture(server):
        serving = asyncio.create_task(server.serve(sockets=[bound]))
        waited = [asyncio.create_task(each) for each in (stop.wait(), _failed(state))]
        await asyncio.wait([serving, *waited], return_when=asyncio.FIRST_COMPLETED)
        if not serving.done():
            logging.getLogger(__name__).info("stopping")
            waiting = asyncio.create_task(state.loop.drain(drain))
            while not waiting.done() and not server.force_exit:
                await asyncio.sleep(0.05)
            server.should_exit = True
            state.loop.close()
        await serving
    if state.loop.failure is not None:
        raise RuntimeError(f"the engine has ended: {state.loop.failure}")


async def _failed(state: State) -> None:
    """Return when the engine's thread has ended by itself."""
    while state.loop.alive:
        await asyncio.sleep(0.5)


@contextlib.contextmanager
def _no_capture(server: Any) -> Any:
    """uvicorn takes signals for itself while it serves; this command has its own way with them."""
    server.capture_signals = contextlib.nullcontext
    yield
