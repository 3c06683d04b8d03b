"""Law: `dsd` of integers equals a dense float64 product bit for bit, and its bits depend on nothing but its numbers."""

import itertools

import pytest
import torch

from gossamer.kernels import cpu
from gossamer.testing import assert_same_bits

SHAPES = [(64, 64), (37, 53), (130, 70)]  # rows and inner size: whole and ragged
TILES = [(1, 1), (4, 4), (16, 16), (3, 5), (32, 1), (1, 16), (4, 16), (16, 4), (70, 130)]
STORAGES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "int8": torch.int8}


def work_of(offsets, parts, generator):
    """A random division of every tile row: work[parts, segments, 3], with unused entries among the used ones."""
    lists = [[] for _ in range(parts)]
    for row, (slot, end) in enumerate(itertools.pairwise(offsets.tolist())):
        cuts = torch.randint(slot, end + 1, (2,), generator=generator).sort().values.tolist() if row % 2 else []
        for first, last in itertools.pairwise([slot, *cuts, end]):
            if first < last:
                lists[int(torch.randint(parts, (), generator=generator))].append([row, first, last])
    longest = max(map(len, lists)) + 2
    return torch.tensor([[[-1, 0, 0], *entries, *[[-1, 9, 9]] * (longest - 1 - len(entries))] for entries in lists])


class Case:
    """A random pattern with integer tiles, NaN wherever a number must not be read; `dense` is what S is."""

    def __init__(self, rows, k, tile, density, storage=torch.float32, flip=False, ordered=False, scaled=False, seed=0):
        g = self.generator = torch.Generator().manual_seed(seed)
        (bm, bk), self.rows, self.k, self.flip = tile, rows, k, flip
        down, across = -(-rows // bm), -(-k // bk)
        mask = torch.rand(down, across, generator=g) < density
        i, j = mask.nonzero().unbind(1)
        self.offsets = torch.cat([torch.zeros(1, dtype=torch.int64), mask.sum(1).cumsum(0)])
        capacity = len(j) + 3
        self.indices = torch.cat([j, torch.zeros(3)]).to(torch.uint16 if across <= 65536 else torch.int32)
        self.order = torch.randperm(capacity, generator=g).to(torch.int32 if rows % 2 else torch.int64)
        self.order = self.order if ordered else None
        self.scale = torch.randint(1, 4, (capacity,), generator=g).float() if scaled else None
        place = (self.order.long() if ordered else torch.arange(capacity))[: len(j)]
        tiles = torch.randint(-4, 5, (capacity, bm, bk), generator=g).double()
        scaled_tiles = tiles if self.scale is None else tiles * self.scale.double().view(-1, 1, 1)
        grid = torch.zeros(down, bm, across, bk, dtype=torch.float64)
        grid[i, :, j] = scaled_tiles[place]
        self.dense = grid.view(down * bm, across * bk)[:rows, :k]
        grid = torch.zeros_like(grid)
        grid.view(down * bm, across * bk)[:rows, :k] = 1
        inside = torch.zeros(capacity, bm, bk, dtype=torch.bool)
        inside[place] = grid[i, :, j] > 0
        self.values = tiles.masked_fill(~inside, float("nan") if storage.is_floating_point else 99).to(storage)
        if flip:
            self.values = self.values.transpose(1, 2).contiguous()
        self.unread = ~mask.any(0).repeat_interleave(bk)[:k]
        self.dtype = torch.float64 if storage == torch.float64 else torch.float32

    def b(self, n, transposed=False, real=False):
        b = torch.randint(-4, 5, (self.k, n), generator=self.generator).to(self.dtype)
        self.expected = (self.dense @ b.double()).to(self.dtype)
        if real:
            b = torch.randn(self.k, n, generator=self.generator, dtype=self.dtype)
        b[self.unread] = float("nan")
        return b.t().contiguous().t() if transposed else b

    def run(self, b, column_major=False, work=None):
        c = cpu.dsd(
            self.values, self.offsets, self.indices, self.order, self.scale, b, self.rows, self.flip, column_major, work
        )
        assert (c.t() if column_major else c).is_contiguous() and c.dtype == self.dtype
        return c


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("storage", STORAGES)
def test_integers_are_exact(isa, storage, tile):
    """Any shape, density, layout and width of b; what lies in padding, slack and unread rows of b stays out."""
    turn = itertools.count()
    for (rows, k), density in itertools.product(SHAPES, (0.0, 0.3, 1.0)):
        for flip, ordered in itertools.product((False, True), repeat=2):
            scaled = storage in ("int8", "bfloat16") and (storage == "int8" or flip)
            case = Case(rows, k, tile, density, STORAGES[storage], flip, ordered, scaled)
            for n in (1, 33, 100):
                i = next(turn)
                assert torch.equal(case.run(case.b(n, i % 2 == 1), column_major=i % 5 < 2), case.expected)


def test_float_tiles_may_have_a_scale(isa):
    for storage in (torch.float32, torch.float64):
        for tile in ((1, 1), (4, 4)):
            case = Case(37, 53, tile, 0.3, storage, ordered=True, scaled=True)
            assert torch.equal(case.run(case.b(20)), case.expected)


@pytest.mark.parametrize("tile", [(1, 1), (2, 2), (4, 4), (16, 16), (1, 16), (24, 3), (128, 128)], ids=str)
@pytest.mark.parametrize("storage", ["float32", "float64", "int8"])
def test_bits_depend_on_numbers_alone(isa, storage, tile):
    """Not on threads, on the layouts of b and c, or on the columns beside; a crowded row is shared out too."""
    case = Case(400, 300, tile, 0.2, STORAGES[storage], flip=True, ordered=True, scaled=storage == "int8")
    case.values = torch.randn(case.values.shape).mul(30).to(case.values.dtype)
    b = case.b(161, real=True)
    transposed = b.t().contiguous().t()
    expected = case.run(b)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert_same_bits(case.run(b), expected)
        assert_same_bits(case.run(transposed, column_major=True).contiguous(), expected)
        for n in (1, 16, 50):
            assert_same_bits(case.run(b[:, 7 : 7 + n]), expected[:, 7 : 7 + n].contiguous())
            assert_same_bits(case.run(transposed[:, 7 : 7 + n], column_major=True), expected[:, 7 : 7 + n].contiguous())


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_error_is_that_of_a_sum(isa, tile):
    """|error| <= count * eps * |S| |b|: each product and each addition rounds once."""
    case = Case(130, 200, tile, 0.4)
    case.values = torch.randn(case.values.shape)
    b = torch.randn(200, 40)
    c = case.run(b).double()
    dense = torch.zeros(130, 200, dtype=torch.float64)
    for row, (slot, end) in enumerate(itertools.pairwise(case.offsets.tolist())):
        for s in range(slot, end):
            top, left = row * tile[0], int(case.indices[s]) * tile[1]
            here = dense[top : top + tile[0], left : left + tile[1]]
            here.copy_(case.values[s, : here.shape[0], : here.shape[1]])
    bound = 202 * 2.0**-24 * (dense.abs() @ b.double().abs())
    assert ((c - dense @ b.double()).abs() <= bound).all() and c.any()


@pytest.mark.parametrize("tile", [(1, 1), (4, 4), (16, 16), (3, 5), (80, 7), (1, 16)], ids=str)
@pytest.mark.parametrize("storage", ["float32", "float64", "int8"])
def test_work(isa, storage, tile):
    """Rows split in any way over any number of parts; rows without tiles are zero; threads change nothing."""
    for parts, density, ordered in ((1, 0.3, False), (3, 0.3, True), (5, 1.0, False), (2, 0.02, True)):
        case = Case(130, 70, tile, density, STORAGES[storage], ordered=ordered, scaled=storage == "int8")
        work = work_of(case.offsets, parts, case.generator)
        for n, column_major in ((5, False), (33, True), (64, False)):
            assert torch.equal(case.run(case.b(n, column_major), column_major, work), case.expected)
        b, bits = case.b(161, real=True), set()
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for column_major in (False, True):
                bits.add(case.run(b, column_major, work).contiguous().view(torch.uint8).numpy().tobytes())
        torch.set_num_threads(1)
        assert len(bits) == 1


def test_sums_of_a_split_row_are_added_in_order_of_part(isa):
    """1e8 + 1 is 1e8 in float32: the order shows."""
    values = torch.tensor([1.0, 1e8, -1e8]).view(3, 1, 1)
    offsets, indices, b = torch.tensor([0, 3]), torch.tensor([0, 1, 2], dtype=torch.uint16), torch.ones(3, 1)
    for order, expected in (([0, 1, 2], 0.0), ([1, 0, 2], 0.0), ([1, 2, 0], 1.0)):
        work = torch.tensor([[[0, s, s + 1]] for s in order])
        assert cpu.dsd(values, offsets, indices, None, None, b, 1, False, False, work).item() == expected


@pytest.mark.parametrize("column_major", [False, True])
def test_empty(isa, column_major):
    for rows, k, n in ((0, 5, 3), (5, 0, 3), (5, 5, 0), (0, 0, 0), (5, 5, 3)):
        case = Case(rows, k, (2, 3), 0.0)
        b = case.b(n)
        assert_same_bits(case.run(b, column_major).contiguous(), torch.zeros(rows, n))
        work = torch.full((2, 1, 3), -1)
        assert_same_bits(case.run(b, column_major, work).contiguous(), torch.zeros(rows, n))


def test_unordered_indices_and_views_of_b(isa):
    case = Case(33, 48, (1, 1), 0.5)
    for slot, end in itertools.pairwise(case.offsets.tolist()):
        shuffled = slot + torch.randperm(end - slot)
        case.indices[slot:end] = case.indices.int()[shuffled].to(torch.uint16)
        case.values[slot:end] = case.values[shuffled]
    b = case.b(20)
    wide = torch.full((48, 31), float("nan"))
    wide[:, 5:25] = b
    assert torch.equal(case.run(wide[:, 5:25]), case.expected)
    assert torch.equal(case.run(wide.t().contiguous()[5:25].t()), case.expected)
    row = torch.arange(20.0).expand(48, 20)
    assert torch.equal(case.run(row), (case.dense @ row.double()).float())


def test_wide_patterns_use_int32(isa):
    for tile in ((1, 1), (2, 1)):
        case = Case(6, 65600, tile, 0.01)
        assert case.indices.dtype == torch.int32
        assert torch.equal(case.run(case.b(3)), case.expected)


V, S, J, B = torch.ones(2, 2, 2), torch.tensor([0, 1, 2]), torch.tensor([0, 1], dtype=torch.uint16), torch.ones(4, 3)
REFUSED = [
    ("values", (V[0], S, J, None, None, B, 3), ValueError, r"values must have 3 dimensions"),
    ("dtype", (V.half(), S, J, None, None, B, 3), TypeError, r"values must have dtype .*got torch.float16"),
    ("b dtype", (V, S, J, None, None, B.double(), 3), TypeError, r"b must have dtype torch.float32, got .*float64"),
    ("b float", (V.double(), S, J, None, None, B, 3), TypeError, r"b must have dtype torch.float64, got .*float32"),
    ("b strides", (V, S, J, None, None, torch.ones(8, 6)[::2, ::2], 3), ValueError, r"stride of 1 .*strides \(12, 2\)"),
    ("b dimensions", (V, S, J, None, None, B[0], 3), ValueError, r"b must have 2 dimensions"),
    ("rows", (V, S, J, None, None, B, -1), ValueError, r"rows must be at least 0, got -1"),
    ("offsets", (V, S, J, None, None, B, 5), ValueError, r"offsets must have 4 entries for 5 rows .*, got 3"),
    ("capacity", (V[:1], S, J, None, None, B, 3), ValueError, r"one tile per index: 2 indices, got 1 tiles"),
    ("no scale", (V.to(torch.int8), S, J, None, None, B, 3), ValueError, r"scale must be given for int8"),
    ("scale", (V, S, J, None, torch.ones(3), B, 3), ValueError, r"scale must have one entry per tile: 2 .* got 3"),
    ("scale dtype", (V, S, J, None, S[:2], B, 3), TypeError, r"scale must have dtype torch.float32"),
    ("order", (V, S, J, S, None, B, 3), ValueError, r"order must have one entry per tile: 2 tiles, got 3"),
    ("order dtype", (V, S, J, J, None, B, 3), TypeError, r"order must have dtype torch.int32 or torch.int64"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "error", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        cpu.dsd(*arguments, False, False, None)


WORK = torch.tensor([[[0, 0, 1], [1, 1, 2]]])
CONTENT = [
    (S, J.int().add(1).to(torch.uint16), None, None, r"indices\[1\] is 2, expected 0 <= index < 2"),
    (torch.tensor([0, 1, 3]), J, None, None, r"offsets must end at most at the capacity of 2 tiles, got 3"),
    (S, J, torch.tensor([0, 2]), None, r"order must name tiles in \[0, 2\), got entries from 0 to 2"),
    (S, J, torch.tensor([-1, 1]), None, r"order must name tiles in \[0, 2\), got entries from -1 to 1"),
    (S, J, None, WORK + torch.tensor([1, 0, 0]), r"work must name tile rows below 2, got 2"),
    (S, J, None, WORK[:, :1], r"work must hold every slot once"),
    (S, J, None, WORK + torch.tensor([0, 0, 1]), r"work must hold every slot once"),
    (S, J, None, WORK[:, [0, 0]], r"work must hold every slot once"),
]  # fmt: skip


@pytest.mark.parametrize(("offsets", "indices", "order", "work", "message"), CONTENT)
def test_content_is_checked_on_demand(monkeypatch, offsets, indices, order, work, message):
    monkeypatch.setenv("GOSSAMER_CHECK", "1")
    assert cpu.dsd(V, S, J, S[:2], None, B, 3, False, False, WORK).eq(2).all()
    with pytest.raises(ValueError, match=message):
        cpu.dsd(V, offsets, indices, order, None, B, 3, False, False, work)
