"""What the autograd functions of all families share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def save(ctx: Any, *tensors: Tensor | None) -> None:
    """Save for backward, of what was made under inference_mode a copy: an index made there serves training too."""
    if not torch.compiler.is_compiling():
        tensors = tuple(x.clone() if x is not None and x.is_inference() else x for x in tensors)
    ctx.save_for_backward(*tensors)
