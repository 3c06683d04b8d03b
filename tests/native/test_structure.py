"""Law: whatever becomes an address is checked at every call: what is broken is refused, wherever it comes from."""

import io

import pytest
import torch
from by_name import cpu
from fuzzed_structure import run

import gossamer as gs
from gossamer import nn, ops

X, B, W = torch.ones(8, 8), torch.ones(8, 3), torch.ones(2, 8, 3)
IDS = torch.tensor([0, 1, 0, 1, 1, 0, 1, 0])


def tiles():
    """A pattern (8, 8) of tiles (2, 2), every one, with indices that hold any number."""
    p = gs.Pattern.full((8, 8), (2, 2))
    return gs.Pattern(p.offsets.clone(), p.indices.to(torch.int32), p.shape, p.tile)


def routes():
    p = gs.Pattern.from_ids(IDS, 2)
    return gs.Pattern(p.offsets.clone(), p.indices.to(torch.int32), p.shape, p.tile)


V = torch.ones(16, 2, 2)
CALLS = {
    "gather": (tiles, lambda p, backend: ops.gather(X.clone().requires_grad_(), p, backend=backend)),
    "scatter": (tiles, lambda p, backend: ops.scatter(V.clone().requires_grad_(), p, backend=backend)),
    "dsd": (tiles, lambda p, backend: ops.dsd(V.clone().requires_grad_(), p, B, backend=backend)),
    "dds": (tiles, lambda p, backend: ops.dds(B.t(), V.clone().requires_grad_(), p, backend=backend)),
    "sdd": (tiles, lambda p, backend: ops.sdd(X.clone().requires_grad_(), X, p, backend=backend)),
    "transpose": (tiles, lambda p, backend: ops.transpose(p, backend=backend)),
    "matmul": (tiles, lambda p, backend: ops.matmul(X.clone().requires_grad_(), B, index=p, backend=backend)),
    "matmul of b": (tiles, lambda p, backend: ops.matmul(B.t(), X, sparse="b", index=p, backend=backend)),
    "matmul of a batch": (
        tiles,
        lambda p, backend: ops.matmul(X.view(2, 4, 8), B.expand(2, 8, 3), index=p, backend=backend),
    ),
    "grouped_matmul": (
        routes,
        lambda p, backend: ops.grouped_matmul(X, W.clone().requires_grad_(), IDS, index=p, backend=backend),
    ),
}


BROKEN = [("indices", 3, number) for number in (-(2**31), -1, 8, 65535, 10**8)]
BROKEN += [("offsets", at, number) for at, number in ((0, -1), (1, 100), (1, -3), (-1, 17), (-1, 10**8), (0, 1))]


def write(p, field, at, number):
    """As numpy does: autograd does not see it."""
    getattr(p, field).numpy()[at] = number


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", CALLS)
def test_a_broken_pattern_is_refused(name, backend):
    make, call = CALLS[name]
    call(make(), backend)
    for broken in BROKEN:
        p = make()
        write(p, *broken)
        with pytest.raises(ValueError, match=r"offsets|indices|source|target"):
            call(p, backend)


PAGES = {
    "offsets": torch.arange(3), "lengths": torch.tensor([40, 64]),
    "table": torch.tensor([[3, 0], [1, 2]], dtype=torch.int32), "heads": torch.tensor([2, 0]),
    "list_offsets": torch.tensor([0, 2, 3, 4, 4]), "list_pages": torch.tensor([0, 1, 1, 0], dtype=torch.int32),
}  # fmt: skip
KEYS = torch.ones(2, 4, 16)


def read_pages(backend, pool, offsets, lengths, table, heads, list_offsets, list_pages):
    lists = gs.Pattern(list_offsets, list_pages, (len(list_offsets) - 1, 2), (1, 1))
    batch = ops.Batch(offsets, lengths, table)
    return ops.page_attention(KEYS, pool, batch, heads=heads, group=2, lists=lists, backend=backend)


def scored(by):
    return lambda backend, pool, offsets, lengths, table, heads, *_: ops.page_scores(
        KEYS, pool, ops.Batch(offsets, lengths, table), by=by, heads=heads, group=2, backend=backend
    )


PAGED = {
    "page_attention": read_pages,
    "page_append": lambda backend, pool, offsets, lengths, table, heads, *_: ops.page_append(
        KEYS, KEYS, pool, ops.Batch(offsets, lengths, table), heads=heads, backend=backend
    ),
    "page_scores, keys": scored("keys"),
    "page_scores, moments": scored("moments"),
    "page_choose": lambda backend, pool, offsets, lengths, table, heads, *_: ops.page_choose(
        torch.ones(2, 4, 2), ops.Batch(offsets, lengths, table), 2, heads=heads, group=2, page=32, backend=backend
    ),
}
BROKEN_HEADS = [("heads", [-2, 0]), ("heads", [0, 4])]
BROKEN_ROWS = [("lengths", [40, 65]), ("table", [[3, 9], [1, 2]]), ("table", [[3, 0]])]
BROKEN_BATCH = [
    ("offsets", [-4, 1, 2]), ("offsets", [0, 1, 1]), ("offsets", [0, 3, 2]), ("offsets", [0, 1, 2, 2]),
    ("lengths", [40, 0]), ("lengths", [40, 64, 1]),
]  # fmt: skip
BROKEN_LISTS = [
    ("list_pages", [1, 0, 1, 0]), ("list_pages", [0, 0, 1, 0]), ("list_pages", [0, 2, 1, 0]),
    ("list_pages", [-1, 1, 1, 0]), ("list_offsets", [-4, 2, 3, 4, 4]), ("list_offsets", [1, 2, 3, 4, 4]),
    ("list_offsets", [0, 2, 3, 4, 5]), ("list_offsets", [0, 3, 2, 4, 4]), ("list_offsets", [0, 2, 3, 4]),
    ("list_offsets", [0, 2, 3, 4, 4, 4]),
]  # fmt: skip
OF_PAGES = {
    "page_attention": [*BROKEN_HEADS, ("heads", [1, 2]), *BROKEN_ROWS, *BROKEN_BATCH, *BROKEN_LISTS],
    "page_append": [*BROKEN_HEADS, *BROKEN_ROWS, *BROKEN_BATCH],
    "page_choose": [*BROKEN_HEADS, ("lengths", [40, 32]), ("lengths", [40, 65]), ("lengths", [40])],
    **{f"page_scores, {by}": [*BROKEN_HEADS, ("heads", [1, 2]), *BROKEN_ROWS] for by in ("keys", "moments")},
}


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", PAGED)
def test_a_broken_batch_of_pages_is_refused(name, backend):
    pool = ops.PagePool.allocate(4, 2, 16, page=32, sketched=True)
    for each in pool.tensors:
        each.zero_()
    PAGED[name](backend, pool, *PAGES.values())
    for field, numbers in OF_PAGES[name]:
        given = PAGES | {field: torch.tensor(numbers, dtype=PAGES[field].dtype)}
        with pytest.raises(ValueError, match=r"offsets|lengths|table|heads|lists|scores"):
            PAGED[name](backend, pool, *given.values())


@pytest.mark.parametrize("name", ["gather", "scatter", "dsd", "sdd", "matmul", "grouped_matmul"])
def test_what_is_broken_between_forward_and_backward_is_refused(name):
    make, call = CALLS[name]
    for broken in BROKEN[: -(name == "grouped_matmul") or None]:  # whose kernels may begin with a later position
        p = make()
        y = call(p, "cpu")
        write(p, *broken)
        with pytest.raises(ValueError, match=r"offsets|indices|source|target"):
            y.sum().backward()


@pytest.mark.parametrize("name", CALLS)
def test_a_pattern_from_a_file_is_refused(name):
    make, call = CALLS[name]
    p, file = make(), io.BytesIO()
    p.indices[0] = 99_999_999
    torch.save(p, file)
    file.seek(0)
    with pytest.raises(ValueError, match="99999999"):
        call(torch.load(file, weights_only=True), None)


def test_a_stale_transposed_index_stays_inside():
    """Of another pattern of as many tiles: numbers are those of the reference; out of range, refused."""
    p, q = (gs.Pattern.from_mask(mask, (2, 2)) for mask in (X.tril() > 0, X.triu() > 0))
    values, stale = torch.randn(p.capacity, 2, 2), ops.transpose(q)
    expected = ops.dds(B.t(), values, p, transposed=stale, backend="reference")
    torch.testing.assert_close(ops.dds(B.t(), values, p, transposed=stale), expected)
    for number in (-1, p.capacity, 10**8):
        order = stale.order.clone()
        order[2] = number
        for backend in ("cpu", "reference"):
            with pytest.raises(ValueError, match="order"):
                ops.dds(B.t(), values, p, transposed=ops.Transposed(stale.pattern, order), backend=backend)


@pytest.mark.parametrize("rows", [4096, 8])
def test_work_of_another_pattern_is_refused(rows):
    """More rows, or as many with other tiles: slots that it leaves out or names in another row are not lost."""
    mask = torch.rand(8, 8) < 0.5
    other = gs.Pattern.from_mask(torch.rand(rows, 8) < 0.4)
    p = gs.Pattern.from_mask(mask)
    work = gs.planner.partition(other, 2).work
    with pytest.raises(ValueError, match="work must"):
        ops.dsd(torch.ones(p.capacity, 1, 1), p, B, work=work)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.int32], ids=str)
def test_a_tile_named_twice_is_found_wherever_it_is(isa, dtype):
    """In rows that ascend or do not, across the threads' shares; a row may begin below the end of the one before."""
    rows, cols, each = 400, 300, 250
    columns = torch.stack([torch.randperm(cols)[:each] for _ in range(rows)])
    offsets = torch.arange(rows + 1) * each
    for ordered in (True, False):
        base = columns.sort().values if ordered else columns
        a, b = torch.zeros(rows, cols), torch.zeros(1, cols, 1)
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert not cpu.gather_mm(a, offsets, base.flatten().to(dtype), 1, 1, b, False).any()
            for row, at in ((0, 0), (133, 100), (199, 249), (200, 1), (399, 248)):
                twice = base.clone()
                twice[row, at] = twice[row, at - 1]
                column = int(twice[row, at])
                with pytest.raises(ValueError, match=f"tile row {row} lists column {column} more than once"):
                    cpu.gather_mm(a, offsets, twice.flatten().to(dtype), 1, 1, b, False)


@pytest.mark.parametrize("number", [-1, 300, 2**30])
def test_every_entry_of_a_long_index_is_looked_at(isa, number):
    """At the ends of vectors and of the threads' shares."""
    used = 200_000
    x, offsets = torch.zeros(1000, 300), torch.arange(1001) * 200
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for at in (0, 1, 66_666, 66_667, 99_999, 100_000, 133_333, used - 17, used - 1):
            indices = torch.zeros(used + 1, dtype=torch.int32)
            indices[at] = number
            with pytest.raises(ValueError, match=rf"indices\[{at}\] is {number}, expected 0 <= index < 300"):
                cpu.gather(x, offsets, indices, 1, 1)
        indices.fill_(299)[-1] = number  # the slack
        cpu.gather(x, offsets, indices, 1, 1)


NUMBERS = {
    "tile columns": (
        lambda: cpu.gather(torch.zeros(0, 2**31 + 1), torch.zeros(1).long(), IDS[:0].int(), 1, 1),
        "2\\*\\*31",
    ),
    "products": (lambda: cpu.sdd(X, X, torch.tensor([0, 1]), IDS[:1].int(), 2**40, 2**40), "at most 2\\*\\*56"),
    "sizes of nothing": (lambda: cpu.read(torch.zeros(0, 2**30, 2**30)), "at most 2\\*\\*56"),
    "rows": (lambda: cpu.scatter(V, tiles().offsets, tiles().indices, 2**62, 8), "at most 2\\*\\*56"),
    "out_rows": (lambda: cpu.grouped_mm(X, None, None, IDS[:1], W[:0], False, 2**60), "out_rows .* 2\\*\\*56"),
    "tile_cols": (lambda: cpu.transpose(torch.zeros(1).long(), IDS[:0].int(), 2**57), "tile_cols .* 2\\*\\*56"),
    "capacity": (lambda: cpu.detect(X, 1, 1, 2**60, True), "capacity .* 2\\*\\*56"),
    "ids": (lambda: gs.Pattern.from_ids(IDS, 2**61), "n must be less than"),
    "full": (lambda: gs.Pattern.full((1, 2**31 + 1)), "2\\*\\*31"),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_would_overflow_are_refused(name):
    call, message = NUMBERS[name]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("tile", [(2**40, 1), (1, 2**40), (2**50, 2**50), (2**62, 2**62)])
def test_a_tile_larger_than_any_matrix_is_the_matrix(isa, tile):
    x = torch.zeros(5, 70)
    x[3, 66] = 1
    offsets, indices = cpu.detect(x, *tile, 5, True)
    expected = cpu.detect(x, min(tile[0], 5), min(tile[1], 70), 5, True)
    assert torch.equal(offsets, expected[0]) and torch.equal(indices.int(), expected[1].int())


def test_memory_that_cannot_be_had_is_torchs_error():
    with pytest.raises(RuntimeError, match=r"memory"):
        cpu.detect(X, 1, 1, 2**55, True)
    freed = X.clone()
    freed.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="x has 64 elements but no memory: its storage was freed"):
        cpu.detect(freed, 1, 1, 4, True)


@pytest.mark.parametrize("name", ["offsets", "indices", "offsets_t", "indices_t", "order"])
def test_a_layers_index_is_checked_as_well(name):
    mask = torch.eye(8).bool().repeat_interleave(4, 0).repeat_interleave(4, 1)
    layer = nn.BlockSparseLinear(32, 32, block=4, pattern=gs.Pattern.from_mask(mask, (4, 4)))
    x = torch.ones(3, 32, requires_grad=True)
    before = layer(x)
    held = layer.state_dict()
    if name in held:
        held[name] = held[name].clone().fill_(200)
        with pytest.raises(RuntimeError, match="not a pattern of shape"):
            layer.load_state_dict(held)
        assert torch.equal(layer(x), before)
    getattr(layer, name).numpy().reshape(-1)[1] = 200
    with pytest.raises(ValueError, match=r"offsets|indices|order"):
        layer(x).sum().backward()


@pytest.mark.parametrize("meta", ["offsets", "indices"])
def test_a_pattern_on_two_devices_is_refused(meta):
    p = tiles()
    fields = {"offsets": p.offsets, "indices": p.indices}
    fields[meta] = fields[meta].to("meta")
    for call in (lambda p: ops.gather(X, p), lambda p: ops.dsd(V, p, B), ops.transpose):
        with pytest.raises(ValueError, match="device"):
            call(gs.Pattern(**fields, shape=p.shape, tile=p.tile))


def test_random_structure(isa):
    """A share of what `make test-asan` does under the sanitizers."""
    outcomes = run(range(250))
    assert outcomes["right"] > 60 and outcomes["refused"] > 60


@pytest.mark.slow
def test_more_than_2_to_the_31_rows_of_images(isa):
    """Row n * H + h of x is a 64-bit number: 8 GiB of untouched zeros, and one that is not zero at the end."""
    n = 2**30 + 64
    x = torch.zeros(n, 2, 1, 1)
    x[-1, -1] = 3
    weight = cpu.skip_pack(torch.ones(1, 1, 2, 1))
    y, _, counts = cpu.skip_conv(x, weight, None, None, 1, (2, 1), (2, 1), (0, 0), (1, 1), False, (1, 1), False)
    assert y[-1].item() == 3 and counts.tolist() == [1, 1]
