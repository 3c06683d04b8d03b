"""Law: rows of weights that nobody needs are not read at all, and what cannot be right is refused.

The numbers are in tests/laws.
"""

import subprocess
import sys

import pytest
import torch
from by_name import cpu

from gossamer import _native

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
    workspace = torch.empty(_native.skip_mv_workspace(rows), dtype=torch.uint8)

    def run(isa, readable):
        for row in range(rows):
            assert libc.mprotect(base + row * PAGE, PAGE, 1 if readable[row] else 0) == 0
        _native.set_isa(isa)
        _native.skip_mv(needed.data_ptr(), batch, rows, base, False, size, 0, 0.0, y.data_ptr(), counts.data_ptr(),
                        workspace.data_ptr(), 1)
        _native.gated_mv(x.data_ptr(), batch, size, base, False, rows, 0, needed.data_ptr(), y.data_ptr(),
                         workspace.data_ptr(), 1)

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
    ("op", "args", "message"),
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
def test_bad_input_is_named(op, args, message):
    with pytest.raises(ValueError, match=message):
        getattr(cpu, op)(*args)


def test_other_dtypes_are_refused():
    with pytest.raises(TypeError, match=r"x must have dtype torch.float32 or .*, got torch.float64"):
        cpu.skip_mv(torch.ones(1, 4).double(), torch.ones(4, 2), None, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kept", [1.0, 0.6, 0.05])
def test_a_row_has_the_bits_that_it_has_alone(dtype, kept):
    """Whether rows share what is read or each takes its own; a weight that only others need may be infinite."""
    x, gate = (torch.randn(11, 300) * (torch.rand(11, 300) < kept) for _ in range(2))
    w = torch.randn(300, 135).to(dtype)
    w[40, 3], x[::2, 40], x[1::2, 40] = torch.inf, 0.0, -1.0
    together = cpu.skip_mv(x, w, None, 0.0)[0], cpu.gated_mv(torch.randn(11, 135, generator=_seed()), w, None, gate)
    for row in range(11):
        assert torch.equal(together[0][row], cpu.skip_mv(x[row : row + 1], w, None, 0.0)[0][0])
        alone = cpu.gated_mv(torch.randn(11, 135, generator=_seed())[row : row + 1], w, None, gate[row : row + 1])[0]
        assert torch.equal(together[1][row].nan_to_num(7.0), alone.nan_to_num(7.0))
    assert together[0][::2].isfinite().all() and (together[0][1::2, 3] == -torch.inf).all()


def test_every_half_float_is_widened_exactly():
    every = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.float16)
    y = cpu.skip_mv(torch.ones(1, 1), every.view(1, -1), None, 0.0)[0][0]
    assert torch.equal(y.nan_to_num(0.5), every.float().nan_to_num(0.5))


def _seed():
    return torch.Generator().manual_seed(3)
