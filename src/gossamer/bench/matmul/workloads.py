"""Other dynamic workloads: a ReLU feed-forward, padded batches, block-sparse attention."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

import gossamer as gs
from gossamer.bench.cells import short, table
from gossamer.bench.dense import settle, use_fastest
from gossamer.bench.matmul.operands import DENSE
from gossamer.bench.matmul.runtime import AUTO
from gossamer.bench.matmul.steps import COMPARED, NAMED, OURS, Built, Calls, Workload, both_ways, measure
from gossamer.bench.section import MEDIANS, Row, Rows, Section, Settings, Table


def feed_forward(settings: Settings, zeros: float) -> Built:
    """A ReLU feed-forward of 1024 tokens whose neurons are off for whole bands of tokens, as with clustered inputs."""
    tokens, dim, hidden = (128, 32, 64) if settings.quick else (1024, 768, 3072)
    net = gs.nn.ReLUFeedForward(dim, hidden, bias=False).to(settings.device)
    off = (torch.rand(tokens // 32, hidden) < zeros).repeat_interleave(32, 0).to(settings.device)
    inner = F.relu(torch.randn(tokens, hidden, device=settings.device).abs().masked_fill_(off, -1.0))
    down = net.down.weight.t()
    calls: Calls = {
        DENSE: lambda: inner @ down,
        "tile=(32, 1)": lambda: gs.ops.matmul(inner, down, tile=(32, 1)),
        AUTO: lambda: gs.ops.matmul(inner, down),
    }
    with torch.no_grad():
        settle(settings, calls[AUTO])
        return calls, use_fastest(calls, DENSE, settings, inner, down, "b")


def padded_batch(settings: Settings, real: float) -> Built:
    """A feed-forward block on a batch of 32 sequences of up to 128 tokens, of which this share is real on average."""
    batch, length, dim = (4, 16, 32) if settings.quick else (32, 128, 768)
    net = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim)).to(settings.device)
    lengths = torch.linspace(2 * real - 1, 1, batch).clamp(min=1 / length).mul(length).long().to(settings.device)
    x = torch.randn(batch, length, dim, device=settings.device, requires_grad=True)
    inputs = [x, *net.parameters()]
    unpadded = gs.nn.Unpadded(net)
    return {
        "padded": both_ways(lambda: net(x), inputs),
        OURS: both_ways(lambda: unpadded(x, lengths=lengths), inputs),
    }, {}


def attention(settings: Settings, window: int) -> Built:
    """8 heads of 2048 tokens, each seeing the blocks of 32 within `window` tokens on both sides."""
    heads, tokens, dim, block = (2, 128, 16, 16) if settings.quick else (8, 2048, 64, 32)
    place = torch.arange(tokens) // block * block
    mask = (place[:, None] - place).abs() <= window
    index = gs.nn.AttentionIndex.of(gs.Pattern.from_mask(mask, (block, block)).to(settings.device), heads)
    q, k, v = (torch.randn(1, heads, tokens, dim, device=settings.device, requires_grad=True) for _ in range(3))
    mask = mask.to(settings.device)
    return {
        "SDPA with a mask": both_ways(lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask), [q, k, v]),
        OURS: both_ways(lambda: gs.nn.block_sparse_attention(q, k, v, index), [q, k, v]),
    }, {}


def rows(settings: Settings) -> Iterator[Row]:
    """One row per workload and setting; the first candidate is the one that everybody has."""
    cells: list[Workload] = [
        *(("ReLU feed-forward, 2nd product", zeros, feed_forward) for zeros in (0.0, 0.5, 0.9, 0.95)),
        *(("padded batch, real share", real, padded_batch) for real in (1.0, 0.7, 0.5)),
        *(("attention, window", window, attention) for window in (64, 256, 2048)),
    ]
    return measure(settings, cells, settings.reps)


def brief(rows: Rows) -> str:
    """The first and the last setting of each workload; ours is the last candidate of a row, as a user calls it."""
    settings: dict[str, Rows] = {}
    for row in rows:
        settings.setdefault(row["workload"], []).append(row)
    ends = [row for found in settings.values() for row in (found[0], found[-1])]
    return table(ends, [*NAMED, (OURS, lambda row: short(row["rows"][-1]["name"])(row))])


SECTION = Section(rows, Table(COMPARED), {"brief": Table(brief, note=MEDIANS)})
