"""Law: a Pattern goes into and out of compiled and exported code, and its contents are not a reason to recompile."""

import copy
import io

import pytest
import torch
import torch.utils._pytree as pytree

from gossamer.pattern import Pattern, block_diagonal
from gossamer.testing import assert_no_recompile, assert_same_bits, case

C = case("ragged")
EVERY = C.grid[0] * C.grid[1]


def mask_of(p):
    return p.to_mask().sum() * p.capacity + p.row_offsets()[-1]


@pytest.fixture(autouse=True)
def forget_compiled_code():
    torch.compiler.reset()


@pytest.mark.parametrize("form", ["offsets", "fan-in"])
def test_a_new_pattern_of_the_same_shape_does_not_recompile(form):
    def fresh(seed):
        if form == "fan-in":
            return Pattern.from_topk(torch.rand(8, 6, generator=torch.Generator().manual_seed(seed)), 2)
        return Pattern.from_mask(C.mask(seed), C.tile, capacity=EVERY)

    compiled = torch.compile(mask_of, fullgraph=True, backend="aot_eager")
    p, q = fresh(0), fresh(1)
    assert not p.equals(q)
    assert compiled(p) == mask_of(p)
    with assert_no_recompile():
        assert compiled(q) == mask_of(q)
        p.copy_(q)
        assert compiled(p) == mask_of(q)


def test_the_recompile_counter_counts():
    compiled = torch.compile(mask_of, fullgraph=True, backend="aot_eager")
    compiled(Pattern.from_mask(C.mask(), C.tile, capacity=EVERY))
    with pytest.raises(AssertionError, match="1 graphs were compiled"), assert_no_recompile():
        compiled(Pattern.from_mask(C.mask(), (4, 4)))


BUILD = {
    "from_mask": lambda x: Pattern.from_mask(x > 0, (2, 3), capacity=50),
    "from_dense": lambda x: Pattern.from_dense(x.relu(), (2, 3), capacity=7, overflow="error"),
    "from_ids": lambda x: Pattern.from_ids(x.argsort(dim=1)[:, :2], 12),
    "from_tile_mask": lambda x: Pattern.from_tile_mask(x > 0, (2, 3), capacity=100),
    "block_diagonal": lambda x: block_diagonal([Pattern.from_topk(x, 3), Pattern.from_topk(-x, 3)], capacity=90),
    "from_topk": lambda x: Pattern.from_topk(x, 3),
    "full": lambda x: Pattern.full((5, 7), (2, 2)),
    "transpose": lambda x: Pattern.from_mask(x > 0, capacity=120).transpose(),
    "union": lambda x: Pattern.from_topk(x, 3).union(Pattern.from_topk(-x, 3)),
    "intersection": lambda x: Pattern.from_topk(x, 9).intersection(Pattern.from_topk(-x, 9)),
    "difference": lambda x: Pattern.from_topk(x, 9).difference(Pattern.from_topk(-x, 9)),
    "with_capacity": lambda x: Pattern.from_topk(x, 3).with_capacity(40),
}


@pytest.mark.parametrize("name", BUILD)
def test_builders_compile_whole(name):
    x = torch.randn(10, 12)
    x[4:] = 0  # few enough tiles for the capacity of 7
    x[:4] -= 10 * (torch.arange(12) > 3)
    build = BUILD[name]
    if name in ("from_topk", "from_ids", "union", "intersection", "difference"):
        x = torch.randn(10, 12)
    compiled = torch.compile(build, fullgraph=True, backend="aot_eager")(x)
    expected = build(x)
    assert compiled.equals(expected) and compiled.capacity == expected.capacity
    compiled.validate()


def test_pack_and_unpack_compile_with_gradients():
    p = Pattern.from_mask(C.mask(), C.tile, capacity=EVERY)
    x = torch.randn(C.shape, requires_grad=True)
    out = torch.compile(lambda x, p: p.unpack(p.pack(x)), fullgraph=True, backend="aot_eager")(x, p)
    assert_same_bits(out.detach(), x.detach().where(p.to_mask(), 0))
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert_same_bits(grad, p.to_mask().float())


def test_overflow_inside_compiled_code_is_an_error_too():
    build = torch.compile(lambda m: Pattern.from_mask(m, capacity=3), fullgraph=True, backend="aot_eager")
    assert build(torch.eye(3).bool()).nnz == 3
    with pytest.raises(RuntimeError, match="capacity=3 is too small"):
        build(torch.ones(3, 3).bool())


def test_reading_the_count_inside_compiled_code_is_refused_with_the_reason():
    build = torch.compile(lambda m: Pattern.from_mask(m), fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="must read the number of tiles on the host"):
        build(torch.eye(3).bool())


@pytest.mark.parametrize("strict", [False, True])
def test_export_takes_a_pattern(strict):
    class Packs(torch.nn.Module):
        def forward(self, x, p):
            return p.pack(x)

    x = torch.randn(C.shape)
    p, q = (Pattern.from_mask(C.mask(seed), C.tile, capacity=EVERY) for seed in (0, 1))
    exported = torch.export.export(Packs(), (x, p), strict=strict).module()
    assert_same_bits(exported(x, q), q.pack(x))


def test_as_a_pytree_it_is_its_tensors():
    p = Pattern.from_mask(C.mask(), C.tile)
    leaves, spec = pytree.tree_flatten(p)
    assert len(leaves) == 2 and leaves[0] is p.offsets and leaves[1] is p.indices
    assert pytree.tree_unflatten(leaves, spec).equals(p)
    doubled = pytree.tree_map(lambda t: t.clone(), {"p": p})["p"]
    assert doubled.equals(p) and doubled.indices.data_ptr() != p.indices.data_ptr()
    assert pytree.treespec_loads(pytree.treespec_dumps(spec)) == spec


def saved_and_loaded(p):
    file = io.BytesIO()
    torch.save(p, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("through", [copy.deepcopy, saved_and_loaded])
def test_copies_are_equal_and_apart(through):
    p = Pattern.from_mask(C.mask(), C.tile)
    q = through(p)
    assert q.equals(p) and q.indices.data_ptr() != p.indices.data_ptr()
