"""A number that compiled graphs take as an input.

An int or float that belongs to one object, such as a layer's key or threshold, would become a constant of the graph and
a guard on it, so that layers of one class could not share a graph. A tensor is an input.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily


def graph_input(number: int | float) -> Tensor:
    """int64[] or float64[] on the CPU: an ordinary tensor, whatever mode or default device it is made under.

    >>> graph_input(3), graph_input(0.5)
    (tensor(3), tensor(0.5000, dtype=torch.float64))
    """
    dtype = torch.int64 if isinstance(number, int) else torch.float64
    with torch.inference_mode(False), unset_fake_temporarily():
        return torch.tensor(number, dtype=dtype, device="cpu")
