"""Small models of attention, and one way to ask whether the backend answers as eager does where tokens are kept."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.compile.backend import compiled
from gossamer.compile.options import options_of
from gossamer.compile.record import Record, observers

WIDTH, HEADS = 16, 2
SHAPES = ((3, 7), (4, 10))
Body = Callable[["Net", Tensor, Tensor], Any]


def right(batch: int, length: int) -> Tensor:
    """bool[B, S]: padding on the right, of one text none."""
    lengths = torch.arange(batch) * 2 % max(length - 1, 1) + 1
    lengths[0] = length
    return torch.arange(length)[None] < lengths[:, None]


def left(batch: int, length: int) -> Tensor:
    return right(batch, length).flip(1)


def holes(batch: int, length: int) -> Tensor:
    keep = torch.arange(batch)[:, None] + torch.arange(length)[None]
    return (keep % 3 != 1) | (torch.arange(length)[None] == 0)


def whole(batch: int, length: int) -> Tensor:
    return torch.ones(batch, length, dtype=torch.bool)


def nothing_in_one(batch: int, length: int) -> Tensor:
    keep = right(batch, length)
    keep[-1] = False
    return keep


class Block(nn.Module):
    """Of attention alone, without modules of its own: tracing those takes longer than all else."""

    def __init__(self) -> None:
        super().__init__()
        qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.weight, self.bias, self.scale = qkv.weight, qkv.bias, nn.Parameter(torch.ones(WIDTH))

    def heads(self, x: Tensor) -> Any:
        qkv = F.linear(F.layer_norm(x, (WIDTH,), self.scale), self.weight, self.bias)
        return qkv.view(*x.shape[:2], 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return x + y.transpose(1, 2).reshape(x.shape)


class Net(nn.Module):
    """Two blocks and some layers, which a body of a test puts together."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.feed = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
        )
        self.linear, self.conv = nn.Linear(WIDTH, WIDTH), nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.batch_norm = nn.BatchNorm1d(WIDTH)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor, keep: Tensor) -> Any:
        return self.body(self, x, keep)

    def encoded(self, x: Tensor, mask: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, mask)
        return x


def keys(keep: Tensor) -> Tensor:
    """The mask of attention that hides padding."""
    return keep[:, None, None, :]


def added(mask: Tensor, value: float) -> Tensor:
    return torch.zeros(mask.shape).masked_fill(~mask, value)


def by_hand(block: Block, x: Tensor, mask: Tensor) -> Tensor:
    q, k, v = block.heads(x)
    weights = (q @ k.transpose(-1, -2) * 0.25 + mask).softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(x.shape)


class Watched:
    """`torch.compile` of a copy of a model, whose pieces run as they are, and the records of its graphs."""

    def __init__(self, model: nn.Module, *, dynamic: bool | None = None, min_padding: float = 0.0) -> None:
        torch._dynamo.reset()
        self.records: list[Record] = []
        self.model = copy.deepcopy(model)
        options = options_of({"min_padding": min_padding})

        def backend(gm: Any, inputs: list[Any]) -> Any:
            observers.append(self.records.append)
            try:
                return compiled(gm, inputs, options, compiler=lambda piece, _: piece)
            finally:
                observers.remove(self.records.append)

        self.run = torch.compile(self.model, backend=backend, dynamic=dynamic)

    @property
    def packed(self) -> int:
        return sum(record.tally.packed_calls for record in self.records)

    @property
    def reasons(self) -> str:
        """Why something stayed dense."""
        return "; ".join(
            [*(r.tally.refused for r in self.records), *(why for r in self.records for why in r.tally.broken)]
        )


def close(one: Any, two: Any, keep: Tensor) -> None:
    """Equal, but for what a value [B, S, ...] holds where no token is."""
    if isinstance(one, (tuple, list)):
        assert len(one) == len(two)
        for pair in zip(one, two, strict=True):
            close(*pair, keep)
        return
    assert one.shape == two.shape and one.dtype == two.dtype and one.requires_grad == two.requires_grad
    if one.shape[:2] == keep.shape:
        gone = ~keep.view(*keep.shape, *[1] * (one.dim() - 2))
        one, two = one.masked_fill(gone, 0), two.masked_fill(gone, 0)
    scale = float(one.detach().abs().max()) if one.numel() and one.is_floating_point() else 1.0
    torch.testing.assert_close(two, one, rtol=0, atol=2e-5 * max(scale, 1.0))


def answers_as_eager(
    body: Body,
    *,
    keep: Callable[[int, int], Tensor] = right,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    train: bool = False,
    dynamic: bool | None = None,
) -> Watched:
    """Runs both on random inputs of each shape and compares outputs, inputs, buffers and, in training, gradients."""
    torch.manual_seed(0)
    model = Net(body).train(train)
    watched = Watched(model, dynamic=dynamic)
    for batch, length in shapes:
        x, there = torch.randn(batch, length, WIDTH), keep(batch, length)
        mine, its = x.clone(), x.clone()
        with torch.set_grad_enabled(train):
            one, two = model(mine, there), watched.run(its, there)
        close(one, two, there)
        assert torch.equal(mine, its)
        for a, b in zip(model.buffers(), watched.model.buffers(), strict=True):
            torch.testing.assert_close(b, a)
        if train:
            _same_gradients(model, watched.model, one, two)
    return watched


def _same_gradients(model: nn.Module, other: nn.Module, one: Tensor, two: Tensor) -> None:
    for each, loss in ((model, one), (other, two)):
        each.zero_grad()
        loss.backward()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None and b.grad is not None:
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-5)


def read_across(net: Net, x: Tensor, mask: Tensor) -> Tensor:
    """Five queries of their own read the tokens of another text."""
    q = net.linear(torch.ones(len(x), 5, WIDTH)).view(len(x), 5, HEADS, -1).transpose(1, 2)
    _, k, v = net.blocks[1].heads(x)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
