"""Dynamic workloads, forward and backward: experts, a ReLU feed-forward, padded batches, block-sparse attention.

Weights are random. Every candidate of a row computes the same thing; what is compared is the way there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gossamer as gs
from gossamer.bench import Settings

Calls = dict[str, Callable[[], Any]]


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


def _both_ways(forward: Callable[..., Tensor], inputs: list[Tensor]) -> Callable[[], Any]:
    """Forward and the gradients of all inputs that want one."""
    wanted = [x for x in inputs if x.requires_grad]

    def call() -> Any:
        y = forward()
        return torch.autograd.grad(y, wanted, torch.ones_like(y))

    return call


def experts(settings: Settings, routing: str) -> Calls:
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
        "loop over experts": _both_ways(lambda: _loop(x, ups, downs, ids), [x, *ups, *downs]),
        "loop over sorted slices": _both_ways(lambda: _sorted_loop(x, ups, downs, ids), [x, *ups, *downs]),
        "gossamer": _both_ways(lambda: moe(x, ids.unsqueeze(1)), [x, up, down]),
    }
    if routing != "all to one":  # padded to 4096 tokens for each of 64 experts: more memory than there is
        calls["padded bmm"] = _both_ways(lambda: _padded(x, up, down, ids), [x, up, down])
    return calls


def feed_forward(settings: Settings, zeros: float) -> Calls:
    """A ReLU feed-forward of 1024 tokens whose neurons are off for whole bands of tokens, as with clustered inputs."""
    tokens, dim, hidden = (128, 32, 64) if settings.quick else (1024, 768, 3072)
    net = gs.nn.ReLUFeedForward(dim, hidden, bias=False).to(settings.device)
    off = (torch.rand(tokens // 32, hidden) < zeros).repeat_interleave(32, 0).to(settings.device)
    inner = F.relu(torch.randn(tokens, hidden, device=settings.device).abs().masked_fill_(off, -1.0))
    down = net.down.weight.t()
    return {
        "torch dense": lambda: inner @ down,
        "tile=(32, 1)": lambda: gs.ops.matmul(inner, down, tile=(32, 1)),
        "tile='auto'": lambda: gs.ops.matmul(inner, down),
    }


def padded_batch(settings: Settings, real: float) -> Calls:
    """A feed-forward block on a batch of 32 sequences of up to 128 tokens, of which this share is real on average."""
    batch, length, dim = (4, 16, 32) if settings.quick else (32, 128, 768)
    net = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim)).to(settings.device)
    lengths = torch.linspace(2 * real - 1, 1, batch).clamp(min=1 / length).mul(length).long().to(settings.device)
    x = torch.randn(batch, length, dim, device=settings.device, requires_grad=True)
    inputs = [x, *net.parameters()]
    unpadded = gs.nn.Unpadded(net)
    return {
        "padded": _both_ways(lambda: net(x), inputs),
        "gossamer": _both_ways(lambda: unpadded(x, lengths=lengths), inputs),
    }


def attention(settings: Settings, window: int) -> Calls:
    """8 heads of 2048 tokens, each seeing the blocks of 32 within `window` tokens on both sides."""
    heads, tokens, dim, block = (2, 128, 16, 16) if settings.quick else (8, 2048, 64, 32)
    place = torch.arange(tokens) // block * block
    mask = (place[:, None] - place).abs() <= window
    index = gs.nn.AttentionIndex.of(gs.Pattern.from_mask(mask, (block, block)).to(settings.device), heads)
    q, k, v = (torch.randn(1, heads, tokens, dim, device=settings.device, requires_grad=True) for _ in range(3))
    mask = mask.to(settings.device)
    return {
        "SDPA with a mask": _both_ways(lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask), [q, k, v]),
        "gossamer": _both_ways(lambda: gs.nn.block_sparse_attention(q, k, v, index), [q, k, v]),
    }


def _measure(
    settings: Settings, cells: list[tuple[str, Any, Callable[[Settings, Any], Calls]]], reps: int
) -> list[dict[str, Any]]:
    out = []
    for name, setting, build in cells:
        torch.manual_seed(0)
        run = gs.measure.interleave(build(settings, setting), reps=reps, warmup=1, seconds=20)
        out.append({"workload": name, "setting": setting, **run.to_dict()})
    return out


def expert_rows(settings: Settings) -> list[dict[str, Any]]:
    """One row per routing. A padded bmm takes seconds under skew, so there are few rounds."""
    cells: list[tuple[str, Any, Callable[[Settings, Any], Calls]]] = [
        ("experts", routing, experts) for routing in ("zipf", "uniform", "all to one")
    ]
    return _measure(settings, cells, min(settings.reps, 5))


def rows(settings: Settings) -> list[dict[str, Any]]:
    """One row per workload and setting; the first candidate is the one that everybody has."""
    cells: list[tuple[str, Any, Callable[[Settings, Any], Calls]]] = [
        *(("ReLU feed-forward, 2nd product", zeros, feed_forward) for zeros in (0.0, 0.5, 0.9, 0.95)),
        *(("padded batch, real share", real, padded_batch) for real in (1.0, 0.7, 0.5)),
        *(("attention, window", window, attention) for window in (64, 256, 2048)),
    ]
    return _measure(settings, cells, settings.reps)
