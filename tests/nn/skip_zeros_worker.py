"""One rank of test_skip_zeros_training: `python skip_zeros_worker.py RANK RANKS RENDEZVOUS OUT`."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
import torch.distributed.nn  # before there is a group: its defaults would keep it, with its threads, to the very end
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import gossamer as gs


def network(batch_norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return gs.models.vgg.VGG(
        (3, 16, 16), 10, stages=((16, 16), (32, 32)), head=(32,), batch_norm=batch_norm, dropout=0.0
    )


def batch(t: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(t)
    y = torch.randint(10, (16,), generator=g)
    return torch.randn(16, 3, 16, 16, generator=g) + y.view(-1, 1, 1, 1) / 5, y


def train(model: nn.Module, steps: int, part: slice = slice(None), dtype: torch.dtype = torch.float32) -> list[float]:
    """The losses of SGD with momentum."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for t in range(steps):
        x, y = batch(t)
        loss = nn.functional.cross_entropy(model(x[part].to(dtype)), y[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    rank, ranks = int(sys.argv[1]), int(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[3]}", rank=rank, world_size=ranks)
    net = network()
    report = gs.nn.skip_zeros(net, skip="input")
    losses = train(DistributedDataParallel(net), 6, slice(rank * 8, rank * 8 + 8))
    calls = {name: site["weight"]["calls"] for name, site in report.stats().items()}
    torch.save({"losses": losses, "weights": [p.detach() for p in net.parameters()], "calls": calls}, sys.argv[4])
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
