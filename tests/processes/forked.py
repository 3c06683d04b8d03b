"""Processes forked from one that has imported the library and what its commands need, which takes seconds.

They are real for signals, exit codes, files and ranks; what a process imports, and in which order, is a matter for
tests that begin one from nothing. The one they are forked from imports what it was told before the first of them, and
nothing later: so all tests are forked from here.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "gossamer.cli.train.command", "gossamer.cli.xmc.command", "gossamer.cli.serve", "gossamer.serving.llm",
        "gossamer.nn", "torch._dynamo", "torch._functorch.aot_autograd", "torch.distributed.nn", "torch.export._trace",
        "networkx", "transformers.models.llama.modeling_llama", "tyro", "uvicorn",
    ]
)  # fmt: skip
CLI = "import sys\nfrom gossamer.cli.__main__ import main\nsys.exit(main(sys.argv[1:]))\n"
BEGIN = """
import os, sys, torch
os.chdir(folder)
os.environ.clear()
os.environ.update(environment)
torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", torch.get_num_threads())))  # it was read before the fork
for number, path in enumerate(said, 1):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
sys.argv = argv
exec(program, {"__name__": "__main__"})
"""


class Forked:
    """A process of its own in the current folder, which runs a program with these arguments and variables."""

    store: torch.distributed.Store | None = None

    def __init__(self, argv: Sequence[str], program: str = CLI, **environment: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._said = [os.path.join(self._folder.name, name) for name in ("out", "err")]
        for path in self._said:
            Path(path).touch()
        variables = {**os.environ, **environment}
        scope = {"folder": os.getcwd(), "environment": variables, "said": self._said, "argv": ["-", *argv]}
        scope["program"] = program
        self.process = SERVER.Process(target=exec, args=(BEGIN, scope), daemon=True)  # it ends with the tests
        self.process.start()

    @property
    def errors(self) -> str:
        """What it has said on stderr so far."""
        return Path(self._said[1]).read_text()

    def send_signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def end(self) -> tuple[int, str, str]:
        """Its exit code, below 0 for a signal, and what it said on stdout and stderr."""
        self.process.join(200)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"it does not end: {self.errors}")
        out, err = (Path(path).read_text() for path in self._said)
        self._folder.cleanup()
        return self.process.exitcode, out, err


def pair(argv: Sequence[str], program: str = CLI, **environment: str) -> list[Forked]:
    """Two processes that know each other as those of a torchrun do: by the store that started them."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment |= {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "OMP_NUM_THREADS": "1",
        "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_RUN_ID": "none",
    }  # fmt: skip
    found = [Forked(argv, program, RANK=rank, LOCAL_RANK=rank, **environment) for rank in ("0", "1")]
    found[0].store = store  # it serves as long as that process is known
    return found


def ranks(argv: Sequence[str], program: str = CLI, **environment: str) -> list[tuple[int, str, str]]:
    """The ends of two such processes."""
    return [each.end() for each in pair(argv, program, **environment)]


def together(work: Callable[..., None], *arguments: Any) -> list[int | None]:
    """The exit codes of two processes that call this with their rank, 2 and the arguments."""
    workers = [SERVER.Process(target=work, args=(rank, 2, *arguments), daemon=True) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    return [worker.exitcode for worker in workers]
