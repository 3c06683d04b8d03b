"""Which tokens are there, against a definition that looks at every text, query and key by itself."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import torch
from hypothesis import given
from torch import Tensor

from gossamer.compile import conditions
from gossamer.compile.tokens import CAUSAL, FULL, MASKED, gather, kept, kind_of, scatter, tokens_of

HIDES = (-1e4, -1e9, torch.finfo(torch.float32).min, -math.inf)


@st.composite
def masks(draw: st.DrawFn) -> tuple[list[Tensor], int, int]:
    """One or two masks of a batch, bool or float, of any of the shapes that attention takes."""
    batch, heads, length = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 4))
    found = []
    for _ in range(draw(st.integers(1, 2))):
        shape = (draw(st.sampled_from([1, batch])), draw(st.sampled_from([1, heads])),
                 draw(st.sampled_from([1, length])), length)  # fmt: skip
        sees = torch.tensor(draw(st.lists(st.booleans(), min_size=math.prod(shape), max_size=math.prod(shape))))
        sees = sees.view(shape)
        kind = draw(st.sampled_from(["any", "causal", "padding"]))
        if kind != "any":
            sees = sees[:, :1, :1].expand(shape).clone()
        if kind == "causal" and shape[2] == length:
            sees &= torch.ones(length, length, dtype=torch.bool).tril()
        if draw(st.booleans()):
            small = draw(st.sampled_from([0.0, 0.0, -0.5, -9e3]))
            sees = torch.full(shape, small).masked_fill(~sees, draw(st.sampled_from(HIDES)))
        found.append(sees)
    return found, batch, length


def _adds(mask: Tensor, text: int, head: int, query: int, key: int) -> float:
    """What a mask adds to a score; -inf where it hides."""
    at = tuple(index % size for index, size in zip((text, head, query, key), mask.shape, strict=True))
    value = mask[at].item()
    if isinstance(value, bool):
        return 0.0 if value else -math.inf
    return -math.inf if value <= -1e4 else value


def _all(mask: Tensor, text: int, query: int, key: int) -> list[float]:
    return [_adds(mask, text, head, query, key) for head in range(mask.shape[1])]


@given(masks())
def test_a_token_is_kept_if_any_query_of_any_mask_sees_it(case: tuple[list[Tensor], int, int]) -> None:
    found, batch, length = case
    keep = kept(found, batch, length)
    for text in range(batch):
        for key in range(length):
            seen = any(
                added > -math.inf for mask in found for query in range(length) for added in _all(mask, text, query, key)
            )
            assert keep[text, key] == seen


@given(masks())
def test_the_kind_is_what_the_mask_adds_among_tokens_that_are_kept(case: tuple[list[Tensor], int, int]) -> None:
    found, batch, length = case
    keep = kept(found, batch, length)
    for mask in found:
        kind = kind_of(mask, keep)
        assert kind in (FULL, CAUSAL, MASKED)
        whole = {}
        for text in range(batch):
            there = [token for token in range(length) if keep[text, token]]
            for query in there:
                for key in there:
                    for head, added in enumerate(_all(mask, text, query, key)):
                        whole[text, head, query, key] = added
        if kind == FULL:
            assert all(added == 0 for added in whole.values())
        if kind == CAUSAL:
            assert all(added == (0 if at[3] <= at[2] else -math.inf) for at, added in whole.items())


def test_usual_masks_have_their_kind() -> None:
    keep = torch.tensor([[True, True, False], [True, True, True]])
    full, causal = keep[:, None, None], keep[:, None, None] & torch.ones(3, 3, dtype=torch.bool).tril()
    assert [kind_of(full, keep), kind_of(causal, keep)] == [FULL, CAUSAL]
    assert kind_of(torch.zeros(2, 1, 1, 3).masked_fill(~full, -math.inf), keep) == FULL
    assert kind_of(torch.zeros(2, 1, 3, 3).masked_fill(~causal, -1e4), keep) == CAUSAL
    assert kind_of(full & (torch.arange(3) != 1), keep) == MASKED


@given(masks())
def test_conditions_on_masks_by_their_definition(case: tuple[list[Tensor], int, int]) -> None:
    found, batch, length = case
    keep = kept(found, batch, length)
    for mask in found:
        sees, itself = True, True
        for text in range(batch):
            for query in (token for token in range(length) if keep[text, token]):
                rows = [_all(mask, text, query, key) for key in range(length)]
                sees &= all(any(row[head] > -math.inf for row in rows) for head in range(mask.shape[1]))
                itself &= max(rows[query]) > -math.inf or mask.shape[2] == 1
        assert bool(conditions.EverybodySees(()).holds(keep, mask)) == sees
        assert bool(conditions.SeesItself(()).holds(keep, mask)) == itself


@given(st.data())
def test_gather_takes_each_token_once_and_scatter_puts_it_back(data: st.DataObject) -> None:
    batch, length = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    keep = torch.tensor(data.draw(st.lists(st.booleans(), min_size=batch * length, max_size=batch * length)))
    keep = keep.view(batch, length)
    tokens = tokens_of([keep[:, None, None]], keep)
    assert tokens.offsets.tolist() == [0, *keep.sum(1).cumsum(0).tolist()]
    x = torch.randn(batch, length, 2)
    assert torch.equal(gather(x, tokens, 0, 1, None, ()), x[keep])
    assert torch.equal(gather(x.permute(2, 1, 0), tokens, 2, 1, None, ()), x[keep])
    assert torch.equal(gather(x.flatten(0, 1), tokens, None, None, 0, ()), x[keep])
    assert torch.equal(gather(x[:, 0], tokens, 0, None, None, ()), x[:, :1].expand_as(x)[keep])
    assert torch.equal(gather(x[0][None], tokens, None, 1, None, (0,)), x[:1].expand_as(x)[keep])
    dense = x.masked_fill(~keep[..., None], 0)
    assert torch.equal(scatter(x[keep], tokens, 0, 1, None), dense)
    assert torch.equal(scatter(x[keep], tokens, 1, 0, None), dense.transpose(0, 1))
    assert torch.equal(scatter(x[keep], tokens, None, None, 0), dense.flatten(0, 1))
