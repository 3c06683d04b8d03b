"""Law: a new head reads the features that tell most of each label, each once; what a batch lacks changes no step."""

import pytest
import torch

from gossamer.xmc import Classifier, FusedHead, wiring
from gossamer.xmc.data import Csr, planted
from gossamer.xmc.encoders import make
from gossamer.xmc.metrics import Metrics
from gossamer.xmc.wiring import telling, wire


def sparse(dense):
    import scipy.sparse

    return Csr.from_scipy(scipy.sparse.csr_matrix(dense.numpy()))


def drawn(rows, columns, labels, seed=0, density=0.3):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-4, 5, (rows, columns), generator=generator).float()
    x *= torch.rand(rows, columns, generator=generator) < density
    return x, (torch.rand(rows, labels, generator=generator) < 0.2).float()


@pytest.mark.parametrize("group", [1, 16])
@pytest.mark.parametrize("most", [1, 3, 40])
@pytest.mark.parametrize("block", [1, 7, 1 << 22])
def test_what_tells_most_is_the_largest_gradient(monkeypatch, block, most, group):
    monkeypatch.setattr(wiring, "BLOCK", block)
    x, y = drawn(30, 12, 33)
    y[:, 5] = 0  # a label that no example has
    found = telling(sparse(x), Csr.from_scipy(sparse(y).to_scipy(), values=False), most, group=group)
    gradient = y.t().double() @ (x - x.double().mean(0))
    there = (y.t() @ x.ne(0).float()) > 0  # of the positive examples
    units = torch.arange(33) // group
    assert found.shape == (int(units.max()) + 1, most)
    for unit, row in enumerate(found.tolist()):
        sums = gradient[units == unit].sum(0).abs()
        candidates = there[units == unit].any(0).nonzero().flatten().tolist()
        expected = sorted(candidates, key=lambda at: (-round(float(sums[at]), 9), at))[:most]
        kept = [at for at in row if at >= 0]
        assert len(kept) == len(expected) and row == kept + [-1] * (most - len(kept))
        torch.testing.assert_close(sums[kept], sums[expected])


@pytest.mark.parametrize("group", [1, 16])
@pytest.mark.parametrize(("trained", "share"), [(20, 0.5), (3, 0.25), (0, 0.5), (20, 1.0)])
def test_a_head_is_connected(trained, share, group):
    x, y = drawn(30, 12, 33)
    features, labels = sparse(x), Csr.from_scipy(sparse(y).to_scipy(), values=False)
    head = FusedHead(trained + 12, 33, fan_in=8, group=group, seed=3)
    before = head.values.clone()
    wire(head, features, labels, share)
    rows = head.indices.to(torch.int32)
    assert bool((rows.diff(dim=1) > 0).all()) and int(rows.min()) >= 0 and int(rows.max()) < head.width
    most = round(share * 8) if trained else 8
    for row, best in zip(rows.tolist(), telling(features, labels, most, group=group).tolist(), strict=True):
        chosen = {trained + at for at in best if at >= 0}
        assert chosen <= set(row)
        if trained >= 8:
            assert {at for at in row if at >= trained} == chosen  # the rest reads the embedding
    plain = (rows >= trained).repeat_interleave(group, 0)[:33]
    assert bool((head.values[plain] == 0).all()) and torch.equal(head.values[~plain], before[~plain])


def test_a_share_of_the_labels_is_connected_as_in_the_whole():
    x, y = drawn(30, 12, 33)
    labels = Csr.from_scipy(sparse(y).to_scipy(), values=False)
    whole, part = FusedHead(32, 33, fan_in=8, seed=3), FusedHead(32, 13, fan_in=8, seed=3, first_label=20)
    wire(whole, sparse(x), labels, 0.5)
    mine = Csr.from_scipy(sparse(y[:, 20:]).to_scipy(), values=False)
    wire(part, sparse(x), mine, 0.5)
    assert torch.equal(part.indices.int(), whole.indices[20:].int()) and torch.equal(part.values, whole.values[20:])


def test_memory_goes_with_the_entries_not_with_the_labels():
    """A list of what is chosen for each of ten million labels would take 80 MB and more."""
    import tracemalloc

    x, _ = drawn(4, 12, 4)
    labels = Csr.from_lists([[0], [1], [2], [10**7 - 1]], 10**7)
    tracemalloc.start()
    found = list(wiring._best(sparse(x), labels, 2, 1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20 and found[-1][0].max() == 10**7 - 1


def test_nothing_chosen_leaves_the_head_as_it_was_drawn():
    x, y = drawn(30, 12, 33)
    head, other = (FusedHead(32, 33, fan_in=8, seed=3) for _ in range(2))
    wire(head, sparse(x), Csr.from_scipy(sparse(y).to_scipy(), values=False), 0.0)
    assert torch.equal(head.indices.int(), other.indices.int()) and torch.equal(head.values, other.values)


@pytest.mark.parametrize("beside", [0, 5, 300, 65_526, 70_000])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("cached", [0, 1 << 30])
def test_features_beside_dense_inputs_are_inputs(monkeypatch, beside, optimizer, cached):
    monkeypatch.setattr("gossamer.xmc.heads.features.CACHED", cached)
    torch.manual_seed(0)
    width = 10
    whole, head = (FusedHead(width + beside, 40, fan_in=8, optimizer=optimizer, seed=1) for _ in range(2))
    for _ in range(3):
        x = torch.zeros(6, width + beside)
        x[:, :width] = torch.randn(6, width)
        if beside:
            x[torch.arange(6), torch.randint(width, width + beside, (6,))] = 2.0
        labels = [torch.randint(40, (3,)).tolist() for _ in range(6)]
        features = sparse(x[:, width:])
        full, loss = whole.step(x, labels, 0.1)
        grad, same = head.step(x[:, :width], labels, 0.1, features=features)
        assert loss == pytest.approx(same)
        torch.testing.assert_close(grad, full[:, :width])
        scores, ids = head.topk(x[:, :width], 3, features=features)
        assert torch.equal(ids, whole.topk(x, 3)[1]) and scores.shape == (6, 3)
    torch.testing.assert_close(head.values, whole.values)
    torch.testing.assert_close(head.bias, whole.bias)
    with pytest.raises(ValueError, match=rf"x must be floats \[batch, {width + beside}\]"):
        head.step(x[:, :3], labels, 0.1)


def test_all_features_of_a_batch_may_be_there(monkeypatch):
    monkeypatch.setattr("gossamer.xmc.heads.features.CACHED", 0)
    head = FusedHead(1 << 16, 4, fan_in=8)
    x = torch.randn(2, 1 << 16)
    _, ids = head.topk(x[:, :1], 2, features=sparse(x[:, 1:]))
    assert torch.equal(ids, head.topk(x, 2)[1])


def test_words_stand_beside_the_embedding():
    torch.manual_seed(0)
    encoder = make("bow", width=3, words=4, features=256, dropout=0.5)
    encoder.learn(["red apple", "red pear", "pear tree", "once"])
    inputs = encoder.prepare(["red pear", "once only", ""])
    features = encoder.features(inputs)
    assert features.validate().shape == (3, 4) and encoder(inputs).shape == (3, 3)
    assert features.counts().tolist() == [2, 0, 0]  # words of one example have no column
    torch.testing.assert_close(features.values, torch.full((2,), 3 / 2**0.5))
    assert make("bow", words=0).features(inputs) is None


def test_chosen_features_find_what_random_ones_miss():
    """Labels that depend on a few of many features: a head that reads chosen ones finds them, a drawn one does not."""
    made = planted(rows=3000, test_rows=1000, labels=256, width=128, support=8, noise=0.3, seed=0)
    scores = {}
    for chosen in (0.0, 0.5):
        classifier = Classifier(
            encoder_settings={"width": 0, "dropout": 0.0}, fan_in=16, chosen=chosen, epochs=5, lr=0.02
        )
        classifier.fit(made.data.train.features, made.data.train.labels)
        metrics = Metrics(256, 5)
        metrics.add(*classifier.predict_topk(made.data.test.features), made.data.test.labels)
        scores[chosen] = metrics.result()["P@1"]
    assert scores[0.5] > scores[0.0] + 0.2, scores
