"""One rank of test_nn_distributed."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn  # before there is a group: its defaults would keep it, with its threads, to the very end
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gossamer.nn import BlockSparseLinear
from gossamer.training import METHODS

CASES: dict[str, dict[str, Any]] = {
    "rigl": {"method": "rigl"},
    "rigl, method first": {"method": "rigl", "early": True},
    "set": {"method": "set"},
}


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        BlockSparseLinear(24, 40, block=4, density=0.4), nn.Tanh(),
        BlockSparseLinear(40, 16, block=4, density=0.4), nn.Tanh(), nn.Linear(16, 5),
    ).double()  # fmt: skip


def batch(t: int, part: slice) -> tuple[Tensor, Tensor]:
    """Sorted by label and scaled by it: ranks see different classes, so that local gradients disagree."""
    g = torch.Generator().manual_seed(t)
    x, y = torch.randn(16, 24, generator=g, dtype=torch.float64), torch.randint(5, (16,), generator=g)
    order = torch.argsort(y, stable=True)[part]
    return x[order] * (1 + 3 * y[order].view(-1, 1)), y[order]


def train(case: str, rank: int, ranked: bool, part: slice) -> dict[str, Any]:
    """Ranks begin with different networks; DistributedDataParallel gives them that of rank 0, patterns included."""
    options = CASES[case]
    net = network(0 if options.get("early") else rank)
    model: nn.Module = net

    def attach(model: nn.Module) -> tuple[torch.optim.Optimizer, Any]:
        opt = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        arguments = {"density": 0.4, "total_steps": 24, "update_every": 4, "distribution": "uniform"}
        return opt, METHODS[options["method"]](model, opt, exclude=["4.weight"], **arguments)

    if options.get("early"):
        opt, method = attach(net)
    if ranked:
        model = DistributedDataParallel(net)
    if not options.get("early"):
        opt, method = attach(model)
    masks = []
    for t in range(16):
        opt.zero_grad()
        x, y = batch(t, part)
        nn.functional.cross_entropy(model(x), y).backward()
        opt.step()
        masks.append({str(i): net[i].pattern.to_tile_mask() for i in (0, 2)})
    return {"masks": masks, "weights": [net[i].to_dense().detach() for i in (0, 2)], "events": len(method.history)}


def too_small() -> str:
    """ERK wants more tiles in the narrow layer than it has room for, too late to give them."""
    net = nn.Sequential(BlockSparseLinear(64, 64, block=4, density=0.1), BlockSparseLinear(64, 8, block=4, density=0.1))
    model = DistributedDataParallel(net)
    try:
        METHODS["rigl"](model, torch.optim.SGD(net.parameters(), lr=0.1), density=0.1, total_steps=9)
    except RuntimeError as error:
        return str(error)
    return ""


def rank_of(rank: int, ranks: int, rendezvous: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=ranks)
    part = slice(rank * 8, rank * 8 + 8)
    found: dict[str, Any] = {case: train(case, rank, True, part) for case in CASES}
    found["too small"] = too_small()
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
