"""Law: the product with the rows that are needed equals the dense product, on every instruction set and team; the other
rows are not read at all."""

import subprocess
import sys

import pytest
import torch

from gossamer import _native
from gossamer.kernels import cpu, reference
from gossamer.testing import assert_same_bits, assert_within, gamma

# (batch, C, K): around eight rows side by side, a batch of eight, words of 64, a vector, a strip of 2048 or 4096.
SHAPES = [(1, 1, 1), (1, 7, 300), (3, 8, 16), (8, 65, 257), (9, 100, 63), (17, 24, 33), (2, 12, 4500), (2, 4500, 12)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
WEIGHTS = pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)


def integers(*shape, density=1.0):
    return torch.randint(-4, 5, shape).float() * (torch.rand(shape) < density)


@shapes
@WEIGHTS
def test_integers_are_exact(isa, shape, stored):
    batch, c, k = shape
    w, bias = integers(c, k).to(stored), integers(k)
    for density in (0.0, 0.1, 0.5, 1.0):
        x, gate = integers(batch, c, density=density), integers(batch, k, density=density)
        for addend in (None, bias):
            for threshold in (0.0, 1.5, 2.0):
                y, counts = cpu.skip_mv(x, w, addend, threshold)
                expected, expected_counts = reference.skip_mv(x.double(), w.double(), addend, threshold)
                assert y.dtype == torch.float32 and torch.equal(y.double(), expected)
                assert_same_bits(counts, expected_counts)
            y = cpu.gated_mv(x, w.t().contiguous(), addend, gate)
            assert torch.equal(y.double(), reference.gated_mv(x.double(), w.t().double(), addend, gate))
            assert not y[gate == 0].signbit().any()


def test_short_floats_in_and_out(isa):
    x, w, bias = integers(2, 40, density=0.5).bfloat16(), integers(40, 9), torch.ones(9, dtype=torch.bfloat16)
    y, _ = cpu.skip_mv(x, w, bias, 0.0)
    assert_same_bits(y, (x.float() @ w + 1).bfloat16())
    gate = integers(2, 9, density=0.5).bfloat16()
    assert_same_bits(cpu.gated_mv(x, w.t().contiguous(), bias, gate) + 0, (gate * (x.float() @ w + 1)).bfloat16() + 0)


@WEIGHTS
def test_real_numbers_are_within_the_bound_of_their_sums(isa, stored):
    batch, c, k = 4, 1500, 700
    x, w, gate = torch.randn(batch, c), torch.randn(c, k).to(stored), torch.randn(batch, k)
    kept = torch.where(x.abs() > 0.7, x, 0).double()
    bound = gamma(c, torch.float32) * (kept.abs() @ w.double().abs())
    assert_within(cpu.skip_mv(x, w, None, 0.7)[0], kept @ w.double(), bound)
    bound = gamma(c + 1, torch.float32) * (x.double().abs() @ w.double().abs()) * gate.double().abs()
    assert_within(cpu.gated_mv(x, w.t().contiguous(), None, gate), gate.double() * (x.double() @ w.double()), bound)


def test_bits_depend_on_no_thread_and_no_other_row(isa):
    x, w, gate = (torch.randn(*shape) for shape in ((9, 400), (400, 1000), (9, 1000)))
    x[torch.rand(9, 400) < 0.5], gate[torch.rand(9, 1000) < 0.5] = 0, 0
    flat = w.view(1000, 400)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append((cpu.skip_mv(x, w, None, 0.0)[0], cpu.gated_mv(x, flat, None, gate)))
    for again in results[1:]:
        for one, two in zip(results[0], again, strict=True):
            assert_same_bits(one, two)
    for b in range(9):
        assert_same_bits(cpu.skip_mv(x[b : b + 1], w, None, 0.0)[0], results[0][0][b : b + 1])
        assert_same_bits(cpu.gated_mv(x[b : b + 1], flat, None, gate[b : b + 1]), results[0][1][b : b + 1])


def test_what_is_dropped(isa):
    """-0.0 and what equals the threshold; not subnormals, infinities or NaN. A dropped row's NaN reaches nobody."""
    tiny, inf, nan = torch.finfo(torch.float32).smallest_normal / 4, torch.inf, torch.nan
    x = torch.tensor([[-0.0, 0.0, tiny, -tiny, inf, nan, -1.0, 1.0]])
    for threshold, dropped in ((0.0, [0, 1]), (1.0, [0, 1, 2, 3, 6, 7]), (inf, [0, 1, 2, 3, 4, 6, 7])):
        assert cpu.skip_mv(x, torch.ones(8, 1), None, threshold)[1].item() == 8 - len(dropped)
        for place in range(8):
            w = torch.zeros(8, 70)
            w[place] = nan
            x_alone = torch.where(torch.arange(8) == place, x, 0)
            y, _ = cpu.skip_mv(x_alone, w, None, threshold)
            assert y.isnan().all() == (place not in dropped) and (place not in dropped or (y == 0).all())


def test_a_row_used_by_one_does_not_reach_another(isa):
    """Both are read, but each row of x takes its own: Inf in one must not become NaN in the other."""
    x, w = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[torch.inf] * 40, [3.0] * 40])
    y, _ = cpu.skip_mv(x, w, None, 0.0)
    assert (y[0] == torch.inf).all() and (y[1] == 6).all()
    gate = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    y = cpu.gated_mv(torch.ones(2, 40), w, None, gate)
    assert y.tolist() == [[0, 120], [torch.inf, 0]]


PROTECTED = """
import ctypes, mmap, os, torch
from gossamer import _native
PAGE, rows = mmap.PAGESIZE, 40
size = PAGE // 4
libc, memory = ctypes.CDLL(None), mmap.mmap(-1, PAGE * rows)
libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
for batch in (1, 3):
    needed = torch.zeros(batch, rows)
    for b in range(batch):
        needed[b, 3 + 5 * b :: 11] = 1
    open_ = needed.any(0).tolist()
    x, y, counts = torch.ones(batch, size), torch.empty(batch, size), torch.zeros(1, dtype=torch.int64)
    scratch = torch.empty(_native.skip_mv_scratch(rows), dtype=torch.uint8)

    def run(isa, readable):
        for row in range(rows):
            assert libc.mprotect(base + row * PAGE, PAGE, 1 if readable[row] else 0) == 0
        _native.set_isa(isa)
        _native.skip_mv(needed.data_ptr(), batch, rows, base, False, size, 0, 0.0, y.data_ptr(), counts.data_ptr(),
                        scratch.data_ptr(), 1)
        _native.gated_mv(x.data_ptr(), batch, size, base, False, rows, 0, needed.data_ptr(), y.data_ptr(),
                         scratch.data_ptr(), 1)

    for isa in _native.available_isas():
        run(isa, open_)
        child = os.fork()
        if child == 0:
            run(isa, [False] * rows)
            os._exit(0)
        print(isa, batch, int(counts), os.WIFSIGNALED(os.waitpid(child, 0)[1]))
"""


def test_rows_that_nobody_needs_are_never_read():
    """They lie in pages that may not be touched. The control: a process that may not touch any of them is killed."""
    done = subprocess.run([sys.executable, "-c", PROTECTED], capture_output=True, text=True)
    expected = [f"{isa} {batch} {used} True" for batch, used in ((1, 4), (3, 10)) for isa in _native.available_isas()]
    assert done.stdout.splitlines() == expected, done.stderr


@pytest.mark.parametrize(
    ("verb", "args", "message"),
    [
        ("skip_mv", (torch.ones(1, 3), torch.ones(4, 2), None, 0.0), r"w must have 3 rows .* \(4, 2\)"),
        ("skip_mv", (torch.ones(1, 4), torch.ones(4, 2), None, -1.0), "threshold must be at least 0, got -1.0"),
        ("skip_mv", (torch.ones(1, 4), torch.ones(4, 2), None, float("nan")), "threshold must be at least 0, got nan"),
        ("skip_mv", (torch.ones(1, 4), torch.ones(4, 2), torch.ones(3), 0.0), "bias must have 2 entries, got 3"),
        ("skip_mv", (torch.ones(1, 4), torch.ones(2, 4).t(), None, 0.0), "w must be contiguous"),
        ("gated_mv", (torch.ones(1, 3), torch.ones(4, 2), None, torch.ones(1, 4)), r"w must have 3 columns"),
        ("gated_mv", (torch.ones(1, 2), torch.ones(4, 2), None, torch.ones(4, 1)), r"gate must have shape \(1, 4\)"),
    ],
)
def test_bad_input_is_named(verb, args, message):
    with pytest.raises(ValueError, match=message):
        getattr(cpu, verb)(*args)


def test_other_dtypes_are_refused():
    with pytest.raises(TypeError, match=r"x must have dtype torch.float32 or torch.bfloat16, got torch.float64"):
        cpu.skip_mv(torch.ones(1, 4).double(), torch.ones(4, 2), None, 0.0)
