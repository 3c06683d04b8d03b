"""Law: heads made of heads are one head: the same numbers as what they say, by the labels that everybody knows."""

import json

import pytest
import torch

from gossamer.ranks import ALONE
from gossamer.testing import assert_same_bits
from gossamer.xmc import FusedHead, JoinedHead, StoreError, WideHead, open_head
from gossamer.xmc.build import build_head
from gossamer.xmc.data import Csr
from gossamer.xmc.heads import store
from gossamer.xmc.recipe import Recipe

WIDTH, LABELS = 12, 40
ORDER = torch.randperm(LABELS, generator=torch.Generator().manual_seed(0))


def fused(labels=LABELS, width=WIDTH, **settings):
    return FusedHead(width, labels, **{"fan_in": 5, "optimizer": "adam", "seed": 3, **settings})


def joined():
    return JoinedHead([fused(7, fan_in=WIDTH, seed=4), fused(LABELS - 7, group=16)], ORDER)


def wide():
    return WideHead(WIDTH, fused(width=30), relative_lr=0.5, seed=2)


def both():
    return WideHead(WIDTH, JoinedHead([fused(7, 30, fan_in=30), fused(LABELS - 7, 30)], ORDER))


KINDS = {"joined": joined, "wide": wide, "both": both}


def batch(at, rows=6):
    generator = torch.Generator().manual_seed(at)
    x = torch.randn(rows, WIDTH, generator=generator)
    return x, torch.randint(LABELS, (rows, 3), generator=generator).tolist()


def weights_of(head):
    """float64[labels, width] and float64[labels], by the labels outside."""
    weight, bias = torch.zeros(LABELS, WIDTH, dtype=torch.double), torch.zeros(LABELS, dtype=torch.double)
    for part, begin, end in head.placed:
        weight[head.order[begin:end].long()] = torch.from_numpy(part.to_csr().to_scipy().toarray()).double()
        bias[head.order[begin:end].long()] = part.bias.double()
    return weight, bias


def test_an_order_only_renames_the_labels():
    plain, renamed = fused(), JoinedHead([fused()], ORDER)
    for at in range(4):
        x, sets = batch(at)
        grad, loss = plain.step(x, sets, 0.05)
        other, same = renamed.step(x, [[int(ORDER[label]) for label in row] for row in sets], 0.05)
        assert_same_bits(other, grad)
        assert same == loss
    x, _ = batch(9)
    (scores, ids), (found, names) = plain.topk(x, 7), renamed.topk(x, 7)
    assert_same_bits(found, scores)
    assert torch.equal(names, ORDER[ids])
    bias = torch.arange(float(LABELS))
    renamed.set_bias(bias)
    assert torch.equal(renamed.parts[0].bias, bias[ORDER])


def test_parts_add_up():
    """Gradient, loss, filters and the best k, by the dense matrix that the parts make together."""
    head = joined()
    for at in range(3):
        x, sets = batch(at)
        weight, bias = weights_of(head)
        leaf = x.double().requires_grad_()
        target = torch.zeros(len(x), LABELS, dtype=torch.double)
        for row, labels in enumerate(sets):
            target[row, labels] = 1
        loss = torch.nn.functional.binary_cross_entropy_with_logits(leaf @ weight.T + bias, target, reduction="sum")
        loss.backward()
        grad, said = head.step(x, sets, 0.05, scale=0.5)
        torch.testing.assert_close(grad, 0.5 * leaf.grad.float(), rtol=1e-5, atol=1e-5)
        assert abs(said - 0.5 * loss.item()) < 1e-5 * said
    weight, bias = weights_of(head)
    logits = x.double() @ weight.T + bias
    for row, labels in enumerate(sets):
        logits[row, labels] = -torch.inf
    logits[:, [1, 30]] = -torch.inf
    scores, ids = head.topk(x, 9, exclude=Csr.from_lists(sets, LABELS), never=torch.tensor([1, 30]))
    expected, best = logits.topk(9)
    assert torch.equal(ids, best)
    torch.testing.assert_close(scores, expected.float(), rtol=1e-5, atol=1e-5)
    assert head.topk(x, LABELS + 2)[1][:, -2:].eq(-1).all()
    assert torch.equal(
        head.topk(x, 9, never=torch.tensor([1, 30, LABELS]))[1], head.topk(x, 9, never=torch.tensor([1, 30]))[1]
    )


def test_equal_scores_are_in_the_order_of_labels_outside():
    """However the parts lie: of labels that score the same, those of the lowest numbers are found."""
    head = joined()
    head.set_bias(torch.arange(LABELS).remainder(2).float())
    x, _ = batch(0)
    x[1:4] = 0
    scores, ids = head.topk(x, 6, exclude=Csr.from_lists([[], [], [1, 5], [], [], []], LABELS))
    odd = [1, 3, 5, 7, 9, 11, 13, 15]
    assert ids[1].tolist() == ids[3].tolist() == odd[:6] and ids[2].tolist() == [3, 7, 9, 11, 13, 15]
    assert scores[1:4].eq(1).all()
    assert head.topk(x[1:2], LABELS)[1][0].tolist() == [*range(1, LABELS, 2), *range(0, LABELS, 2)]


def test_the_layer_follows_torch_adam():
    head, behind = wide(), fused(width=30)
    layer = torch.nn.Linear(WIDTH, 30)
    with torch.no_grad():
        layer.weight.copy_(head.weight)
        layer.bias.zero_()
    adam = torch.optim.Adam(layer.parameters(), lr=0.05 * 0.5)
    for at in range(6):
        x, sets = batch(at)
        leaf = x.clone().requires_grad_()
        h = layer(leaf).relu()
        grad_h, loss = behind.step(h.detach(), sets, 0.05)
        adam.zero_grad()
        h.backward(grad_h)
        adam.step()
        grad, said = head.step(x, sets, 0.05)
        torch.testing.assert_close(grad, leaf.grad, rtol=1e-4, atol=1e-5)
        assert abs(said - loss) < 1e-5 * loss
    torch.testing.assert_close(head.weight, layer.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(head.bias, layer.bias, rtol=1e-4, atol=1e-5)
    assert bool((head.features(x) == 0).any())


def test_a_recipe_gives_the_layer_its_own_learning_rate():
    head = build_head(WIDTH, LABELS, Recipe(fan_in=5, intermediate=30, intermediate_lr=0.002, lr=0.01), ranks=ALONE)
    assert isinstance(head, WideHead) and head.relative_lr == pytest.approx(0.2) and head.head.width == 30


def test_rows_of_the_layer_at_a_time_change_nothing(monkeypatch):
    whole, parts = wide(), wide()
    for at in range(3):
        x, sets = batch(at)
        whole.step(x, sets, 0.05)
        with monkeypatch.context() as patch:
            patch.setattr("gossamer.xmc.heads.wide._ROWS", 7)
            parts.step(x, sets, 0.05)
    torch.testing.assert_close(parts.weight, whole.weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mmap", [True, False])
def test_what_is_opened_goes_on_with_the_same_bits(kind, mmap, tmp_path):
    head = KINDS[kind]()
    head.step(*batch(0), 0.05)
    fused(9).save(tmp_path)  # what lay there before is gone
    head.save(tmp_path)
    head.save(tmp_path)
    assert len(list(tmp_path.glob("part-*"))) == len(
        json.loads((tmp_path / "head.json").read_text())["settings"]["parts"]
    )
    other = open_head(tmp_path, mmap=mmap, verify=True)
    for each in (head, other):
        each.step(*batch(1), 0.05)
        each.rewire(0.5)
        each.step(*batch(2), 0.05)
    for mine, theirs in zip(head.topk(batch(3)[0], 9), other.topk(batch(3)[0], 9), strict=True):
        assert_same_bits(theirs, mine)
    state = KINDS[kind]()
    state.load_state_dict(head.state_dict())
    for name, value in state.state_dict().items():
        assert torch.equal(value, head.state_dict()[name]), name
    assert int(other.steps) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_subset_has_the_scores_of_the_whole(kind):
    head = KINDS[kind]()
    head.step(*batch(0), 0.05)
    x, _ = batch(1)
    scores, ids = head.topk(x, LABELS)
    whole = torch.zeros(len(x), LABELS).scatter_(1, ids, scores)
    some = ORDER[torch.tensor([30, 2, 39, 0, 15])]
    for wanted in (some, ORDER[:3], ORDER[20:22].flip(0)):
        found, names = head.subset(wanted).topk(x, len(wanted))
        torch.testing.assert_close(found, whole.gather(1, wanted[names]), rtol=1e-5, atol=1e-6)
        assert names.sort(1).values.tolist() == [list(range(len(wanted)))] * len(x)
    with pytest.raises(ValueError, match="at least 0 and below 40, at least one, got 40"):
        head.subset(torch.tensor([1, 40]))


def test_a_head_saved_over_shares_is_the_one_that_is_opened(tmp_path):
    fused(9, seed=1).save(tmp_path / "share-000000000000-0")
    store.write_shares(tmp_path, ["share-000000000000-0"], [0, 9])
    assert open_head(tmp_path).labels == 9
    head = fused()
    head.save(tmp_path)
    assert_same_bits(open_head(tmp_path).values, head.values)
    assert not list(tmp_path.glob("share*"))


def test_a_dense_part_keeps_its_connections():
    """Also where what goes may come back at once, with the value 0."""
    head = joined()
    before, values = [part.indices.clone() for part in head.parts], head.parts[0].values.clone()
    assert head.rewire(0.5) > 0 and head.rewire(0.5, avoid_dropped=False) > 0
    assert torch.equal(head.parts[0].values, values)
    assert torch.equal(head.parts[0].indices, before[0]) and not torch.equal(head.parts[1].indices, before[1])


def test_another_order_is_taken_over_from_a_state():
    head, other = joined(), JoinedHead(list(joined().parts), ORDER.flip(0))
    assert not torch.equal(other.place, head.place)
    other.load_state_dict(head.state_dict())
    assert torch.equal(other.place, head.place)


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_found(kind, tmp_path):
    KINDS[kind]().save(tmp_path)
    part = next(tmp_path.glob("part-*"))
    part.rename(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=part.name):
        open_head(tmp_path)
    (tmp_path / "elsewhere").rename(part)
    array = next(tmp_path.glob("*.bin"))
    array.write_bytes(array.read_bytes()[:-1])
    with pytest.raises(StoreError, match="cut short"):
        open_head(tmp_path)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: JoinedHead([], ORDER), ValueError, "parts must be heads of one width"),
        (lambda: JoinedHead([fused(), fused(width=9)], ORDER), ValueError, r"one width, got \[12, 9\]"),
        (lambda: JoinedHead([fused()], ORDER.float()), TypeError, "order must be integers"),
        (lambda: JoinedHead([fused()], ORDER[1:]), ValueError, "order must have the 40 labels of the parts, got 39"),
        (lambda: JoinedHead([fused()], ORDER.clamp(min=1)).place, ValueError, "each once"),
        (lambda: joined().step(torch.zeros(1, 3), [[0]], 0.1), ValueError, r"x must be floats \[batch, 12\]"),
        (lambda: joined().step(torch.zeros(1, 12), [[LABELS]], 0.1), ValueError, "expected 0 to 39"),
        (lambda: joined().topk(torch.zeros(1, 12), k=0), ValueError, "k must be an integer of at least 1, got 0"),
        (lambda: wide().topk(torch.zeros(1, 3)), ValueError, r"x must be floats \[batch, 12\]"),
        (lambda: WideHead(0, fused()), ValueError, "width must be an integer of at least 1, got 0"),
        (lambda: WideHead(12, fused(), relative_lr=-1.0), ValueError, "relative_lr must be at least 0"),
    ],
)
def test_bad_input_is_named(make, error, said):
    with pytest.raises(error, match=said):
        make()


def test_a_layer_that_does_not_fit_says_what_does(monkeypatch):
    behind = fused(width=1000)
    monkeypatch.setattr("gossamer.measure.memory.free_memory", lambda: 13 * 12 * 700)
    with pytest.raises(MemoryError, match=r"intermediate=1,000 need .* at most 700 fit"):
        WideHead(WIDTH, behind)
