"""The k best of n scores, exactly and in linear time: a radix search over the bits of the scores."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.cpu import _call


def topk_mask(scores: Tensor, k: int, largest: bool = True, allowed: Tensor | None = None) -> Tensor:
    """Return the bool mask of the k best allowed scores; see `gossamer.kernels.reference.topk_mask`."""
    _call.tensor(scores, "scores", ndim=1, dtypes=(torch.float32,))
    if k < 0:
        raise ValueError(f"k must be at least 0, got {k}")
    if allowed is not None:
        _call.tensor(allowed, "allowed", ndim=1, dtypes=(torch.bool,))
        if allowed.shape != scores.shape:
            raise ValueError(f"allowed must have {scores.numel()} entries like scores, got {allowed.numel()}")
    n, threads = scores.numel(), torch.get_num_threads()
    mask = torch.empty(n, dtype=torch.bool, device="cpu")
    workspace = torch.empty(_call.native.select_workspace(n, threads), dtype=torch.uint8, device="cpu")
    taken = _call.native.select(
        scores.data_ptr(), _call.address(allowed), n, min(k, n), largest, mask.data_ptr(),
        workspace.data_ptr(), threads,
    )  # fmt: skip
    if taken < 0:
        raise ValueError("scores must not contain NaN where allowed: NaN has no rank")
    return mask
