"""The laws of the ops on a CUDA device: reference, gradients, no device sync, graph replay, compile.

Never run where there is no GPU; `docs/` says on which device it last passed.
"""

import pytest
import torch

import gossamer as gs
import gossamer.ops  # defines torch.ops.gossamer
from gossamer.testing import (
    assert_no_recompile,
    assert_same_bits,
    assert_same_tiles,
    case,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
orders = pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])


@pytest.fixture
def no_sync():
    """Whatever makes the host wait for the device raises."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("backend", ["triton", "reference"])
@orders
def test_large_and_sparse(backend, ordered):
    """Rows of many programs; empty, crowded and ordinary rows side by side."""
    generator = torch.Generator().manual_seed(0)
    keep = torch.rand(2000, 30011, generator=generator) < 0.01
    x = torch.randn(2000, 30011, generator=generator).where(keep, 0)  # not a product: -0.0 would be lost on the way
    x[7] = 0
    x[9] = 1
    for tile in ((1, 1), (1, 32), (32, 1), (16, 16), (3, 5)):
        expected = gs.detect(x, tile, backend="reference")
        p = gs.detect(x.cuda(), tile, ordered=ordered, backend=backend)
        assert p.to("cpu").equals(expected)
        values = gs.ops.gather(x.cuda(), p, backend=backend)
        assert_same_bits(gs.ops.scatter(values, p, backend=backend).cpu(), x)


@pytest.mark.parametrize("name", ["ragged, odd tile", "empty rows", "no tiles"])
def test_gradcheck_twice(name):
    c = case(name)
    p = gs.Pattern.from_mask(c.mask(), c.tile).to("cuda")
    x = torch.randn(c.shape, dtype=torch.float64, device="cuda", requires_grad=True)
    values = torch.randn(p.capacity, *c.tile, dtype=torch.float64, device="cuda", requires_grad=True)
    for op, operand in ((gs.ops.gather, x), (gs.ops.scatter, values)):
        assert torch.autograd.gradcheck(lambda t, op=op: op(t, p), (operand,))
        assert torch.autograd.gradgradcheck(lambda t, op=op: op(t, p), (operand,))


@pytest.mark.parametrize("tile", [(1, 1), (8, 16), (64, 64)], ids=str)
def test_runs_agree_bit_for_bit(tile):
    x = (torch.randn(3000, 2000) * (torch.rand(3000, 2000) < 0.02)).cuda()
    first = gs.detect(x, tile)
    values = gs.ops.gather(x, first)
    for _ in range(5):
        again = gs.detect(x, tile)
        assert_same_bits(again.offsets, first.offsets)
        assert_same_bits(again.indices, first.indices)
        assert_same_bits(gs.ops.gather(x, again), values)
        assert gs.detect(x, tile, ordered=False).equals(first)


@orders
def test_no_device_sync(no_sync, ordered):
    c = case("ragged")
    torch.cuda.set_sync_debug_mode("default")
    x = c.dense().cuda().requires_grad_()
    gs.ops.scatter(gs.ops.gather(x, gs.detect(x, c.tile, ordered=ordered)), gs.detect(x, c.tile)).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    p = gs.detect(x, c.tile, ordered=ordered, capacity=19)
    values = gs.ops.gather(x, p)
    gs.ops.scatter(values, p).sum().backward()
    fan_in = gs.Pattern.from_topk(x.detach(), 5)
    gs.ops.gather(x.detach(), fan_in)
    gs.Pattern.from_mask(x.detach() != 0, c.tile, capacity=20).transpose().union(
        gs.Pattern.full((53, 37), (16, 8), device="cuda")
    )
    gs.Pattern.from_ids(torch.zeros(9, dtype=torch.int64, device="cuda"), 4)
    p.copy_(p.with_capacity(20))


@orders
def test_graph_replay_follows_the_data(ordered):
    c = case("ragged")
    x = c.dense().cuda()

    def step():
        p = gs.detect(x, c.tile, ordered=ordered, capacity=c.grid[0] * c.grid[1])
        values = gs.ops.gather(x, p)
        return p, values, gs.ops.scatter(values * 2, p)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        p, values, doubled = step()
    for seed in (1, 2, 3):
        x.copy_(c.dense(seed=seed))
        graph.replay()
        assert_same_tiles(p.to("cpu"), c.tiles(seed), ordered=ordered)
        assert_same_bits(values, gs.ops.gather(x, p))
        assert_same_bits(doubled.cpu(), 2 * c.dense(seed=seed))


def test_compiles_whole_and_a_new_pattern_compiles_nothing():
    torch.compiler.reset()
    c = case("ragged")
    every = c.grid[0] * c.grid[1]
    x = torch.randn(c.shape, device="cuda", requires_grad=True)

    def around(x, pattern):
        return gs.ops.scatter(gs.ops.gather(x, pattern) * 2, pattern)

    compiled = torch.compile(around, fullgraph=True)
    p, q = (gs.Pattern.from_mask(c.mask(seed), c.tile, capacity=every).to("cuda") for seed in (0, 1))
    compiled(x, p).sum().backward()
    with assert_no_recompile():
        for pattern in (q, p.copy_(q)):
            x.grad = None
            y = compiled(x, pattern)
            y.sum().backward()
            assert_same_bits(y.detach(), (2 * x).detach().where(pattern.to_mask(), 0))
            assert_same_bits(x.grad, 2 * pattern.to_mask().float())


@pytest.mark.parametrize("ordered", [True, False])
def test_opcheck(ordered):
    c = case("ragged")
    x = c.dense().cuda()
    p = gs.detect(x, c.tile)
    torch.library.opcheck(torch.ops.gossamer.gather.default, (x, p.offsets, p.indices, *c.tile))
    values = gs.ops.gather(x, p)
    torch.library.opcheck(torch.ops.gossamer.scatter.default, (values, p.offsets, p.indices, *c.shape))
    if ordered:  # the unordered index may differ between two calls, which opcheck compares
        torch.library.opcheck(torch.ops.gossamer.detect.default, (x, *c.tile, 20, True))


def test_the_last_gpu_need_not_be_the_current_one():
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    c = case("ragged")
    x = c.dense().to(device)
    p = gs.detect(x, c.tile)
    assert p.device == device
    assert_same_bits(gs.ops.scatter(gs.ops.gather(x, p), p), x)


def test_errors_name_the_device():
    c = case("ragged")
    x = c.dense()
    p = gs.detect(x.cuda(), c.tile)
    with pytest.raises(ValueError, match=r"x must be on the pattern's device cuda:0, got cpu"):
        gs.ops.gather(x, p)
    with pytest.raises(ValueError, match=r"backend='cpu' needs x on cpu, got x on cuda:0"):
        gs.ops.gather(x.cuda(), p, backend="cpu")


def test_addresses_beyond_32_bits():
    """A matrix of more than 2^31 elements, one byte each: the last row is past what an int can address."""
    rows, cols = 70000, 32768
    x = torch.zeros(rows, cols, dtype=torch.int8, device="cuda")
    x[-1, -1] = 5
    x[35000, 17] = 3
    p = gs.detect(x, (1, 64), capacity=10)
    assert p.offsets[35000].item() == 0 and p.offsets[35001].item() == 1 and p.nnz == 2
    assert p.indices[:2].cpu().tolist() == [0, 511]
    values = gs.ops.gather(x, p)
    assert values[0, 0, 17].item() == 3 and values[1, 0, 63].item() == 5 and values.sum().item() == 8
    assert torch.equal(gs.ops.scatter(values, p), x)


def test_overflow_is_an_error_on_the_device():
    """The assertion is queued, not waited for, and ends the process's CUDA context: hence a child process."""
    import subprocess
    import sys

    code = """
import torch, gossamer as gs
gs.detect(torch.ones(4, 4, device="cuda"), capacity=3)
torch.cuda.synchronize()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0 and "capacity=3 is too small" in done.stdout + done.stderr
