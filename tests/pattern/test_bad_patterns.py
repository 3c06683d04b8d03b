"""Law: a bad argument raises an error that names it, quotes it and says what was expected."""

import pytest
import torch

from gossamer.pattern import Pattern

OFFSETS = torch.tensor([0, 2, 3])
INDICES = torch.tensor([0, 2, 1], dtype=torch.uint16)
FIELDS = {"offsets": OFFSETS, "indices": INDICES, "shape": (2, 3), "tile": (1, 1)}
u16 = lambda *values: torch.tensor(values, dtype=torch.uint16)  # noqa: E731

BROKEN = [
    ({"shape": (2,)}, TypeError, r"shape must be a pair of ints, got \(2,\)"),
    ({"shape": (2, -3)}, ValueError, r"shape .* at least 0, got \(2, -3\)"),
    ({"shape": (2, 3.0)}, TypeError, r"shape must be a pair of ints, got \(2, 3.0\)"),
    ({"tile": (0, 1)}, ValueError, r"tile .* at least 1, got \(0, 1\)"),
    ({"tile": 4}, TypeError, r"tile must be a pair of ints, got 4"),
    ({"tile": (True, 1)}, TypeError, r"tile must be a pair of ints, got \(True, 1\)"),
    ({"indices": INDICES.long()}, TypeError, r"indices must be torch.int32 or torch.uint16 .* got torch.int64"),
    ({"indices": [0, 2, 1]}, TypeError, r"indices .* got <class 'list'>"),
    ({"shape": (2, 65537)}, TypeError, r"indices must be torch.int32 for 65537 tile columns, got torch.uint16"),
    ({"indices": INDICES.view(3, 1)}, ValueError, r"indices must have 1 dimension .* got shape \(3, 1\)"),
    ({"indices": u16(0, 9, 2, 9, 1, 9)[::2]}, ValueError, r"indices must be contiguous, got strides \(2,\)"),
    ({"indices": u16(0, 3, 1)}, ValueError, r"indices must be below the 3 tile columns, got 3"),
    ({"indices": torch.tensor([0, -1, 1], dtype=torch.int32)}, ValueError, r"indices must be below .* got -1"),
    ({"indices": u16(2, 2, 1)}, ValueError, r"indices must not repeat a tile: tile row 0 lists column 2"),
    ({"offsets": OFFSETS.int()}, TypeError, r"offsets must be torch.int64, got torch.int32"),
    ({"offsets": [0, 2, 3]}, TypeError, r"offsets must be torch.int64, got <class 'list'>"),
    ({"offsets": torch.tensor([0, 3])}, ValueError, r"offsets must have shape \[3\], got \(2,\)"),
    ({"offsets": torch.tensor([0, 0, 2, 0, 3, 0])[::2]}, ValueError, r"offsets must be contiguous, got strides \(2,\)"),
    ({"offsets": torch.tensor([1, 2, 3])}, ValueError, r"offsets must start at 0, got 1"),
    ({"offsets": torch.tensor([0, 3, 2])}, ValueError, r"offsets must never fall, got 3 then 2 at row 1"),
    ({"offsets": torch.tensor([0, 2, 4])}, ValueError, r"offsets must end at or below the capacity 3, got 4"),
    ({"offsets": OFFSETS.to("meta")}, ValueError, r"offsets must be on the device of indices, cpu, got meta"),
    ({"offsets": None}, ValueError, r"indices must have shape \[2, k <= 3\] without offsets, got \(3,\)"),
    ({"offsets": None, "indices": u16(0, 1, 2).view(3, 1)}, ValueError, r"indices must have shape \[2, k <= 3\]"),
    ({"offsets": None, "indices": u16(0, 1, 2, 2).view(2, 2)}, ValueError, r"tile row 1 lists column 2 more than once"),
    ({"offsets": None, "indices": u16(*range(8)).view(2, 4)}, ValueError, r"k <= 3\] without offsets, got \(2, 4\)"),
]


@pytest.mark.parametrize(("change", "error", "message"), BROKEN, ids=[message for _, _, message in BROKEN])
def test_validate_names_the_broken_promise(change, error, message):
    with pytest.raises(error, match=message):
        Pattern(**{**FIELDS, **change}).validate()


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"indices": u16(2, 0, 1)},
        {"indices": INDICES.int()},
        {"indices": u16(0, 2, 1, 65535)},
        {"offsets": None, "indices": u16(0, 1, 2, 0).view(2, 2)},
        {"offsets": torch.zeros(1, dtype=torch.int64), "indices": u16(), "shape": (0, 3)},
    ],
    ids=["as is", "unsorted", "int32", "slack", "fan-in", "no rows"],
)
def test_validate_lets_a_good_pattern_pass(change):
    p = Pattern(**{**FIELDS, **change})
    assert p.validate() is p


X = torch.eye(4)
M = X.bool()
P = Pattern.from_mask(M, (2, 2))
CALLS = {
    "mask dtype": (lambda: Pattern.from_mask(X), TypeError, "mask must be torch.bool, got torch.float32"),
    "mask dim": (lambda: Pattern.from_mask(M[0]), ValueError, r"mask must have 2 dimensions .* got shape \(4,\)"),
    "mask type": (lambda: Pattern.from_mask([[1]]), TypeError, "mask must be a tensor, got list"),
    "mask layout": (lambda: Pattern.from_mask(M.to_sparse()), TypeError, "mask must be a strided .* torch.sparse_coo"),
    "x dim": (lambda: Pattern.from_dense(X[None]), ValueError, r"x must have 2 dimensions .* \(1, 4, 4\)"),
    "tile zero": (lambda: Pattern.from_mask(M, (2, 0)), ValueError, r"tile .* got \(2, 0\)"),
    "capacity negative": (lambda: Pattern.from_mask(M, capacity=-1), ValueError, "capacity must be at least 0, got -1"),
    "capacity type": (
        lambda: Pattern.from_mask(M, capacity=2.5),
        TypeError,
        "capacity must be an int or None, got 2.5",
    ),
    "overflow": (lambda: Pattern.from_mask(M, overflow="drop"), ValueError, "'error', 'dense' or 'grow', got 'drop'"),
    "ids dtype": (lambda: Pattern.from_ids(X[0], 3), TypeError, "ids must be an integer tensor, got torch.float32"),
    "ids bool": (lambda: Pattern.from_ids(M[0], 3), TypeError, "ids must be an integer tensor, got torch.bool"),
    "ids type": (lambda: Pattern.from_ids([1], 3), TypeError, "ids must be an integer tensor, got list"),
    "ids dim": (lambda: Pattern.from_ids(torch.zeros(1, 1, 1).long(), 3), ValueError, r"ids .* got \(1, 1, 1\)"),
    "ids range": (lambda: Pattern.from_ids(torch.tensor([0, 3]), 3), ValueError, "ids must be below n=3, got 3"),
    "ids twice": (lambda: Pattern.from_ids(torch.tensor([[0, 1], [2, 2]]), 3), ValueError, "ids .* token 1 does"),
    "ids n": (lambda: Pattern.from_ids(torch.tensor([0]), -1), ValueError, "n must be at least 0, got -1"),
    "k": (lambda: Pattern.from_topk(X, 5), ValueError, "k must be between 0 and the 4 tile columns, got 5"),
    "k negative": (lambda: Pattern.from_topk(X, -1), ValueError, "k must be between .* got -1"),
    "scores grid": (
        lambda: Pattern.from_topk(X, 1, tile=(2, 2), shape=(4, 4)),
        ValueError,
        r"scores must have one entry per tile, \(2, 2\), got \(4, 4\)",
    ),
    "bsr": (
        lambda: Pattern.from_torch_bsr(X),
        TypeError,
        "matrix must be a torch.sparse_bsr tensor, got torch.strided",
    ),
    "bsr batch": (
        lambda: Pattern.from_torch_bsr(X.expand(2, 4, 4).to_sparse_bsr((2, 2))),
        ValueError,
        r"matrix must be one matrix .* got shape \(2, 4, 4\)",
    ),
    "pack": (lambda: P.pack(X[:3]), ValueError, r"dense must have the pattern's shape \(4, 4\), got \(3, 4\)"),
    "unpack": (lambda: P.unpack(X), ValueError, r"values must have shape .*\(2, 2, 2\), got \(4, 4\)"),
    "to bsr": (lambda: P.to_torch_bsr(X), ValueError, r"values must have shape \(2, 2, 2\), got \(4, 4\)"),
    "to bsr ragged": (
        lambda: Pattern.from_mask(M, (3, 2)).to_torch_bsr(X),
        ValueError,
        r"whole tiles: shape \(4, 4\) is not a multiple of tile \(3, 2\)",
    ),
    "union": (lambda: P.union(Pattern.from_mask(M)), ValueError, r"other must have .* tile \(2, 2\), got .*\(1, 1\)"),
    "copy": (lambda: P.copy_(Pattern.from_mask(M)), ValueError, r"other must have .* tile \(2, 2\), got .*\(1, 1\)"),
    "with_capacity": (lambda: P.with_capacity(None), TypeError, "capacity must be an int, got None"),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_name_the_argument(name):
    call, error, message = CALLS[name]
    before = X.clone(), M.clone(), P.offsets.clone(), P.indices.clone()
    with pytest.raises(error, match=message):
        call()
    assert all(torch.equal(a, b) for a, b in zip(before, (X, M, P.offsets, P.indices), strict=True))


def test_a_pattern_cannot_be_reassigned():
    with pytest.raises(AttributeError):
        P.tile = (1, 1)
