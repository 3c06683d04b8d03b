"""Growth by the gradient of sampled connections: beside a dense oracle, in every kind of head, with any threads."""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, pad

from gossamer.testing import assert_same_bits
from gossamer.xmc import FusedHead, Growth, JoinedHead, WideHead
from gossamer.xmc.data import Csr

LABELS, WIDTH, FAN_IN, EXAMPLES = 50, 30, 6, 40
SETS = [[at % LABELS, (3 * at + 1) % LABELS] for at in range(EXAMPLES)]


def head_of(seed=3, **settings):
    head = FusedHead(WIDTH, LABELS, fan_in=FAN_IN, seed=seed, **settings)
    head.bias.copy_(torch.randn(LABELS))
    return head


def dense_of(head):
    columns = head.indices.long().repeat_interleave(head.group, 0)[:LABELS]
    return torch.zeros(LABELS, WIDTH, dtype=torch.float64).scatter(1, columns, head.values.double())


def gradient_of(head, x):
    """float64[rows of indices, WIDTH]: |dense gradient|, of labels that share inputs the sum."""
    weight = dense_of(head).requires_grad_()
    z = x.double() @ weight.t() + head.bias.double()
    y = torch.zeros_like(z).scatter_(1, torch.tensor(SETS), 1)
    loss = (
        binary_cross_entropy_with_logits(z, y, reduction="sum")
        if head.loss == "bce"
        else (1 - (2 * y - 1) * z).clamp(min=0).square().sum()
    )
    (gradient,) = torch.autograd.grad(loss, weight)
    rows = len(head.indices)
    return pad(gradient.abs(), (0, 0, 0, rows * head.group - LABELS)).view(rows, head.group, WIDTH).sum(1)


@pytest.mark.parametrize("loss", ["bce", "hinge"])
@pytest.mark.parametrize("group", [1, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_all_inputs_it_is_what_the_dense_gradient_says(loss, group, dtype):
    torch.manual_seed(0)
    head, x = head_of(loss=loss, group=group, dtype=dtype, optimizer="adam"), torch.randn(EXAMPLES, WIDTH)
    gradient, before = gradient_of(head, x), head.indices.long()
    bias, values = head.bias.clone(), head.values.clone()
    went = head.rewire(0.5, growth=Growth(x, SETS, candidates=10**6))
    assert went == 3 * len(before)
    best = gradient.scatter(1, before, -1).topk(3, 1).indices.sort(1).values
    for row, (old, new) in enumerate(zip(before.tolist(), head.indices.long().tolist(), strict=True)):
        assert sorted(set(new) - set(old)) == best[row].tolist()
    assert_same_bits(head.bias, bias)  # the gradient was of a copy
    kept = (head.indices.long()[:, :, None] == before[:, None]).any(2).repeat_interleave(group, 0)[:LABELS]
    assert not head.values[~kept].any() and set(head.values[kept].tolist()) <= set(values.flatten().tolist())


def test_a_row_takes_the_best_of_what_it_was_shown_and_loses_no_more():
    torch.manual_seed(0)
    head, x = head_of(), torch.randn(EXAMPLES, WIDTH)
    gradient, before, shown = gradient_of(head, x), head.indices.long(), head._candidates(Growth(x, SETS, 4), None)[0]
    assert head.rewire(0.5, growth=Growth(x, SETS, 4)) == 3 * LABELS
    for row, drawn in enumerate(shown.long().tolist()):
        new = set(head.indices[row].tolist()) - set(before[row].tolist())
        assert new == set(sorted(drawn, key=lambda column: -float(gradient[row, column]))[:3])
    assert head.rewire(1.0, growth=Growth(x, SETS, 2)) == 2 * LABELS  # of six
    head.steps += 1
    assert not torch.equal(head._candidates(Growth(x, SETS, 4), None)[0], shown)  # each time others are shown


def test_neither_threads_nor_blocks_change_a_bit(monkeypatch):
    torch.manual_seed(0)
    start, x, found = head_of(loss="hinge", group=16), torch.randn(EXAMPLES, WIDTH), []
    saved = {name: value.clone() for name, value in start.named_buffers()}
    before = torch.get_num_threads()
    try:
        for threads, block in ((1, 1 << 22), (3, 1 << 22), (2, 1)):
            torch.set_num_threads(threads)
            monkeypatch.setattr("gossamer.xmc.heads.growth._BLOCK", block)
            start.load_state_dict(saved)
            scores = start._candidates(Growth(x, SETS, 9), None)[1]
            start.rewire(0.5, growth=Growth(x, SETS, 9))
            found.append((scores, start.indices.clone(), start.values.clone()))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for mine, theirs in zip(found[0], other, strict=True):
            assert_same_bits(theirs, mine)


def test_words_beside_x_are_inputs_like_others():
    torch.manual_seed(0)
    x, words = torch.randn(EXAMPLES, 20), torch.randn(EXAMPLES, 10) * (torch.rand(EXAMPLES, 10) < 0.2)
    words[:, 4] = 0  # a word that nobody has
    one, other = head_of(), head_of()
    other.load_state_dict(one.state_dict())
    one.rewire(0.5, growth=Growth(torch.cat([x, words], 1), SETS, 12))
    offsets = pad((words != 0).sum(1).cumsum(0), (1, 0))
    sparse = Csr(offsets, words.nonzero()[:, 1], words[words != 0], (EXAMPLES, 10))
    other.rewire(0.5, growth=Growth(x, SETS, 12, sparse))
    assert torch.equal(one.indices.int(), other.indices.int())


def test_heads_of_heads_hand_each_its_labels():
    torch.manual_seed(0)
    x, order = torch.randn(EXAMPLES, WIDTH), torch.randperm(LABELS)
    parts = [FusedHead(WIDTH, n, fan_in=FAN_IN, seed=n) for n in (20, 30)]
    alone = [FusedHead(WIDTH, n, fan_in=FAN_IN, seed=n) for n in (20, 30)]
    joined = JoinedHead(parts, order)
    place = joined.place.long()
    inside = [[int(place[label]) for label in labels] for labels in SETS]
    assert joined.rewire(0.5, growth=Growth(x, SETS, 8)) == 3 * LABELS
    for part, one, (begin, end) in zip(parts, alone, ((0, 20), (20, 50)), strict=True):
        mine = [[label - begin for label in labels if begin <= label < end] for labels in inside]
        one.rewire(0.5, growth=Growth(x, mine, 8))
        assert torch.equal(part.indices.int(), one.indices.int())


def test_a_layer_in_front_of_a_head_is_run_first():
    torch.manual_seed(0)
    x = torch.randn(EXAMPLES, 12)
    wide = WideHead(12, FusedHead(WIDTH, LABELS, fan_in=FAN_IN, seed=1))
    alone = FusedHead(WIDTH, LABELS, fan_in=FAN_IN, seed=1)
    wide.rewire(0.5, growth=Growth(x, SETS, 8))
    alone.rewire(0.5, growth=Growth(wide.features(x), SETS, 8))
    assert torch.equal(wide.head.indices.int(), alone.indices.int())


@pytest.mark.parametrize(
    ("settings", "how", "said"),
    [
        ({}, {"candidates": 0}, "candidates must be an integer of at least 1, got 0"),
        ({}, {"candidates": 2.5}, "candidates must be an integer of at least 1, got 2.5"),
        ({}, {"labels": [[LABELS]] * EXAMPLES}, f"the column {LABELS}"),
        ({}, {"labels": [[0]]}, "labels must be of shape"),
        ({}, {"x": torch.zeros(EXAMPLES, 7)}, "x must be floats"),
        ({"loss": "softmax"}, {}, "growth is for loss='bce' or 'hinge'"),
    ],
)
def test_what_cannot_be_is_said(settings, how, said):
    head = head_of(**settings)
    before = {name: value.clone() for name, value in head.named_buffers()}
    given = {"x": torch.zeros(EXAMPLES, WIDTH), "labels": SETS, "candidates": 4} | how
    with pytest.raises(ValueError, match=said):
        head.rewire(0.5, protect=1, growth=Growth(**given))
    assert head.ages is None
    for name, value in before.items():
        assert_same_bits(getattr(head, name), value)
