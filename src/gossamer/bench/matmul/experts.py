"""A layer of experts: every token is multiplied with its own."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

import gossamer as gs
from gossamer.bench.matmul.steps import COMPARED, OURS, Built, Workload, both_ways, measure
from gossamer.bench.section import Row, Section, Settings, Table


def zipf(tokens: int, experts: int, exponent: float = 1.0) -> Tensor:
    """int64[tokens]: expert e gets a share of the tokens in proportion to 1 / (e + 1)^exponent, in random order."""
    share = 1 / torch.arange(1, experts + 1, dtype=torch.float64) ** exponent
    ends = (share.cumsum(0) / share.sum() * tokens).round().long()
    ids = torch.searchsorted(ends, torch.arange(tokens), right=True)
    return ids[torch.randperm(tokens, generator=torch.Generator().manual_seed(0))]


def _loop(x: Tensor, ups: list[Tensor], downs: list[Tensor], ids: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    for expert, (up, down) in enumerate(zip(ups, downs, strict=True)):
        mine = (ids == expert).nonzero().squeeze(1)
        y = y.index_copy(0, mine, F.relu(x[mine] @ up) @ down)
    return y


def _padded(x: Tensor, up: Tensor, down: Tensor, ids: Tensor) -> Tensor:
    """One bmm over all experts, each padded to the fullest."""
    experts = up.shape[0]
    order = ids.argsort(stable=True)
    counts = ids.bincount(minlength=experts)
    place = torch.arange(len(ids), device=ids.device) - (counts.cumsum(0) - counts)[ids[order]]
    slots = x.new_zeros(experts, int(counts.max()), x.shape[1]).index_put((ids[order], place), x[order])
    y = F.relu(slots.bmm(up)).bmm(down)
    return torch.zeros_like(x).index_copy(0, order, y[ids[order], place])


def _sorted_loop(x: Tensor, ups: list[Tensor], downs: list[Tensor], ids: Tensor) -> Tensor:
    """The loop of who knows better: tokens sorted once, contiguous slices, one scatter."""
    order = ids.argsort(stable=True)
    pieces = x[order].split(ids.bincount(minlength=len(ups)).tolist())
    y = torch.cat([F.relu(piece @ up) @ down for piece, up, down in zip(pieces, ups, downs, strict=True)])
    return torch.zeros_like(x).index_copy(0, order, y)


def experts(settings: Settings, routing: str) -> Built:
    """64 experts, 4096 tokens, one expert a token."""
    count, tokens, dim, hidden = (8, 128, 32, 64) if settings.quick else (64, 4096, 768, 3072)
    moe = gs.nn.Experts(dim, hidden, experts=count, top_k=1).to(settings.device)
    x = torch.randn(tokens, dim, device=settings.device, requires_grad=True)
    ids = {
        "zipf": lambda: zipf(tokens, count),
        "uniform": lambda: torch.arange(tokens) % count,
        "all to one": lambda: torch.zeros(tokens, dtype=torch.int64),
    }[routing]().to(settings.device)
    up, down = moe.up, moe.down
    # A loop keeps a matrix for each expert: slices of one would give it gradients of the size of all, one per expert.
    ups, downs = ([w.detach().clone().requires_grad_() for w in weights] for weights in (up, down))
    calls = {
        "loop over experts": both_ways(lambda: _loop(x, ups, downs, ids), [x, *ups, *downs]),
        "loop over sorted slices": both_ways(lambda: _sorted_loop(x, ups, downs, ids), [x, *ups, *downs]),
        OURS: both_ways(lambda: moe(x, ids.unsqueeze(1)), [x, up, down]),
    }
    if routing != "all to one":  # padded to 4096 tokens for each of 64 experts: more memory than there is
        calls["padded bmm"] = both_ways(lambda: _padded(x, up, down, ids), [x, up, down])
    return calls, {}


def rows(settings: Settings) -> Iterator[Row]:
    """One row per routing. A padded bmm takes seconds under skew, so there are few rounds."""
    cells: list[Workload] = [("experts", routing, experts) for routing in ("zipf", "uniform", "all to one")]
    return measure(settings, cells, min(settings.reps, 5))


SECTION = Section(rows, Table(COMPARED))
