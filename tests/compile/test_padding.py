"""Padding is left out of users' own models and of transformers', and kept tokens get eager's answers."""

from __future__ import annotations

import math

import padding_models as models
import pytest
import torch
import torch.nn.functional as F
from padding_models import HEADS, WIDTH, Net, added, answers_as_eager, by_hand, keys
from torch import Tensor

PACKED = {}
"""What must run packed."""


def packs(body: models.Body) -> models.Body:
    PACKED[body.__name__] = body
    return body


@packs
def encoder(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    x = net.blocks[0](x, keys(keep))
    return net.blocks[1](x + net.feed(x), keys(keep))


@packs
def mask_of_minus_infinity(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    return net.encoded(x, added(keys(keep), -math.inf))


@packs
def mask_of_the_least_float(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    return net.encoded(x, added(keys(keep), torch.finfo(x.dtype).min))


@packs
def mask_of_ten_thousand(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    return net.encoded(x, added(keys(keep), -1e4))


@packs
def bias_per_head(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    at = torch.arange(x.shape[1])
    far = -(at[:, None] - at).abs() * torch.arange(1, HEADS + 1)[:, None, None] / 4
    return net.encoded(x, added(keys(keep), -1e9) + far)


@packs
def causal(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
    # A query of the padding sees itself in no library's mask that hides it from all.
    return net.encoded(x, seen & keys(keep))


@packs
def sliding_window_beside_full(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    at = torch.arange(x.shape[1])
    near = ((at[:, None] - at).abs() <= 2) & keys(keep)
    return net.blocks[1](net.blocks[0](x, near), keys(keep))


@packs
def prefix_of_two_is_seen_by_all(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    at = torch.arange(x.shape[1])
    return net.encoded(x, ((at[:, None] >= at) | (at < 2)) & keys(keep))


@packs
def by_hand_once(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    return net.linear(by_hand(net.blocks[0], x, added(keys(keep), -1e9)))


@packs
def same_block_twice(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    return net.blocks[0](net.blocks[0](x, keys(keep)), keys(keep))


@packs
def keyword_order(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    q, k, v = net.blocks[0].heads(x)
    mask = keys(keep).expand(*q.shape[:3], x.shape[1])
    y = F.scaled_dot_product_attention(attn_mask=added(mask, -1e9), value=v, key=k, query=q)
    return net.linear(y.transpose(1, 2).reshape(x.shape))


@packs
def keys_are_values(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    q, k = (each.view(*x.shape[:2], HEADS, -1).transpose(1, 2) for each in (net.linear(x), x))
    mask = added(keys(keep).expand(*q.shape[:3], x.shape[1]), -1e9)
    return F.scaled_dot_product_attention(q, k, k, attn_mask=mask).transpose(1, 2).reshape(x.shape)


@packs
def mixes_tokens_before(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    x = net.conv(x.transpose(1, 2)).transpose(1, 2) + x.roll(1, 1) + x.flip(1) + x.cumsum(1)
    first, rest = x.split([1, x.shape[1] - 1], 1)
    return net.encoded(torch.cat([rest, first], 1), keys(keep))


@packs
def picks_of_several_results(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    return net.encoded(x * x.max(-1, keepdim=True)[0] + x.topk(WIDTH, -1)[0], keys(keep))


@packs
def numbers_of_sizes(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    x = net.blocks[0](x, keys(keep))
    return net.blocks[1](x * x.shape[1] / math.sqrt(x.shape[1]), keys(keep))


@packs
def products_along_the_width(net: Net, x: Tensor, keep: Tensor) -> tuple[Tensor, ...]:
    x = net.encoded(x, keys(keep))
    return x.prod(-1), x.std(-1), x.norm(dim=-1), x.logsumexp(-1), x.gt(0).any(-1), F.normalize(x, dim=-1)


@packs
def first_token(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    return net.encoded(x, keys(keep))[:, 0]


@packs
def last_token(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    return net.linear(net.encoded(x, keys(keep))[torch.arange(len(x)), keep.sum(1) - 1])


@packs
def tokens_of_rows(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    return net.linear(net.encoded(x, keys(keep))[:, torch.tensor([0, 0])])


@packs
def all_from_the_first_on(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    return net.linear(net.encoded(x, keys(keep))[:, slice(0, None), :])


@packs
def the_first_as_a_slice(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    return net.linear(net.encoded(x, keys(keep))[:, :1]).mean(1)


@packs
def read_by_other_queries(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    return models.read_across(net, net.blocks[0](x, keys(keep)), keys(keep))


@packs
def mean_of_tokens(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    weight = keep[..., None].float()
    return (net.encoded(x, keys(keep)) * weight).sum(1) / weight.sum(1).clamp(min=1e-9)


@packs
def products_of_tokens_that_count(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    x = net.encoded(x, keys(keep)) * keep[..., None]
    return torch.einsum("bsd,btd->bst", x, x)


@packs
def loss_that_ignores(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    labels = torch.zeros(keep.shape, dtype=torch.long).masked_fill(~keep, -100)
    logits = net.encoded(x, keys(keep)).view(-1, WIDTH)
    return F.cross_entropy(target=labels.view(-1), input=logits, label_smoothing=0.1)


@packs
def written_in_place(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    x = net.linear(x)
    x += 1
    x = F.relu(net.linear(net.blocks[0](x, keys(keep))), inplace=True)
    return net.blocks[1](x, keys(keep))


@packs
def written_and_read_later(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    x = net.blocks[0](x, keys(keep)) * keep[..., None]
    x.add_(1)
    return net.blocks[1](x, keys(keep))


@packs
def filled_piece_by_piece(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    x = net.blocks[0](x, keys(keep))
    whole = x.new_empty(*x.shape[:-1], 2 * WIDTH)
    whole[..., :WIDTH].copy_(net.linear(x))
    whole[..., WIDTH:].copy_(x)
    return net.blocks[1](whole[..., 4 : WIDTH + 4], keys(keep))


@packs
def groups_that_are_chosen(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    """As DeepSeek's router leaves groups of experts out."""
    scores = net.blocks[0](x, keys(keep)).flatten(0, 1)
    chosen = scores.view(-1, 4, WIDTH // 4).amax(-1).topk(2, -1)[1]
    mask = torch.zeros_like(scores[:, :4])
    mask.scatter_(1, chosen, 1)
    mask = mask.unsqueeze(-1).expand(-1, 4, WIDTH // 4).reshape(-1, WIDTH)
    best = scores.masked_fill(~mask.bool(), -9.0).topk(3, -1)[1]
    scores = scores.scatter(1, best, scores.gather(1, best) * 2)
    return net.blocks[1](scores.view_as(x), keys(keep))


# A second shape makes symbols of the sizes, with which these bodies count; others do so in the slow tests.
COUNTING = (causal, sliding_window_beside_full, keyword_order, numbers_of_sizes, last_token, loss_that_ignores)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        *((name, 2 if body in COUNTING else 1) for name, body in PACKED.items()),
        *(pytest.param(name, 2, marks=pytest.mark.slow) for name, body in PACKED.items() if body not in COUNTING),
    ],
)
def test_is_packed_and_answers_as_eager(name: str, shapes: int) -> None:
    watched = answers_as_eager(PACKED[name], shapes=models.SHAPES[:shapes])
    assert watched.packed == shapes, watched.reasons


@pytest.mark.parametrize(
    "keep",
    [
        models.left,
        models.nothing_in_one,
        *(pytest.param(each, marks=pytest.mark.slow) for each in (models.holes, models.whole)),
    ],
)
@pytest.mark.parametrize(
    "body", [encoder, mask_of_the_least_float, causal, mean_of_tokens, last_token, loss_that_ignores]
)
def test_wherever_the_padding_is(body: models.Body, keep) -> None:
    answers_as_eager(body, keep=keep, shapes=models.SHAPES[:1])


@pytest.mark.parametrize(
    "shapes",
    [[(7, 7)], [(WIDTH, WIDTH)], [(HEADS, WIDTH)], [(5, HEADS)], [(1, 7), (3, 7)], [(3, 1), (3, 2)], [(2, 3), (33, 3)]],
)
@pytest.mark.parametrize("dynamic", [*(pytest.param(each, marks=pytest.mark.slow) for each in (True, False)), None])
def test_whatever_sizes_coincide(shapes: list[tuple[int, int]], dynamic: bool | None) -> None:
    answers_as_eager(mean_of_tokens, shapes=shapes, dynamic=dynamic)


@pytest.mark.parametrize("body", [mean_of_tokens, loss_that_ignores])
def test_gradients(body: models.Body) -> None:
    def loss(net: Net, x: Tensor, keep: Tensor) -> Tensor:
        return body(net, x, keep).square().sum()

    assert answers_as_eager(loss, train=True).packed
