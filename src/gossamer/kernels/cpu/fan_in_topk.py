"""The best labels of each row of a batch: scores stay in L1, and only what beats a row's worst leaves it."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.cpu import _call


def fan_in_topk(
    x: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, group: int, best: int, first: int,
    offsets: Tensor | None, ids: Tensor | None, always: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(scores, ids)[batch, best]; see `gossamer.kernels.reference.fan_in_topk`. x is read in either order."""
    operand = _call.matrix(x, "x", dtypes=(torch.float32,))
    batch, cols = x.shape
    classifier = _call.classifier(values, indices, bias, group, batch, cols)
    for name, each in (("offsets", offsets), ("ids", ids), ("always", always)):
        if each is not None:
            _call.tensor(each, name, ndim=1, dtypes=(torch.int64,))
    if (offsets is None) != (ids is None) or (offsets is not None and offsets.numel() != batch + 1):
        raise ValueError(f"offsets must have {batch + 1} entries and come with ids, got {offsets} and {ids}")
    _call.count(best, "best")
    _call.count(first, "first")
    _call.count(batch * best, "the product of batch and best")
    excluded = (
        _call.address(offsets), _call.address(ids), 0 if ids is None else ids.numel(), _call.address(always),
        0 if always is None else always.numel(),
    )  # fmt: skip
    scores, found = (
        torch.empty(batch, best, dtype=torch.float32, device="cpu"),
        torch.empty(batch, best, dtype=torch.int64, device="cpu"),
    )
    if best == 0:
        return scores, found
    threads = torch.get_num_threads()
    parameters = (values.data_ptr(), indices.data_ptr(), _call.address(bias), 0, 0, 0, 0)
    room = _call.native.fan_in_topk_workspace(classifier, best, threads)
    workspace = torch.empty(room, dtype=torch.uint8, device="cpu")
    wrong = _call.native.fan_in_topk(
        operand, classifier, parameters, first, excluded, best, scores.data_ptr(), found.data_ptr(),
        workspace.data_ptr(), threads,
    )  # fmt: skip
    if wrong >= 0:
        raise ValueError(f"the scores of x must not be NaN, which has no rank: label {first + wrong} gives it")
    if wrong != -1:
        if offsets is not None and ids is not None:
            _call.check_list(None, "ids", offsets, ids.numel())
            if offsets[0] != 0:
                raise ValueError(f"offsets must start at 0, got {int(offsets[0])}")
        _call.check_bounds("indices", "column", indices.reshape(-1), 0, cols)
        _call.refuse_changed("indices and offsets")
    return scores, found
