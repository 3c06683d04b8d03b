"""A head that searches, rewires, is saved and opened: training goes on with the same bits, wherever it was cut."""

import json

import pytest
import torch

from gossamer.testing import assert_same_bits
from gossamer.xmc import FusedHead, StoreError
from gossamer.xmc.data import Csr
from gossamer.xmc.heads import store

KINDS = [
    {"optimizer": "adam", "loss": "hinge", "weight_decay": 0.01},
    {"dtype": torch.bfloat16, "optimizer": "momentum", "group": 16, "bias": False},
    {"optimizer": "sgd", "width": 70_000, "fan_in": 3},
]


def made(labels=100, **how):
    return FusedHead(**{"width": 12, "labels": labels, "fan_in": 5, "seed": 4, **how})


def trained(head, first, last):
    """Steps that rewire now and then."""
    for at in range(first, last):
        generator = torch.Generator().manual_seed(at)
        x = torch.randn(6, head.width, generator=generator)
        head.step(x, torch.randint(head.labels, (6, 2), generator=generator).tolist(), 0.1)
        if at % 2:
            head.rewire(0.4, protect=1)
    return head


def assert_same_head(found, expected):
    assert dict(found.named_buffers()).keys() == dict(expected.named_buffers()).keys()
    for name, x in expected.named_buffers():
        assert_same_bits(dict(found.named_buffers())[name], x)


@pytest.mark.parametrize("how", KINDS, ids=range(3))
@pytest.mark.parametrize("mmap", [True, False])
def test_what_is_opened_goes_on_with_the_same_bits(tmp_path, how, mmap):
    cut, whole = trained(made(**how), 0, 3), trained(made(**how), 0, 6)
    cut.save(tmp_path)
    opened = FusedHead.open(tmp_path, mmap=mmap, verify=True)
    assert repr(opened) == repr(cut)
    assert_same_head(opened, cut)
    assert_same_head(trained(opened, 3, 6), whole)
    assert_same_head(FusedHead.open(tmp_path), cut)  # what was trained stayed in the process


def test_topk_takes_filters_and_any_float():
    head = trained(made(), 0, 2)
    x = torch.randn(3, 12)
    every = head.topk(x, 100)
    first = every[1][:, 0]
    scores, ids = head.topk(x, 2, exclude=Csr.from_lists([[label] for label in first.tolist()], 100))
    assert_same_bits(ids, every[1][:, 1:3])
    assert_same_bits(scores, every[0][:, 1:3])
    dense = torch.zeros(100, 12).scatter_(1, head.indices.long(), head.values)
    expected = (x @ dense.t() + head.bias).topk(5).indices
    assert torch.equal(head.topk(x)[1], expected) and head.topk(x.bfloat16())[0].dtype == torch.float32
    with pytest.raises(ValueError, match=r"exclude must be of shape \(3, 100\), got \(3, 99\)"):
        head.topk(x, exclude=Csr.from_lists([[], [], []], 99))
    with pytest.raises(ValueError, match=r"x must be floats \[batch, 12\], got torch\.float32\[3, 11\]"):
        head.topk(torch.randn(3, 11))


@pytest.mark.parametrize("how", KINDS[:2], ids=range(2))
def test_a_subset_is_those_labels_and_smaller(tmp_path, how):
    head = trained(made(**how), 0, 3)
    labels = torch.tensor([99, 3, 17, 18])
    small = head.subset(labels)
    x = torch.randn(4, 12)
    scores, ids = small.topk(x, 4)
    every = torch.empty(4, 100).scatter_(1, *head.topk(x, 100)[::-1])
    assert torch.allclose(torch.empty(4, 4).scatter_(1, ids, scores), every[:, labels], atol=1e-5)
    small.save(tmp_path)
    assert_same_head(FusedHead.open(tmp_path), small)
    assert small.values.shape == (4, 5) and small.group == 1
    before = small.values.clone()
    small.step(x, [[0], [1], [], [2]], 0.5)
    assert not torch.equal(small.values, before) and torch.equal(head.topk(x, 100)[0], every.sort(1, True).values)
    for wrong in (torch.tensor([100]), torch.tensor([-1]), torch.tensor([], dtype=torch.int64)):
        with pytest.raises(ValueError, match="labels must be at least 0 and below 100"):
            head.subset(wrong)


def test_the_weights_as_a_sparse_matrix():
    for how in KINDS[:2]:
        head = made(**how)
        csr = head.to_csr()
        dense = torch.zeros(100, 12)
        for label in range(100):
            place = slice(csr.offsets[label], csr.offsets[label + 1])
            dense[label, csr.indices[place].long()] = csr.values[place]
        mine = head.indices.long().repeat_interleave(head.group, 0)[:100]
        assert torch.equal(dense, torch.zeros(100, 12).scatter_(1, mine, head.values.float()))


def test_rewiring_moves_states_and_protects_what_is_new():
    head = trained(made(optimizer="adam"), 0, 1)
    assert head.rewire(0.4, protect=1) == 200
    new = head.ages == 0
    assert (
        int(new.sum()) == 200
        and not head.values[new].any()
        and not head.first[new].any()
        and not head.second[new].any()
    )
    kept = [set(row[fresh].tolist()) for row, fresh in zip(head.indices.long(), new, strict=True)]
    assert head.rewire(0.6, protect=1) == 300
    assert all(names <= set(row.tolist()) for names, row in zip(kept, head.indices.long(), strict=True))


def test_shares_are_opened_in_any_number(tmp_path):
    whole = trained(made(optimizer="momentum", group=16), 0, 3)
    whole.save(tmp_path / "whole")
    from gossamer.xmc.heads import saved

    names = []
    for at, (begin, end) in enumerate(((0, 32), (32, 80), (80, 100))):
        names.append(f"share-{'0' * 12}-{at}")
        part = saved.load(FusedHead, tmp_path / "whole", mmap=True, verify=False, begin=begin, end=end)
        assert (part.labels, part.first_label) == (end - begin, begin)
        part.save(tmp_path / "cut" / names[-1])
    store.write_shares(tmp_path / "cut", names, [0, 32, 80, 100])
    assert_same_head(FusedHead.open(tmp_path / "cut", verify=True), whole)
    middle = saved.load(FusedHead, tmp_path / "cut", mmap=True, verify=False, begin=16, end=96)
    assert_same_bits(middle.values, whole.values[16:96])
    assert_same_bits(middle.indices, whole.indices[1:6])


def test_folders_that_hold_no_head(tmp_path):
    def edited(change):
        made().save(tmp_path)
        path = tmp_path / "head.json"
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(store.files.sealed(record)))
        return FusedHead.open(tmp_path)

    for change, said in (
        (
            lambda r: r["settings"].update(fan_in=4),
            r"has values .*\[100, 5\], expected torch\.float32\[100, 4\]",
        ),
        (lambda r: r["settings"].update(optimizer="lion"), "no head of this version: optimizer must be one of"),
        (lambda r: r["settings"].update(width="12"), "no head of this version: width must be an integer"),
        (lambda r: r["settings"].pop("seed"), "no head of this version"),
        (lambda r: r["settings"].update(extra=1), "no head of this version"),
        (lambda r: r["arrays"].pop("bias"), "has the arrays .* expected"),
    ):
        with pytest.raises(StoreError, match=said):
            edited(change)


def test_a_head_without_memory():
    """Nothing is allocated under the meta device, however large."""
    with torch.device("meta"):
        head = FusedHead(768, 10**9, fan_in=64)
    assert head.values.is_meta and head.indices.shape == (10**9, 64)
