"""Experts that all get all rows, most of them zero, as one batched product: Llama 4.

    x[experts * T, dim]   rows of experts that a token was not sent to are zero
    y = (up * act(gate)) @ down_proj,  gate, up = x @ gate_up_proj      batched over experts

A row of zeros gives a row of zeros, so grouped products over the others give the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from gossamer.compile.changed import Changed, may_look
from gossamer.ops.grouped import GroupedMm
from gossamer.pattern.build import route


def is_stacked(module: nn.Module) -> bool:
    """Whether a module has such weights: gate_up_proj[experts, dim, 2 * hidden], down_proj[experts, hidden, dim]."""
    up, down = getattr(module, "gate_up_proj", None), getattr(module, "down_proj", None)
    if not isinstance(up, Tensor) or not isinstance(down, Tensor) or hasattr(module, "_apply_gate"):
        return False
    names = {name for name, _ in module.named_parameters(recurse=False)}
    activated = names == {"gate_up_proj", "down_proj"} and callable(getattr(module, "act_fn", None))
    if not activated or up.dim() != 3 or down.dim() != 3:
        return False
    return len(up) > 1 and tuple(up.shape) == (len(down), down.shape[2], 2 * down.shape[1])


class RowsThatAreNotZero(Changed):
    """Only rows of x that are not zero are multiplied."""

    gate_up_proj: Tensor
    down_proj: Tensor
    act_fn: Any

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        x, up, down = args[0] if args else None, self.gate_up_proj, self.down_proj
        if len(args) != 1 or kwargs or not isinstance(x, Tensor) or not self._takes(x):
            return self.loop.forward(self, *args, **kwargs)
        count, each = up.shape[0], x.shape[0] // up.shape[0]
        present = (x.detach() != 0).any(1)
        if torch.compiler.is_compiling():  # no number of rows may enter a graph: rows of zeros are left in their places
            owner = torch.arange(count, device=x.device).repeat_interleave(each)
            offsets, order = route(torch.where(present, owner, -1).unsqueeze(1), count)
            return self._products(x, up, down, order, offsets)
        rows = present.nonzero().squeeze(1)
        offsets = pad(torch.bincount(rows // max(each, 1), minlength=count).cumsum(0), (1, 0))
        order = torch.arange(len(rows), dtype=torch.int32, device=x.device)
        y = self._products(x[rows], up, down, order, offsets)
        return y.new_zeros(x.shape[0], y.shape[1]).index_copy(0, rows, y)

    def _takes(self, x: Tensor) -> bool:
        in_graph = torch.compiler.is_compiling() and not torch.is_autocast_enabled(x.device.type)
        rows = x.dim() == 2 and x.shape[0] % len(self.gate_up_proj) == 0
        return (in_graph or may_look(x)) and rows and x.dtype == self.down_proj.dtype

    def _products(self, x: Tensor, up: Tensor, down: Tensor, order: Tensor, offsets: Tensor) -> Tensor:
        gate, linear = GroupedMm.call(x, up, order, offsets, 1, False, None).chunk(2, dim=-1)
        y: Tensor = GroupedMm.call(linear * self.act_fn(gate), down, order, offsets, 1, False, None)
        return y
