"""Law: the ops pass opcheck, compile whole through their public functions, and a new pattern compiles nothing."""

import pytest
import torch
from torch.library import opcheck

import gossamer as gs
import gossamer.ops  # defines torch.ops.gossamer
from gossamer.testing import assert_no_recompile, assert_same_bits, assert_same_tiles, case


@pytest.fixture(autouse=True)
def forget_compiled_code():
    torch.compiler.reset()


# The laws of every op check floats, ordered and with room for all; here is what else there is.
@pytest.mark.parametrize("name", ["ragged", "no columns", "last column of uint16", "first width of int32"])
@pytest.mark.parametrize("ordered", [True, False])
def test_opcheck_detect(name, ordered):
    c = case(name)
    for capacity in (0, 3):
        opcheck(torch.ops.gossamer.detect.default, (c.dense(), *c.tile, capacity, ordered))


@pytest.mark.parametrize("name", ["ragged", "no rows"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8], ids=str)
def test_opcheck_gather_and_scatter(name, dtype):
    c = case(name)
    p = gs.Pattern.from_mask(c.mask(), c.tile)
    p = p.with_capacity(p.nnz + 2)
    x = c.dense(dtype)
    opcheck(torch.ops.gossamer.gather.default, (x, p.offsets, p.indices, *c.tile))
    opcheck(torch.ops.gossamer.scatter.default, (p.pack(x), p.offsets, p.indices, *c.shape))


def around(x, pattern):
    values = gs.ops.gather(x, pattern)
    return gs.ops.scatter(values * 2, pattern)


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("backend", [None, "reference", "cpu"])
def test_the_public_functions_compile_whole_with_gradients(compiler, backend):
    c = case("ragged")
    x = c.dense().requires_grad_()

    def step(x):
        p = gs.detect(x, c.tile, capacity=c.grid[0] * c.grid[1] - 1, backend=backend)
        values = gs.ops.gather(x, p, backend=backend)
        return gs.ops.scatter(values * values, p, backend=backend), p

    y, p = torch.compile(step, fullgraph=True, backend=compiler)(x)
    assert_same_tiles(p, c.tiles(), ordered=True)
    assert_same_bits(y.detach(), (x * x).detach())
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert_same_bits(grad, (2 * x).detach())


def test_a_new_pattern_compiles_nothing_and_allocates_no_index():
    c = case("ragged")
    every = c.grid[0] * c.grid[1]
    x = torch.randn(c.shape, requires_grad=True)
    compiled = torch.compile(around, fullgraph=True, backend="aot_eager")
    p, q = (gs.Pattern.from_mask(c.mask(seed), c.tile, capacity=every) for seed in (0, 1))
    compiled(x, p).sum().backward()
    address = p.indices.data_ptr()
    with assert_no_recompile():
        for pattern in (q, p.copy_(q), p.copy_(gs.Pattern.full(c.shape, c.tile))):
            x.grad = None
            y = compiled(x, pattern)
            y.sum().backward()
            assert_same_bits(y.detach(), (2 * x).detach().where(pattern.to_mask(), 0))
            assert_same_bits(x.grad, 2 * pattern.to_mask().float())
    assert p.indices.data_ptr() == address


def test_sizes_can_be_symbolic():
    def detected(x):
        p = gs.detect(x, (4, 4))
        return gs.ops.gather(x, p), p.offsets

    compiled = torch.compile(detected, fullgraph=True, backend="aot_eager", dynamic=True)
    c = case("ragged")
    x = c.dense()
    compiled(x)
    with assert_no_recompile():
        for rows, cols in ((37, 53), (30, 21), (9, 50)):
            part = x[:rows, :cols].contiguous()
            values, offsets = compiled(part)
            p = gs.detect(part, (4, 4))
            assert torch.equal(offsets, p.offsets)
            assert_same_bits(values, gs.ops.gather(part, p))


def test_a_size_read_from_a_tensor_inside_the_graph():
    """An `int` in the schema would refuse the unbacked size; SymInt takes it."""

    def detected(x, n):
        capacity = n.item()
        torch._check(capacity >= 0)
        torch._check(capacity <= 1000)
        return torch.ops.gossamer.detect(x, 8, 16, capacity, True)

    x = case("ragged").dense()
    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        compiled = torch.compile(detected, fullgraph=True, backend="aot_eager")
        offsets, indices = compiled(x, torch.tensor(20))
    p = gs.detect(x, (8, 16), capacity=20)
    assert torch.equal(offsets, p.offsets) and torch.equal(indices, p.indices)


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict):
    class Around(torch.nn.Module):
        def forward(self, x, pattern):
            return around(x, pattern)

    c = case("ragged")
    p, q = (gs.Pattern.from_mask(c.mask(seed), c.tile, capacity=20) for seed in (0, 1))
    x = torch.randn(c.shape)
    exported = torch.export.export(Around(), (x, p), strict=strict).module()
    assert_same_bits(exported(x, q), around(x, q))


def test_overflow_in_compiled_code():
    compiled = torch.compile(lambda x: gs.detect(x, capacity=2), fullgraph=True, backend="aot_eager")
    assert compiled(torch.eye(2)).nnz == 2
    with pytest.raises(RuntimeError, match="capacity=2 is too small"):
        compiled(torch.ones(2, 2))
