"""The best labels of each row of a batch: the oracle, by all scores and a stable sort."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.reference._slots import check_offsets, check_places, demand


def fan_in_topk(
    x: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, group: int, best: int, first: int,
    offsets: Tensor | None, ids: Tensor | None, always: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(scores float32[batch, best], ids int64[batch, best]) of the labels first + 0, first + 1, ..., best first.

    x float32[batch, cols], values[labels, k], indices[ceil(labels / group), k], bias float32[labels]. Row b does not
    get the labels ids[offsets[b] : offsets[b + 1]], no row those of `always`; each list ascends. Equal scores come in
    order of label; where there are too few labels, the score is -inf and the label -1.
    """
    (batch, cols), (labels, _) = x.shape, values.shape
    columns = indices.to(torch.int64)
    check_places(columns, torch.ones_like(columns, dtype=torch.bool), cols, "indices")
    mine = columns[torch.arange(labels, device=x.device) // group]
    scores = torch.einsum("blk,lk->bl", x.double()[:, mine], values.double())
    scores = (scores if bias is None else scores + bias.double()).float()
    allowed = torch.ones_like(scores, dtype=torch.bool)
    if offsets is not None and ids is not None:
        check_offsets(offsets, ids.numel())
        row = torch.repeat_interleave(torch.arange(batch, device=x.device), offsets.diff())
        label = ids[: row.numel()] - first
        here = (label >= 0) & (label < labels)
        allowed[row[here], label[here]] = False
    if always is not None:
        allowed[:, (always - first)[(always >= first) & (always < first + labels)]] = False
    demand(~(scores.isnan() & allowed).any(), "the scores of x must not be NaN: NaN has no rank")
    scores = torch.where(allowed, scores, -torch.inf)
    # Those that are excluded last, even behind a score of -inf.
    order = torch.sort(scores, dim=1, descending=True, stable=True).indices
    order = order.gather(1, torch.sort(allowed.gather(1, order), dim=1, descending=True, stable=True).indices)[:, :best]
    found = torch.where(allowed.gather(1, order), order + first, -1)
    short = best - found.shape[1]
    pad = torch.nn.functional.pad
    return pad(scores.gather(1, order), (0, short), value=-torch.inf), pad(found, (0, short), value=-1)
