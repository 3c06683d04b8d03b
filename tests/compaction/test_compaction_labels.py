"""Law: labels follow positions. The oracle moves a tensor of position numbers with the operator itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gossamer.compaction import ChannelGraph
from gossamer.compaction.labels import FREE, QUIET, Fixed, Labels
from gossamer.compaction.rules import Flow
from gossamer.compaction.rules.shape import refactor


@given(st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), max_size=80), st.integers(1, 7))
@settings(deadline=None, max_examples=200)
def test_union_find_against_a_plain_one(pairs: list[tuple[int, int]], batch: int) -> None:
    labels = Labels()
    labels.fresh(40)
    plain = list(range(40))
    for start in range(0, len(pairs), batch):
        part = pairs[start : start + batch]
        labels.union(np.array([a for a, _ in part]), np.array([b for _, b in part]))
        for a, b in part:
            old, new = plain[a], plain[b]
            plain = [new if item == old else item for item in plain]
    roots = labels.find(np.arange(40))
    assert [[roots[i] == roots[j] for j in range(40)] for i in range(40)] == [
        [plain[i] == plain[j] for j in range(40)] for i in range(40)
    ]


def shapes_of(size: int) -> st.SearchStrategy[list[int]]:
    """Factorisations of `size`, ones included."""

    def factors(rest: int) -> st.SearchStrategy[list[int]]:
        divisors = [d for d in range(1, rest + 1) if rest % d == 0]
        return st.sampled_from(divisors).flatmap(
            lambda d: st.just([d]) if d == rest else factors(rest // d).map(lambda tail: [d, *tail])
        )

    return factors(size)


@given(st.data())
@settings(deadline=None, max_examples=150)
def test_views_move_labels_as_they_move_positions(data: st.DataObject) -> None:
    """Each label of a result axis stands exactly for positions whose source had that label, or the label is frozen."""
    size = data.draw(st.sampled_from([8, 12, 24, 36, 60]))
    before, after = data.draw(shapes_of(size)), data.draw(shapes_of(size))
    axis = data.draw(st.sampled_from([i for i, n in enumerate(before) if n > 1]))
    flow = Flow.__new__(Flow)
    flow.labels = Labels()
    own = flow.labels.fresh(before[axis])
    axes = [own if i == axis else QUIET for i in range(len(before))]
    result = refactor(flow, axes, tuple(before), tuple(after), "view")
    flow.labels.settle()
    result = [flow.labels.settled(item) for item in result]
    frozen = {root for labels, _ in flow.labels.frozen for root in flow.labels.find(labels).tolist()}

    numbers = torch.arange(before[axis]).reshape([-1 if i == axis else 1 for i in range(len(before))])
    moved = numbers.expand(before).reshape(after).numpy()
    source = flow.labels.find(own)
    kept = [root for root in np.unique(source).tolist() if root not in frozen]
    for root in kept:
        # Removing these source positions must remove exactly the result positions that carry the label.
        gone = np.isin(moved, np.flatnonzero(source == root))
        carriers = [i for i, item in enumerate(result) if isinstance(item, np.ndarray)]
        assert len(carriers) == 1
        (carrier,) = carriers
        marked = flow.labels.find(result[carrier]) == root
        marked = marked.reshape([-1 if i == carrier else 1 for i in range(len(after))])
        assert np.array_equal(np.broadcast_to(marked, after), gone)


MOVES = {
    "flip back": lambda y: y.flip(2),
    "roll tokens": lambda y: y.roll(1, 1),
    "unsqueeze squeeze": lambda y: y.unsqueeze(0).squeeze(0),
    "movedim": lambda y: y.movedim(-1, 0).movedim(0, -1),
    "stack select": lambda y: torch.stack([y, -y], 1)[:, 1],
    "split cat reversed": lambda y: torch.cat(list(y.split(4, -1))[::-1], -1),
    "view round trip": lambda y: (2 * y.view(2, 3, 3, 4)).flatten(2),
    "heads last": lambda y: y.view(2, 3, 4, 3).transpose(2, 3).flatten(2),
    "expand": lambda y: y.unsqueeze(1).expand(-1, 2, -1, -1).sum(1),
    "where": lambda y: torch.where(y > 0, y, torch.zeros_like(y)),
    "masked": lambda y: y.masked_fill(y.sum(-1, keepdim=True) > 0, 0.5),
    "clamp": lambda y: y.clamp(-1, 1) + torch.full_like(y, 0.25),
    "tokens as batch": lambda y: y.reshape(6, 12).view(2, 3, 12),
    "index tokens": lambda y: y[:, torch.tensor([2, 0, 1])],
    "softmax over tokens": lambda y: y.softmax(1),
    "sort channels": lambda y: y.sort(-1).values,
    "cumulative": lambda y: y.cumsum(-1),
    "strided": lambda y: y[..., ::2].repeat_interleave(2, -1),
    "swap halves": lambda y: torch.cat([y[..., 6:], y[..., :6]], -1),
    "rotary": lambda y: y * torch.cos(torch.arange(12.0)) + y.view(2, 3, 6, 2).flip(-1).flatten(2),
    "dropout": lambda y: nn.functional.dropout(y, 0.5, False),
}


class Moving(nn.Module):
    def __init__(self, move) -> None:
        super().__init__()
        self.a, self.b, self.move = nn.Linear(5, 12), nn.Linear(12, 4), move

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.move(self.a(x)))


@pytest.mark.parametrize("route", ["export", "fx"])
@pytest.mark.parametrize("name", MOVES)
def test_group_positions_agree_with_derivatives(name: str, route: str) -> None:
    """A removable channel's column is influenced by its own rows only, whatever moved in between."""
    torch.manual_seed(0)
    net = Moving(MOVES[name]).double()
    x = torch.randn(2, 3, 5).double()
    graph = ChannelGraph.build(net, x.to(torch.float64), route)
    torch.set_default_dtype(torch.float64)
    seen = torch.autograd.functional.jacobian(lambda y: net.move(y), net.a(x))
    influence = seen.abs().sum((0, 1, 3, 4)) > 0  # [column read, row made]
    for group in graph.removable:
        rows = next(m for m in group.members if m.tensor == "a.weight").index
        readers = [m for m in group.members if m.tensor == "b.weight"]
        columns = readers[0].index if readers else torch.empty(group.channels, 0, dtype=torch.int64)
        for channel in range(group.channels):
            others = torch.ones(12, dtype=torch.bool)
            others[rows[channel]] = False
            assert not influence[columns[channel]][:, others].any()
            assert not influence[[i for i in range(12) if i not in columns[channel].tolist()]][:, rows[channel]].any()


def test_joins_of_unlike_axes() -> None:
    labels = Labels()
    own = labels.fresh(4)
    assert labels.join(FREE, own, "") is own and labels.join(own, FREE, "") is own
    assert labels.join(QUIET, Fixed("because"), "") == Fixed("because")
    assert not labels.frozen
    assert labels.join(own, Fixed("because"), "other") == Fixed("because")
    assert labels.frozen[0][1] == "because"


def test_a_second_split_of_the_same_axis_ties_both() -> None:
    """Seen as 3 x 4 and as 4 x 3 with an inner factor kept each time: only common multiples can go."""
    labels = Labels()
    own = labels.fresh(12)
    first, second = labels.split(own, (3, 4)), labels.split(own, (4, 3))
    assert labels.labelled(first[1]) is not None and labels.labelled(second[1]) is not None
    assert len(np.unique(labels.find(own))) == 1
