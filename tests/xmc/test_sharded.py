"""Labels divided among processes: two that talk by gloo have the numbers of one."""

from __future__ import annotations

from pathlib import Path

import torch
from forked import ranks

from gossamer.testing import assert_same_bits
from gossamer.xmc import FusedHead, Growth

WORKER = """
import sys, pathlib, torch
from torch import distributed
from gossamer.xmc import FusedHead, Growth, ShardedHead
from gossamer.xmc.data import Csr
sys.path.insert(0, sys.argv[2])
from test_sharded import LABELS, batch, settings

torch.set_num_threads(1)
distributed.init_process_group("gloo")
rank, out = distributed.get_rank(), pathlib.Path(sys.argv[1])
head = ShardedHead(20, LABELS, **settings())
grads = []
for at in range(4):
    x, labels = batch(at)
    grad, loss = head.step(x, labels, 0.1)
    grads.append((grad, loss))
    if at % 2:
        grads.append(head.rewire(0.5, protect=1))
        grads.append(head.rewire(0.3, scope="global", growth=Growth(x, labels, 4) if at == 3 else None))
    if at == 2:
        head.save(out / "saved")
        head = ShardedHead.open(out / "saved")  # and on with what was read
found = head.topk(batch(9)[0], 7, exclude=Csr.from_lists([[1, 99]] * 5, LABELS), never=torch.tensor([3, 60]))
head.rewire(0.3, scope="global", protect=2)
torch.save([grads, found, head.head.indices.int()], out / f"rank{rank}.pt")
(out / "blocked").write_text("a file") if rank == 0 else None
distributed.barrier()
try:
    head.save(out / "blocked")
except Exception as error:
    print("refused", type(error).__name__)
distributed.destroy_process_group()
"""
LABELS = 100


def settings():
    return {"fan_in": 6, "optimizer": "adam", "group": 16, "seed": 3, "loss": "hinge"}


def batch(at):
    generator = torch.Generator().manual_seed(at)
    return torch.randn(5, 20, generator=generator), torch.randint(LABELS, (5, 3), generator=generator).tolist()


def test_two_processes_have_the_numbers_of_one(tmp_path):
    for code, said, errors in ranks([str(tmp_path), str(Path(__file__).parent)], WORKER):
        assert code == 0, errors
        assert said.startswith("refused")  # in both, and none waits for the other

    one, expected = FusedHead(20, LABELS, **settings()), []
    for at in range(4):
        x, labels = batch(at)
        expected.append(one.step(x, labels, 0.1))
        if at % 2:
            expected.append(one.rewire(0.5, protect=1))
            # New connections are at 0: of these equal ones those of the first labels go, whoever has them.
            expected.append(one.rewire(0.3, scope="global", growth=Growth(x, labels, 4) if at == 3 else None))
        if at == 2:
            opened = FusedHead.open(tmp_path / "saved", verify=True)
            for found, mine in zip(opened.buffers(), one.buffers(), strict=True):
                assert_same_bits(found, mine)
    from gossamer.xmc.data import Csr

    best = one.topk(batch(9)[0], 7, exclude=Csr.from_lists([[1, 99]] * 5, LABELS), never=torch.tensor([3, 60]))
    one.rewire(0.3, scope="global", protect=2)
    rows = one.indices.int().split([3, 4])
    for rank in range(2):
        grads, found, indices = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        for mine, theirs in zip(expected, grads, strict=True):
            if isinstance(mine, int):
                assert mine == theirs
            else:
                assert (
                    torch.allclose(mine[0], theirs[0], rtol=1e-5, atol=1e-6)
                    and abs(mine[1] - theirs[1]) < 1e-6 * mine[1]
                )
        for mine, theirs in zip(best, found, strict=True):
            assert_same_bits(theirs, mine)
        assert torch.equal(indices, rows[rank])
