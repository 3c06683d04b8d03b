"""The best labels of each row of a batch, block of labels by block: never the scores of all."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.triton.fan_in_mm import fan_in_mm
from gossamer.kernels.triton.launch import check_float

ELEMENTS = 1 << 26  # scores of a block of labels: 256 MiB
HALF = 1 << 32


def fan_in_topk(
    x: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, group: int, best: int, first: int,
    offsets: Tensor | None, ids: Tensor | None, always: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(scores, ids)[batch, best]; see `gossamer.kernels.reference.fan_in_topk`."""
    check_float("x", x)
    labels, batch = values.shape[0], x.shape[0]
    scores = x.new_full((batch, best), -torch.inf)
    found = torch.full((batch, best), -1, dtype=torch.int64, device=x.device)
    row = None
    if offsets is not None and ids is not None:
        # Beyond the last offset there may be ids that belong to no row.
        place = torch.arange(ids.numel(), device=x.device)
        row = torch.searchsorted(offsets[1:], place, right=True)
    step = max(ELEMENTS // max(batch, 1) // group, 1) * group
    for begin in range(0, labels, step):
        end = min(begin + step, labels)
        mine = indices[begin // group : -(-end // group)]
        if group > 1:
            wide = mine.to(torch.int32) if mine.dtype == torch.uint16 else mine
            mine = wide.repeat_interleave(group, 0)[: end - begin]
        z = fan_in_mm(x, values[begin:end], mine)
        if bias is not None:
            z = z + bias[begin:end]
        allowed = torch.ones_like(z, dtype=torch.bool)
        if row is not None and ids is not None:
            here = (row < batch) & (ids >= first + begin) & (ids < first + end)
            allowed[row[here], ids[here] - first - begin] = False
        if always is not None:
            allowed[:, always[(always >= first + begin) & (always < first + end)] - first - begin] = False
        torch._assert_async(~(z.isnan() & allowed).any(), "the scores of x must not be NaN, which has no rank")
        names = torch.where(allowed, torch.arange(begin, end, device=x.device) + first, -1)
        scores, found = merged(torch.cat([scores, z], 1), torch.cat([found, names], 1), best)
    return scores, found


def merged(scores: Tensor, ids: Tensor, best: int) -> tuple[Tensor, Tensor]:
    """The best of candidates, of which equal scores lie in order of label; a label of -1 stands for none.

    Every candidate is one integer, of its score and its place: a sort that must be stable costs several times as much.
    """
    bits = (scores + 0.0).view(torch.int32).to(torch.int64)  # -0.0 equals 0.0
    rank = torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
    place = torch.arange(scores.shape[1] - 1, -1, -1, device=scores.device)
    key = torch.where(ids < 0, -(1 << 63), rank * HALF) + place
    top = key.topk(best, 1).indices
    ids = ids.gather(1, top)
    return torch.where(ids < 0, -torch.inf, scores.gather(1, top)), ids
