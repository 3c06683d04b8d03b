"""When a process leaves its group, nothing of the group is left: not a thread, however it left."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from forked import Forked

# Each of two processes takes a step in a group, leaves it well or by an error inside forward, and lists its threads.
WORKER = """
import os, sys, threading
import torch
from torch import nn
from gossamer.integrations.distributed import connected

for name in [name for name in sys.modules if name.startswith("torch.distributed.nn")]:
    del sys.modules[name]  # what a process begun from nothing imports in its first DistributedDataParallel

class Net(nn.Linear):
    fails = False
    def forward(self, x):
        if self.fails:
            raise ValueError("on purpose")
        return super().forward(x)

def step(world, fails):
    net = Net(3, 3)
    network = world.wrap(net)
    import torch.distributed.nn
    network(torch.ones(2, 3)).sum().backward()
    net.fails = fails
    network(torch.ones(2, 3))

def threads():
    return sorted(open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task"))

def leave(fails, store):
    with connected("cpu") as world:
        step(world, fails)

torch.ones(2, 3) @ torch.ones(3, 3)
for fails in (False, True):
    os.environ["MASTER_PORT"] = sys.argv[1 + fails]
    caught = None
    try:
        leave(fails, None)
    except ValueError as error:
        caught = error  # held, as `main` holds what it reports
    assert (caught is not None) == fails
    native = [name for name in threads() if name.startswith(("gloo", "pt_gloo", "pt_tcpstore"))]
    print(native, [t.name for t in threading.enumerate() if t is not threading.main_thread()], flush=True)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_no_thread_of_a_group_outlives_it(free_ports: list[str]) -> None:
    environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    workers = [Forked(free_ports, WORKER, RANK=rank, LOCAL_RANK=rank, **environment) for rank in ("0", "1")]
    for code, said, errors in [worker.end() for worker in workers]:
        assert code == 0, errors
        assert said.splitlines() == ["[] []", "[] []"]


@pytest.fixture
def free_ports() -> list[str]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [str(place.getsockname()[1]) for place in held]
    for place in held:
        place.close()
    return ports


def test_a_variable_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from gossamer.integrations.distributed import connected

    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ValueError, match="WORLD_SIZE='two'; expected a whole number"), connected("cpu"):
        pass
