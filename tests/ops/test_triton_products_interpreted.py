"""Law: the Triton products do what the reference does, bit for bit on integers; in Triton's interpreter, on the CPU.

Run by `test_triton_interpreted.py`, which sets TRITON_INTERPRET=1 for a child process. Whatever must not take part is
NaN: slack and padding of values, rows of b under no tile, elements of a outside the tiles.
"""

import os
import sys
from itertools import pairwise

import pytest
import torch

from gossamer.kernels import reference
from gossamer.testing import CASES, Case, assert_same_bits, assert_within, case, gamma, ids

pytest.importorskip("triton", reason="triton is not installed: pip install gossamer[triton]")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="runs in the child process of test_under_the_interpreter"
)

# The interpreter takes milliseconds a program: hundreds of tile rows are left to the GPU. How tiles are filled matters
# to detection only.
TOYS = [c for c in CASES if max(c.grid) <= 60 and c.cols <= 1000 and c.fill == "random"]
toys = pytest.mark.parametrize("c", TOYS, ids=ids(TOYS))
# Sums of the short floats stay below 256, where their integers end; there the interpreter truncates what it stores.
TYPED = [(c, torch.float32) for c in TOYS] + [
    (case(name), dtype)
    for name in ("ragged", "ragged, odd tile", "tall tiles", "large tiles")
    for dtype in (torch.float16, torch.bfloat16)
]
TYPED += [(case("elements"), torch.bfloat16), (case("empty rows"), torch.float64)]
typed = pytest.mark.parametrize(("c", "dtype"), TYPED, ids=[f"{c.name}-{dtype}" for c, dtype in TYPED])
laid_out = pytest.mark.parametrize("transposed", [False, True], ids=["row-major", "transposed"])


@pytest.fixture(autouse=True)
def bfloat16_products(monkeypatch):
    """The interpreter keeps a bfloat16 as the integer of its bits, and `tl.dot` there multiplies those integers."""
    import triton.language as tl
    from triton.runtime import interpreter

    dot = interpreter.InterpreterBuilder.create_dot

    def wide(x):
        if x.dtype.scalar != tl.bfloat16:
            return x
        return interpreter.TensorHandle((x.data.astype("uint32") << 16).view("float32"), tl.float32)

    monkeypatch.setattr(
        interpreter.InterpreterBuilder, "create_dot", lambda self, a, b, *rest: dot(self, wide(a), wide(b), *rest)
    )


def assert_same_numbers(actual, expected):
    """The same bits, but for the sign of a zero: a sum that begins at zero never is -0.0, a lone product may be."""
    assert_same_bits(actual + 0, expected + 0)


def integers(*shape, dtype=torch.float32, seed=0):
    return torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def strided(x, transposed):
    """The same numbers, contiguous or as the transposed view of a contiguous tensor."""
    return x.transpose(-1, -2).contiguous().transpose(-1, -2) if transposed else x.contiguous()


def index(c: Case, seed=0):
    """(offsets, indices) with three slots of slack that must never be used as addresses."""
    tiles = int(c.tiles(seed).sum())
    offsets, indices = reference.detect(c.dense(seed=seed), *c.tile, tiles + 3, True)
    indices[tiles:] = torch.iinfo(indices.dtype).max
    return offsets, indices


def covered(c: Case, offsets, indices):
    """float[rows, cols], 1 under the tiles."""
    return reference.scatter(torch.ones(len(indices), *c.tile), offsets, indices, *c.shape)


def poisoned_values(c: Case, offsets, indices, dtype):
    values = integers(len(indices), *c.tile, dtype=dtype)
    within = reference.gather(torch.ones(c.shape), offsets, indices, *c.tile)
    return values.masked_fill(within == 0, torch.nan) if dtype.is_floating_point else values


def poisoned_rows(cover, n, dtype, transposed=False):
    """b[cols, n] with NaN where no tile of its column is present."""
    b = integers(cover.shape[1], n, dtype=dtype, seed=1)
    return strided(b.masked_fill((cover == 0).all(dim=0)[:, None], torch.nan), transposed)


@typed
@pytest.mark.parametrize(("transposed", "column_major"), [(False, False), (True, True)])
def test_dsd(c, dtype, transposed, column_major):
    from gossamer.kernels import triton

    offsets, indices = index(c)
    values = poisoned_values(c, offsets, indices, dtype)
    b = poisoned_rows(covered(c, offsets, indices), 21, dtype, transposed)
    got, expected = (
        backend.dsd(values, offsets, indices, None, None, b, c.rows, False, column_major, None)
        for backend in (triton, reference)
    )
    assert_same_numbers(got, expected)
    assert got.t().is_contiguous() if column_major else got.is_contiguous()


@toys
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=str)
def test_dsd_of_the_transposed_pattern_reads_the_same_values(c, dtype):
    from gossamer.kernels import triton

    offsets, indices = index(c)
    values = poisoned_values(c, offsets, indices, dtype)
    scale = 2.0 ** torch.randint(-3, 4, (len(indices),)) if dtype == torch.int8 else None
    *transposed, order = reference.transpose(offsets, indices, c.grid[1])
    b = poisoned_rows(covered(c, offsets, indices).t(), 9, torch.float32)
    args = (values, *transposed, order, scale, b, c.cols, True, False, None)
    assert_same_numbers(triton.dsd(*args), reference.dsd(*args))


def cut(offsets, parts, at_random):
    """int64[parts, segments, 3] that covers every slot once: rows in pieces dealt out at random, or equal ranges."""
    pieces = [[] for _ in range(parts)]
    ends = offsets.tolist()
    for row, (start, end) in enumerate(pairwise(ends)):
        while start < end:
            part = int(torch.randint(parts, ())) if at_random else start * parts // ends[-1]
            room = -(-(part + 1) * ends[-1] // parts) - start
            step = int(torch.randint(1, 4, ())) if at_random else room
            pieces[part].append((row, start, min(start + step, end)))
            start = pieces[part][-1][2]
    for part in pieces if at_random else ():
        part[:] = [part[i] for i in torch.randperm(len(part))]
    work = torch.full((parts, max(map(len, pieces)) + 1, 3), -1)
    for part, listed in enumerate(pieces):
        work[part, : len(listed)] = torch.tensor(listed, dtype=torch.int64).view(-1, 3)
    return work


@toys
@pytest.mark.parametrize("at_random", [True, False], ids=["pieces", "ranges"])
def test_dsd_with_work_in_parts(c, at_random):
    """Rows split over several parts, into more pieces than a part keeps, and in any order."""
    from gossamer.kernels import triton

    offsets, indices = index(c)
    values = poisoned_values(c, offsets, indices, torch.float32)
    b = poisoned_rows(covered(c, offsets, indices), 18, torch.float32)
    work = cut(offsets, 3, at_random)
    args = (values, offsets, indices, None, None, b, c.rows, False, False)
    assert_same_numbers(triton.dsd(*args, work), reference.dsd(*args, None))


def test_parts_that_are_ranges_are_added_from_what_they_kept():
    """Partial sums come from memory, not from a second computation: poison the memory and the result shows it."""
    from gossamer.kernels.triton import dsd as function

    module = sys.modules[function.__module__]
    c = case("every tile")
    offsets, indices = index(c)
    values, b = integers(len(indices), *c.tile), torch.ones(c.cols, 16)
    work = cut(offsets, 5, False)
    split = {row for part in work.tolist() for row, start, end in part if row >= 0
             and (start, end) != tuple(offsets[row : row + 2].tolist())}  # fmt: skip
    assert len(split) >= 3
    kept = []
    launch = module.launch

    def spoil(kernel, grid, choices, *args, **constants):
        if kernel is module.dsd_joined:
            kept.append(args[9].isfinite().any(dim=(1, 2)).sum())
            args[9].fill_(torch.inf)
        return launch(kernel, grid, choices, *args, **constants)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "launch", spoil)
        c = module.dsd(values, offsets, indices, None, None, b, c.rows, False, False, work)
    assert kept and kept[0] >= 2 * len(split) - 1
    assert c.isinf().any(dim=1).view(-1, 8).all(dim=1).nonzero().flatten().tolist() == sorted(split)


@typed
@laid_out
def test_sdd(c, dtype, transposed):
    from gossamer.kernels import triton

    offsets, indices = index(c)
    cover = covered(c, offsets, indices)
    a = integers(c.rows, 37, dtype=dtype).masked_fill((cover == 0).all(dim=1)[:, None], torch.nan)
    b = integers(37, c.cols, dtype=dtype, seed=1).masked_fill((cover == 0).all(dim=0)[None, :], torch.nan)
    args = (strided(a, transposed), strided(b, transposed), offsets, indices, *c.tile)
    assert_same_numbers(triton.sdd(*args), reference.sdd(*args))


@toys
def test_transpose(c):
    from gossamer.kernels import triton

    offsets, indices = index(c)
    for got, expected in zip(
        triton.transpose(offsets, indices, c.grid[1]), reference.transpose(offsets, indices, c.grid[1]), strict=True
    ):
        assert_same_bits(got, expected)


@typed
@laid_out
def test_gather_mm(c, dtype, transposed):
    from gossamer.kernels import triton

    offsets, indices = index(c)
    cover = covered(c, offsets, indices)
    a = integers(*c.shape, dtype=dtype).masked_fill(cover == 0, torch.nan)
    b = poisoned_rows(cover, 21, dtype, transposed)[None]
    args = (a, offsets, indices, *c.tile, b, transposed)
    assert_same_numbers(triton.gather_mm(*args), reference.gather_mm(*args))


@pytest.mark.parametrize("tile", [(1, 40), (1, 64), (8, 1), (5, 16)], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("density", [0.0, 0.4, 1.0])
def test_gather_mm_of_a_batch(tile, batch, density):
    """Rows present or absent as a whole, and other tiles; a list of rows longer than a block, and none."""
    from gossamer.kernels import triton

    c = Case("", batch * 80, 40, tile, density)
    offsets, indices = index(c)
    a = integers(*c.shape).masked_fill(covered(c, offsets, indices) == 0, torch.nan)
    args = (a, offsets, indices, *tile, integers(batch, 40, 5, seed=1), False)
    assert_same_numbers(triton.gather_mm(*args), reference.gather_mm(*args))


GROUPS = {
    "empty, full, long": [0, 0, 3, 40, 40, 41, 150],
    "begins late, ends early": [5, 17, 18, 18, 130],
    "one": [0, 150],
    "none named": [4, 4, 4],
    "all in the last": [0, 0, 0, 150],
}


@pytest.mark.parametrize("offsets", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("named", ["both", "source", "target", "neither"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_grouped(offsets, named, dtype):
    from gossamer.kernels import triton

    offsets = torch.tensor(offsets)
    x, dy = integers(150, 20, dtype=dtype), integers(200, 7, dtype=dtype, seed=1)
    weights = integers(len(offsets) - 1, 20, 7, dtype=dtype, seed=2)
    source = torch.randint(0, 150, (150,), dtype=torch.int32) if named in ("both", "source") else None
    target = torch.randperm(200)[:150] if named in ("both", "target") else None
    for flip, matrices in ((False, weights), (True, weights.transpose(1, 2).contiguous())):
        args = (x, source, target, offsets, matrices, flip, 200)
        assert_same_numbers(triton.grouped_mm(*args), reference.grouped_mm(*args))
    outer = (x, dy, source, target, offsets)
    assert_same_numbers(triton.grouped_outer(*outer), reference.grouped_outer(*outer))


def test_real_numbers_are_within_the_bound_of_their_sum():
    from gossamer.kernels import triton

    c = case("ragged")
    offsets, indices = index(c)
    values, b = torch.randn(len(indices), *c.tile), torch.randn(c.cols, 21)
    dense = reference.scatter(values, offsets, indices, *c.shape)
    got = triton.dsd(values, offsets, indices, None, None, b, c.rows, False, False, None)
    bound = gamma(c.cols, torch.float32) * (dense.abs().double() @ b.abs().double())
    assert_within(got, dense.double() @ b.double(), bound)


def test_a_dtype_without_products_is_named():
    from gossamer.kernels import triton

    offsets, indices = torch.tensor([0, 1]), torch.zeros(1, dtype=torch.uint16)
    with pytest.raises(TypeError, match=r"b must be one of torch.float32.*got torch.int32"):
        triton.dsd(torch.ones(1, 1, 1), offsets, indices, None, None, torch.ones(1, 1).int(), 1, False, False, None)


def test_the_next_block_size_where_one_does_not_compile():
    """Triton 3.3 to 3.6 cannot compile every kernel; any other failure is not swallowed."""
    import triton as compiler

    from gossamer.kernels.triton.launch import launch

    tried = []

    class Kernel:
        __name__ = "kernel"

        def __getitem__(self, grid):
            def run(*args, BM, message="PassManager::run failed", **constants):
                tried.append((grid, BM))
                if BM > 16:
                    raise RuntimeError(message)

            return run

    choices = [{"BM": 64}, {"BM": 32}, {"BM": 16}]
    kernel, x = Kernel(), torch.ones(2)
    for _ in range(2):
        assert launch(kernel, lambda blocks: (blocks["BM"],), iter(choices), x) == {"BM": 16}
    assert tried == [((64,), 64), ((32,), 32), ((16,), 16), ((16,), 16)]
    with pytest.raises(RuntimeError, match=f"kernel: Triton {compiler.__version__} compiles none"):
        launch(kernel, lambda blocks: (1,), iter(choices[:2]), x)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        launch(kernel, lambda blocks: (1,), iter(choices), x, message="illegal memory access")
