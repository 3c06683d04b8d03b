"""One rank of test_training_distributed.

Trains on its part of every batch and saves, per case, the masks after each step and the last weights.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn  # before there is a group: its defaults would keep it, with its threads, to the very end
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from training_cases import NETWORKS, images, loss

from gossamer.training import METHODS, RigL
from gossamer.training.weights import Layer

STEPS = 16


class LocalGradients(RigL):
    """The mutant: mean over ranks of |local gradient|, as tensor hooks see it before the reduction."""

    name = "local"

    def prepare(self) -> None:
        self.local: dict[str, Tensor] = {}
        for name, tensor in self.tensors.items():
            tensor.parameter.register_hook(lambda g, name=name: self.local.update({name: g.detach().clone()}))

    def gradient(self, layer: Layer) -> Tensor:
        mean = self.local[layer.tensor.name].abs()
        dist.all_reduce(mean)
        return layer.scores(mean / dist.get_world_size())


CASES: dict[str, tuple[type, dict[str, Any]]] = {
    "rigl": (RigL, {"update_every": 4}),
    "set": (METHODS["set"], {"update_every": 4}),
    "snfs": (METHODS["snfs"], {"update_every": 4}),
    "srigl": (METHODS["srigl"], {"update_every": 4, "min_salient": 0.8}),
    "chase": (METHODS["chase"], {"explore_every": 4, "channel_every": 4, "channel_sparsity": 0.3}),
    "local": (LocalGradients, {"update_every": 4}),
}


def make(case: str, model: nn.Module, ranked: bool) -> tuple[torch.optim.Optimizer, Any]:
    cls, options = CASES[case]
    opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return opt, cls(model, opt, density=0.3, total_steps=24, distributed=None if ranked else False, **options)


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return NETWORKS["mlp"]().double()


def batch(t: int, part: slice) -> tuple[Tensor, Tensor]:
    """Sorted by label: ranks see different classes, so their local gradients disagree."""
    x, y = images(16, seed=t, dtype=torch.float64)
    order = torch.argsort(y, stable=True)[part]
    return x[order] * (1 + 3 * y[order].view(-1, 1, 1, 1)), y[order]


def train(case: str, model: nn.Module, ranked: bool, part: slice) -> dict[str, Any]:
    opt, method = make(case, model, ranked)
    masks = []
    for t in range(STEPS):
        opt.zero_grad()
        loss(model, *batch(t, part)).backward()
        opt.step()
        masks.append({name: mask.clone() for name, mask in method.masks.items()})
    weights = [p.detach().clone() for p in method.network.parameters()]
    return {"masks": masks, "weights": weights, "alive": method.channels(), "events": len(method.history)}


def error_of(make_it: Any) -> str:
    try:
        make_it()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def main(rank: int, ranks: int, rendezvous: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=ranks)
    part = slice(rank * 16 // ranks, (rank + 1) * 16 // ranks)
    result: dict[str, Any] = {}
    for case in CASES:
        # different initial weights: DistributedDataParallel copies those of rank 0
        result[case] = train(case, DistributedDataParallel(network(rank)), True, part)
    result["no ddp"] = error_of(lambda: train("rigl", network(0), True, part))
    result["independent"] = train("rigl", network(0), False, part)["events"]
    ddp = DistributedDataParallel(network(0))
    sgd = torch.optim.SGD(ddp.parameters(), lr=0.1)
    chase = METHODS["chase"]
    result["compact"] = error_of(
        lambda: chase(ddp, sgd, total_steps=9, compact_every=1, example_inputs=images(dtype=torch.float64)[0])
    )
    # a method made before DistributedDataParallel, from weights that differ: rank 0 decides
    model = network(rank)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    method = RigL(model, sgd, density=0.3, total_steps=9, init="magnitude")
    result["broadcast"] = {name: mask.clone() for name, mask in method.masks.items()}
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
