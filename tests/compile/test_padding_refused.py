"""What would give other answers without padding stays dense, for a reason that is told."""

from __future__ import annotations

import math
from collections.abc import Callable

import padding_models as models
import pytest
import torch
import torch.nn.functional as F
from padding_models import HEADS, WIDTH, Body, Net, added, answers_as_eager, keys
from torch import Tensor

DENSE: dict[str, tuple[Body, str]] = {}
"""What must not run packed, and a part of why."""


def stays(why: str) -> Callable[[Body], Body]:
    def add(body: Body) -> Body:
        DENSE[body.__name__] = (body, why)
        return body

    return add


def middle(why: str, change: Callable[[Net, Tensor, Tensor], Tensor]) -> None:
    """Between two blocks something reads or changes tokens by other tokens."""

    def body(net: Net, x: Tensor, keep: Tensor) -> Tensor:
        return net.blocks[1](change(net, net.blocks[0](x, keys(keep)), keep), keys(keep))

    DENSE[f"middle: {why}"] = (body, why)


def behind(why: str, read: Callable[[Net, Tensor, Tensor], Tensor | tuple[Tensor, ...]]) -> None:
    """Behind a block something reads all tokens."""

    def body(net: Net, x: Tensor, keep: Tensor) -> Tensor | tuple[Tensor, ...]:
        return read(net, net.blocks[0](x, keys(keep)), keep)

    DENSE[f"behind: {why}, {len(DENSE)}"] = (body, why)


middle("roll", lambda net, x, keep: x.roll(1, 1))
middle("flip", lambda net, x, keep: x + x.flip(1))
middle("cumsum runs along the tokens", lambda net, x, keep: x.cumsum(1))
middle("softmax runs along the tokens", lambda net, x, keep: x.softmax(1))
middle("normalize runs along the tokens", lambda net, x, keep: F.normalize(x, dim=1))
middle("nothing is known of pad", lambda net, x, keep: x + F.pad(x[:, :-1], (0, 0, 1, 0)))
middle("conv1d", lambda net, x, keep: x + net.conv(x.transpose(1, 2)).transpose(1, 2))
middle("group_norm", lambda net, x, keep: F.group_norm(x.transpose(1, 2), 4).transpose(1, 2))
middle("batch_norm", lambda net, x, keep: net.batch_norm(x.reshape(-1, WIDTH)).view(x.shape))
middle("joins tokens with other dimensions", lambda net, x, keep: x + x.transpose(0, 1).reshape(x.shape))
middle("mean runs over the tokens", lambda net, x, keep: x - x.mean(1, keepdim=True))
middle("a slice of the tokens", lambda net, x, keep: x + x[:, :1])
middle("einsum", lambda net, x, keep: torch.einsum("bsd,btd->bsd", x, x))
middle("gather runs along the tokens", lambda net, x, keep: x.gather(1, torch.zeros_like(x, dtype=torch.long)))
behind("sum runs over the tokens", lambda net, x, keep: x.sum(()))
behind("mean runs over the tokens", lambda net, x, keep: x.mean(dim=[]))
behind("mean runs over the tokens", lambda net, x, keep: x.mean(0))
behind("amax runs over the tokens", lambda net, x, keep: x.masked_fill(~keep[..., None], -1e9).amax(1))
behind("hides every token that is left out", lambda net, x, keep: models.read_across(net, x, keys(keep | ~keep)))
behind("a choice by tensors", lambda net, x, keep: x[..., torch.tensor([0, 1])].mean(1))
behind("a choice by tensors", lambda net, x, keep: x[torch.arange(len(x)), 0:3])
behind("mse_loss", lambda net, x, keep: F.mse_loss(x, torch.zeros(())))
behind(
    "weights of classes",
    lambda net, x, keep: F.cross_entropy(x.view(-1, WIDTH), keep.long().view(-1), reduction="none"),
)
behind(
    "weights of classes", lambda net, x, keep: F.cross_entropy(x.view(-1, WIDTH), keep.long().view(-1), reduce=False)
)
behind("ignores every token", lambda net, x, keep: F.cross_entropy(x.view(-1, WIDTH), keep.long().view(-1)))
behind("token -1 of every text is kept", lambda net, x, keep: x[:, -1])
behind("tokens -2: of every text are kept", lambda net, x, keep: net.linear(x[:, -2:]))
behind("tokens that an index reads", lambda net, x, keep: net.linear(x[torch.arange(len(x)), -1]))
behind("is zero at every token", lambda net, x, keep: (x * (keep | ~keep)[..., None]).sum(1))
behind("reads all tokens", lambda net, x, keep: torch.where(keep[..., None], x, 1.0).sum(1))


@stays("there twice")
def heads_in_the_batch(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    x = net.blocks[0](x, keys(keep))
    q = x.view(*x.shape[:2], HEADS, -1).transpose(1, 2).reshape(-1, x.shape[1], WIDTH // HEADS)
    weights = (q @ q.mT).masked_fill(~keep[:, None].repeat_interleave(HEADS, 0), -1e9).softmax(-1)
    return weights @ q


@stays("[batch, heads, tokens, width]")
def attention_of_texts_to_each_other(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    x = net.encoded(x, keys(keep)).transpose(0, 1)
    return net.blocks[0](x, torch.ones(1, 1, x.shape[1], x.shape[1], dtype=torch.bool).tril())


@stays("a mask that")
def mask_of_heads(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    seen = torch.ones(HEADS, x.shape[1], x.shape[1], dtype=torch.bool).tril()
    return net.blocks[1](net.blocks[0](x, keys(keep)), seen)


@stays("a mask that is not")
def mask_of_queries(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    return net.blocks[1](net.blocks[0](x, keys(keep)), (keep | keep[:, :1])[:, None, :, None])


@stays("without a mask")
def attention_without_a_mask_behind(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    q, k, v = net.blocks[1].heads(net.blocks[0](x, keys(keep)))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)


@stays("sees itself")
def nobody_sees_itself(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    at = torch.arange(x.shape[1])
    return net.encoded(x, ((at != at[:, None]) & (at != x.shape[1] - 1))[None, None] & keys(keep))


@stays("sees some token")
def queries_that_see_nobody(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    at = torch.arange(x.shape[1])
    return net.encoded(x, added((at > 0)[:, None] & keys(keep), torch.finfo(x.dtype).min))


@stays("no attention with a mask")
def scores_and_twice_the_mask(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    q, k, v = net.blocks[0].heads(x)
    mask = added(keys(keep), -1e9) - torch.arange(x.shape[1]) / 10
    weights = torch.add(q @ k.mT, mask, alpha=2).softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(x.shape)


@stays("no attention with a mask")
def scores_that_are_rounded(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    q, k, v = net.blocks[0].heads(x * 5)
    weights = (torch.div(q @ k.transpose(-1, -2), 0.5, rounding_mode="floor") + added(keys(keep), -1e9)).softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(x.shape)


@stays("other heads than groups")
def one_head_of_keys_for_many_of_values(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    q, k, v = net.blocks[0].heads(x)
    weights = (q @ k[:, :1].transpose(-1, -2) + added(keys(keep), -1e9)).softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(x.shape)


def _writes(name: str, write: Callable[[Tensor], object]) -> None:
    def into_the_input(net: Net, x: Tensor, keep: Tensor) -> Tensor:
        write(x)
        return net.encoded(x, keys(keep))

    def into_the_middle(net: Net, x: Tensor, keep: Tensor) -> Tensor:
        x = net.blocks[0](x, keys(keep)) * keep[..., None]
        write(x)
        return net.blocks[1](x, keys(keep))

    DENSE[f"into the input: {name}"] = (into_the_input, "writes into an input")
    DENSE[f"into the middle: {name}"] = (into_the_middle, "in place")


_writes("select", lambda x: x.select(1, 0).add_(1))
_writes("flatten", lambda x: x.flatten(0, 1).mul_(2))
_writes("chunk", lambda x: x.chunk(2, -1)[0].mul_(2))
_writes("transposed", lambda x: x.mT.mul_(2))
_writes("diagonal", lambda x: torch.diagonal(x, 0, 1, 2).add_(2))
_writes("setitem", lambda x: x.__setitem__((slice(None), 0), 0.0))
_writes("out", lambda x: torch.add(x.clone(), 1, out=x))


def _fills(name: str, fill: Callable[[Tensor, Tensor], object]) -> None:
    def body(net: Net, x: Tensor, keep: Tensor) -> Tensor:
        x = net.blocks[0](x, keys(keep))
        whole = x.new_empty(x.shape)
        fill(whole, x)
        return net.blocks[1](whole, keys(keep))

    DENSE[f"filled: {name}"] = (body, "nothing is known of new_empty")


def _first(whole: Tensor, x: Tensor) -> None:
    whole[..., :4].copy_(x[..., :4])


_fills("across tokens", lambda whole, x: whole[:, :].copy_(x.flip(1)))
_fills("one number for all", lambda whole, x: (_first(whole, x), whole[..., 4:].copy_(x[..., :1])))
_fills("in another order", lambda whole, x: (whole[..., 4:].copy_(x[..., 4:]), _first(whole, x)))


@stays("writes into an input")
def counts_its_calls(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    net.seen += 1
    return net.encoded(x, keys(keep))


@torch.compiler.allow_in_graph
def gelu(x: Tensor) -> Tensor:
    """Somebody's own, with a name that torch has too."""
    return x - x.mean(1, keepdim=True)


@stays("test_padding_refused.gelu")
def a_function_with_a_known_name(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    return net.linear(gelu(net.blocks[0](x, keys(keep))))


@stays("the graph breaks off here")
def python_behind_a_break(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    x = net.encoded(x, keys(keep))
    torch._dynamo.graph_break()
    return x.mean(1)


@pytest.mark.parametrize("dynamic", [None, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", DENSE)
def test_stays_dense_with_a_reason(name: str, dynamic: bool | None) -> None:
    body, why = DENSE[name]
    watched = answers_as_eager(body, shapes=models.SHAPES[:1], dynamic=dynamic)
    assert not watched.packed
    assert why in watched.reasons


@pytest.mark.parametrize("keep", [models.right, models.whole])
def test_running_means_are_updated_once(keep: Callable[[int, int], Tensor]) -> None:
    def body(net: Net, x: Tensor, keep: Tensor) -> Tensor:
        norm = net.batch_norm  # by its function: the module counts its batches too
        x = F.batch_norm(x.mT, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=True).mT
        return (net.encoded(x, keys(keep)) * keep[..., None]).sum()

    watched = answers_as_eager(body, keep=keep, train=True)
    assert "writes into an input of the graph" in watched.reasons and not watched.packed


def test_what_runs_without_gradients_still_does() -> None:
    def body(net: Net, x: Tensor, keep: Tensor) -> Tensor:
        pooled = (net.encoded(x, keys(keep)) * keep[..., None]).sum(1)
        with torch.no_grad():
            target = net.linear(pooled)
        return (pooled - target).square().sum() / math.pi

    assert answers_as_eager(body, train=True).packed
