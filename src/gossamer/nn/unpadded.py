"""Run a network on the real tokens of a padded batch: they are gathered once, and scattered back once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gossamer.pattern.check import require, sized


class Unpadded(nn.Module):
    """module(x) for the tokens that count, zero for padding: time in proportion to the real tokens.

    One index serves every product inside the module. The module must treat tokens one by one (linear layers, norms,
    feed-forward blocks, experts; not attention, not batch norm).

    Args:
        module: takes [tokens, features] and returns [tokens, features'].

    Source: the token gather of PIT (2023), section 4; also known as unpadding, or packing of sequences.

    >>> run = Unpadded(torch.nn.Linear(4, 2))
    >>> y = run(torch.randn(2, 3, 4), lengths=torch.tensor([3, 1]))
    >>> y.shape, int((y != 0).any(-1).sum())
    (torch.Size([2, 3, 2]), 4)
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, mask: Tensor | None = None, *, lengths: Tensor | None = None) -> Tensor:
        """x[batch, tokens, features] -> [batch, tokens, features'].

        Args:
            mask: bool[batch, tokens], True for real tokens.
            lengths: integers [batch], the first so many tokens are real. Give one of the two. Counting the tokens reads
                from the device (a sync).

        Raises:
            TypeError, ValueError: both or neither given, or shapes that do not fit.
        """
        if (mask is None) == (lengths is None):
            raise TypeError("give mask or lengths, one of the two")
        if x.dim() < 3:
            raise ValueError(f"x must have shape [batch, tokens, features], got {tuple(x.shape)}")
        if lengths is not None:
            if lengths.is_floating_point():
                raise TypeError(f"lengths must be integers, got {lengths.dtype}")
            if lengths.shape != x.shape[:1]:
                raise ValueError(f"lengths must have shape [{x.shape[0]}], got {tuple(lengths.shape)}")
            wide = lengths.to(torch.int64)  # the number of tokens need not fit the dtype of the lengths
            require(
                ((wide >= 0) & (wide <= x.shape[1])).all().cpu(),  # counting the tokens waits for the device anyway
                lambda: f"lengths must be between 0 and {x.shape[1]} tokens, got {lengths.tolist()}",
                f"lengths must be between 0 and {sized('tokens', x.shape[1])}",
            )
            mask = torch.arange(x.shape[1], device=x.device) < wide.unsqueeze(1)
        assert mask is not None
        if mask.dtype != torch.bool or mask.shape != x.shape[:2]:
            raise ValueError(f"mask must be bool{list(x.shape[:2])}, got {mask.dtype}{list(mask.shape)}")
        tokens = mask.flatten().nonzero().squeeze(1)
        y = self.module(x.flatten(0, 1).index_select(0, tokens))
        return y.new_zeros(mask.numel(), *y.shape[1:]).index_copy(0, tokens, y).unflatten(0, mask.shape)
