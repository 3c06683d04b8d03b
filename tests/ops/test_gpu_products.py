"""The laws of the products on a CUDA device: reference, error bounds, no device sync, graph replay, bits.

Never run where there is no GPU; `docs/gpu-status.md` says on which device it last passed.
"""

import pytest
import torch

import gossamer as gs
import gossamer.ops  # defines torch.ops.gossamer
from gossamer.kernels.reference.detect import detect
from gossamer.kernels.reference.scatter import scatter
from gossamer.ops.registration import MODULES, load_kernel
from gossamer.testing import Case, assert_same_bits, assert_within, case, gamma

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = "cuda"


def triton(op):
    return load_kernel("triton", MODULES[op], op)


def here(*args):
    return [arg.to(DEVICE) if isinstance(arg, torch.Tensor) else arg for arg in args]


def integers(*shape, dtype=torch.float32, seed=0):
    """Sums of up to 256 products of these are exact in every dtype."""
    return torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def index(c, capacity=None, seed=0):
    """(offsets, indices) with slack that must never be used as addresses."""
    tiles = int(c.tiles(seed).sum())
    offsets, indices = detect(c.dense(seed=seed), *c.tile, capacity or tiles + 3, True)
    indices[tiles:] = torch.iinfo(indices.dtype).max
    return offsets, indices


def test_float32_is_exact_unless_torch_is_told_otherwise():
    c = case("blocks")
    offsets, indices = index(c)
    values, b = torch.randn(len(indices), *c.tile), torch.randn(c.cols, 64)
    dense = scatter(values, offsets, indices, *c.shape).double()
    exact, size = dense @ b.double(), dense.abs() @ b.double().abs()
    args = here(values, offsets, indices, None, None, b, c.rows, False, False, None)
    assert_within(triton("dsd")(*args).cpu(), exact, gamma(c.cols, torch.float32) * size)
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        short = triton("dsd")(*args).cpu()
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert_within(short, exact, 2.0**-9 * size)  # each factor cut to 11 bits
    assert not torch.equal(short.double(), exact.float().double())


def everything(tensors, c, capacity):
    """Every product, on tensors that keep their addresses."""
    a, b, dc, x, weights, experts = tensors
    offsets, indices = triton("detect")(a, *c.tile, capacity, True)
    values = triton("gather")(a, offsets, indices, *c.tile)
    *transposed, order = triton("transpose")(offsets, indices, c.grid[1])
    sorted_, source = experts.sort(stable=True)
    groups = torch.searchsorted(sorted_, torch.arange(weights.shape[0] + 1, device=a.device))
    y = triton("grouped_mm")(x, source, source, groups, weights, False, len(x))
    return (
        triton("dsd")(values, offsets, indices, None, None, b, c.rows, False, False, None),
        triton("dsd")(values, *transposed, order, None, dc, c.cols, True, True, None),
        triton("sdd")(dc, b.t(), offsets, indices, *c.tile),
        triton("gather_mm")(a, offsets, indices, *c.tile, b[None], False),
        y,
        triton("grouped_outer")(x, y, source, source, groups),
    )


def some(c, seed, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(seed)
    experts = torch.randint(0, 1 + seed % 6, (300,), generator=generator)
    return here(
        c.dense(dtype, seed),
        integers(c.cols, 48, dtype=dtype, seed=seed), integers(c.rows, 48, dtype=dtype, seed=seed),
        integers(300, 64, dtype=dtype, seed=seed), integers(6, 64, 40, dtype=dtype, seed=seed), experts,
    )  # fmt: skip


CHANGING = pytest.mark.parametrize("name", ["blocks", "large tiles", "elements", "tall tiles"])


@CHANGING
def test_no_device_sync(name):
    c = case(name)
    tensors = some(c, 0)
    everything(tensors, c, 200)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        everything(tensors, c, 200)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@CHANGING
def test_graph_replay_follows_twenty_patterns(name):
    c = case(name)
    capacity = c.grid[0] * c.grid[1]
    tensors = some(c, 0)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        everything(tensors, c, capacity)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = everything(tensors, c, capacity)
    for seed in range(20):
        fresh = some(c, seed)
        for tensor, content in zip(tensors, fresh, strict=True):
            tensor.copy_(content)
        graph.replay()
        for got, expected in zip(results, everything(fresh, c, capacity), strict=True):
            assert_same_bits(got, expected)
        dense = (fresh[0].double() @ fresh[1].double()).bfloat16()
        assert_same_bits(results[0] + 0, dense + 0)
        assert_same_bits(results[3] + 0, dense + 0)


def test_runs_agree_bit_for_bit():
    c = Case("", 1000, 800, (16, 16), 0.2)
    tensors = [x.float().normal_() if x.is_floating_point() and i else x for i, x in enumerate(some(c, 3))]
    tensors[0] = tensors[0].float()
    first = everything(tensors, c, 3200)
    for _ in range(20):
        for got, expected in zip(everything(tensors, c, 3200), first, strict=True):
            assert_same_bits(got, expected)


def test_addresses_beyond_32_bits():
    """A result of more than 2^31 elements, and a b with a row stride that makes its addresses so."""
    rows, n, dtype = 70016, 32768, torch.bfloat16
    offsets = torch.zeros(rows // 64 + 1, dtype=torch.int64)
    offsets[-1] = 1
    index_, values = torch.tensor([1], dtype=torch.uint16), torch.ones(1, 64, 64, dtype=dtype)
    b = torch.zeros(n, 70016, dtype=dtype, device=DEVICE).t()[:128]
    b[64:, -1] = 2
    c = triton("dsd")(*here(values, offsets, index_, None, None, b, rows, False, False, None))
    assert c[-64:, -1].eq(128).all() and c.count_nonzero().item() == 64


def ops(dtype):
    """(name, function of the operands, operands that want gradients)"""
    c = case("ragged, odd tile")
    p = gs.Pattern.from_mask(c.mask(), c.tile)
    p = p.with_capacity(p.nnz + 2).to(DEVICE)
    rows = Case("", 12, 7, (1, 7), 0.5)
    lines, bands = (gs.Pattern.from_mask(rows.mask(), tile, capacity=40).to(DEVICE) for tile in ((1, 7), (4, 1)))
    experts = torch.tensor([[0, 2], [2, 2], [-1, 0], [2, 1]], device=DEVICE)

    def wants(*shape):
        return torch.randn(*shape, dtype=dtype, device=DEVICE, requires_grad=True)

    values, tall, wide = wants(p.capacity, *c.tile), wants(c.rows, 3), wants(c.cols, 3)
    return [
        ("dsd", lambda v, b: gs.ops.dsd(v, p, b), (values, wide)),
        ("dds", lambda a, v: gs.ops.dds(a.t(), v, p), (tall, values)),
        ("sdd", lambda a, b: gs.ops.sdd(a, b.t(), p), (tall, wide)),
        ("rows", lambda a, b: gs.ops.matmul(a, b, index=lines), (wants(12, 7), wants(7, 3))),
        ("bands", lambda a, b: gs.ops.matmul(a, b, index=bands), (wants(12, 7), wants(7, 3))),
        ("grouped", lambda x, w: gs.ops.grouped_matmul(x, w, experts), (wants(4, 5), wants(3, 5, 2))),
    ]


NAMES = ("dsd", "dds", "sdd", "rows", "bands", "grouped")


@pytest.mark.parametrize("which", range(len(NAMES)), ids=NAMES)
def test_gradcheck_twice(which):
    _, function, operands = ops(torch.float64)[which]
    assert torch.autograd.gradcheck(function, operands)
    assert torch.autograd.gradgradcheck(function, operands)


@pytest.mark.parametrize("which", range(len(NAMES)), ids=NAMES)
def test_forward_and_backward_without_a_device_sync(which):
    _, function, operands = ops(torch.float32)[which]
    function(*operands).sum().backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        function(*operands).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_opcheck():
    c = case("ragged")
    offsets, indices = index(c)
    indices[-3:] = 0
    a, b = integers(c.rows, 9), integers(9, c.cols)
    args = here(a, b, offsets, indices)
    op = torch.ops.gossamer
    torch.library.opcheck(op.sdd.default, (*args, *c.tile))
    torch.library.opcheck(op.transpose.default, (*args[2:], c.grid[1]))
    values = op.sdd(*args, *c.tile)
    wide = here(integers(c.cols, 5))[0]
    torch.library.opcheck(op.dsd.default, (values, *args[2:], None, None, wide, c.rows, False, True, None))
    dense = here(c.dense())[0]
    torch.library.opcheck(op.gather_mm.default, (dense, *args[2:], *c.tile, wide[None], False))
    ends, x, weights = torch.tensor([0, 3, 9]), integers(9, 4), integers(2, 4, 5)
    torch.library.opcheck(op.grouped_mm.default, (*here(x, None, None, ends, weights), False, 11))
    torch.library.opcheck(op.grouped_outer.default, tuple(here(x, x, None, None, ends)))


def test_every_first_choice_of_block_sizes_compiled():
    """Runs last in this file: a choice that did not compile is slower than meant, though right."""
    from gossamer.kernels.triton import launch

    assert not launch._refused
