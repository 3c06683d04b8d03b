"""Law: no byte outside its arguments is touched, and an argument that cannot be right is refused before it is used."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from by_name import cpu

from gossamer import _native

X = torch.arange(12.0).view(3, 4)
OFFSETS = torch.tensor([0, 1, 2])
INDICES = torch.tensor([0, 1], dtype=torch.uint16)
VALUES = torch.ones(2, 2, 2)


@pytest.mark.skipif(sys.platform != "linux", reason="uses mprotect")
def test_guard_pages():
    """By every instruction set in one process, whose last line says which of them wrote where nothing is."""
    isas = _native.available_isas()
    program = Path(__file__).with_name("guarded_memory.py")
    result = subprocess.run([sys.executable, program, *isas], capture_output=True, text=True)
    expected = "".join(f"{isa}: 80\n" for isa in isas)
    assert (result.returncode, result.stdout) == (0, expected), result.stdout + result.stderr


REFUSED = [
    ("list", lambda: cpu.detect([[1.0]], 1, 1, 1, True), TypeError, r"x must be a torch.Tensor, got list"),
    ("meta", lambda: cpu.detect(X.to("meta"), 1, 1, 1, True), ValueError, r"x must be on the CPU, got device meta"),
    ("sparse", lambda: cpu.detect(X.to_sparse(), 1, 1, 1, True), TypeError, r"x must be strided, got .*sparse_coo"),
    ("complex", lambda: cpu.detect(X.to(torch.cfloat), 1, 1, 1, True), TypeError, r"got torch.complex64"),
    ("float8", lambda: cpu.detect(X.to(torch.float8_e4m3fn), 1, 1, 1, True), TypeError, r"got torch.float8_e4m3fn"),
    ("dimensions", lambda: cpu.detect(X[0], 1, 1, 1, True), ValueError, r"x must have 2 dimensions, got shape \(4,\)"),
    ("strides", lambda: cpu.detect(X.t(), 1, 1, 1, True), ValueError, r"x must be contiguous.*strides \(1, 4\)"),
    ("tile", lambda: cpu.detect(X, 0, 1, 1, True), ValueError, r"tile must be at least \(1, 1\), got \(0, 1\)"),
    ("capacity", lambda: cpu.detect(X, 1, 1, -1, True), ValueError, r"capacity must be at least 0 .*got -1"),
    ("offsets", lambda: cpu.gather(X, OFFSETS[:2], INDICES, 2, 2), ValueError, r"offsets must have 3 entries.*got 2"),
    ("offsets dtype", lambda: cpu.gather(X, OFFSETS.int(), INDICES, 2, 2), TypeError, r"offsets .*int64.*int32"),
    ("indices dtype", lambda: cpu.gather(X, OFFSETS, OFFSETS, 2, 2), TypeError, r"indices .*uint16 or .*int32, got"),
    ("values", lambda: cpu.scatter(VALUES[:1], OFFSETS, INDICES, 3, 4), ValueError, r"2 indices, got 1 tiles"),
    ("rows", lambda: cpu.scatter(VALUES, OFFSETS, INDICES, -3, 4), ValueError, r"at least 0, got -3 and 4"),
    ("mask shape", lambda: cpu.mask_(X, torch.ones(4, 3, dtype=torch.bool)), ValueError, r"\(3, 4\), got \(4, 3\)"),
    ("mask dtype", lambda: cpu.mask_(X, torch.ones(3, 4)), TypeError, r"mask must have dtype torch.bool"),
    ("scores", lambda: cpu.topk_mask(X[0].double(), 1), TypeError, r"scores must have dtype torch.float32"),
    ("k", lambda: cpu.topk_mask(X[0], -1), ValueError, r"k must be at least 0, got -1"),
    ("allowed", lambda: cpu.topk_mask(X[0], 1, True, X[1, :3] > 0), ValueError, r"allowed must have 4 entries.*got 3"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_refused(call, error, message):
    before = X.clone()
    with pytest.raises(error, match=message):
        call()
    assert torch.equal(X, before)


def test_negated_views_are_refused():
    """Their memory holds the numbers before the negation, and a single column of them is contiguous."""
    negated = torch.complex(X, X)[:1, :1].conj().imag
    assert negated.is_neg() and negated.is_contiguous()
    with pytest.raises(ValueError, match="x must not be a lazily negated view"):
        cpu.gather(negated, OFFSETS[:2], INDICES, 1, 1)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.int32], ids=str)
@pytest.mark.parametrize(
    ("indices", "offsets", "message"),
    [
        ([0, 2], [0, 1, 2], r"indices\[1\] is 2, expected 0 <= index < 2 tile columns"),
        ([60000, 0], [0, 1, 2], r"indices\[0\] is 60000"),
        ([0, 1], [1, 2, 2], r"offsets must start at 0 and never decrease"),
        ([0, 1], [0, 2, 1], r"offsets must start at 0 and never decrease"),
        ([0, 1], [-4, 1, 2], r"offsets must start at 0 and never decrease"),
        ([0, 1], [0, 2, 4], r"offsets must end at most at the capacity of 2 tiles, got 4"),
    ],
)
def test_checked_before_memory_is_touched(dtype, indices, offsets, message):
    pattern = torch.tensor(offsets), torch.tensor(indices).to(dtype)
    with pytest.raises(ValueError, match=message):
        cpu.gather(X, *pattern, 2, 2)
    with pytest.raises(ValueError, match=message):
        cpu.scatter(VALUES, *pattern, 3, 4)


def test_negative_index_is_caught():
    with pytest.raises(ValueError, match=r"indices\[0\] is -1"):
        cpu.gather(X, OFFSETS, torch.tensor([-1, 0], dtype=torch.int32), 2, 2)


def test_slack_passes_the_check():
    """Entries past the pattern may hold anything."""
    slack = torch.tensor([0, 1, 65535], dtype=torch.uint16)
    assert not cpu.gather(X, OFFSETS, slack, 2, 2)[2].any()
