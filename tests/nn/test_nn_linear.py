"""Law: a BlockSparseLinear is the nn.Linear with its weight, whatever happens to its pattern."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import gossamer as gs
from gossamer.nn import BlockSparseLinear, remapped
from gossamer.nn.block_sparse.slot_remapping import slot_sources
from gossamer.pattern.build import tile_areas, tile_means
from gossamer.testing import assert_no_recompile, assert_within, gamma

D = torch.float64
SHAPES = [  # in, out, block, density: whole, ragged, elements, rectangles, one tile larger than the matrix, dense
    (64, 96, 16, 0.3), (70, 50, (8, 16), 0.4), (33, 17, 4, 0.5), (20, 30, 1, 0.2), (24, 40, (1, 8), 0.3),
    (40, 24, (32, 1), 0.5), (7, 5, 16, 1.0), (48, 48, 16, 1.0), (1, 1, 1, 1.0),
]  # fmt: skip


def of_count(layer: BlockSparseLinear, count: int, seed: int) -> gs.Pattern:
    grid = layer.pattern.grid
    chosen = torch.randperm(math.prod(grid), generator=torch.Generator().manual_seed(seed))[:count]
    mask = torch.zeros(math.prod(grid), dtype=torch.bool).index_fill_(0, chosen, True)
    return gs.Pattern.from_tile_mask(mask.view(grid), layer.tile, shape=layer.shape)


def through_a_file(state: dict[str, Tensor]) -> dict[str, Tensor]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize("mode", ["dynamic", "static"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("wide", "high", "block", "density"), SHAPES)
def test_it_is_the_linear_with_its_weight(wide: int, high: int, block, density: float, bias: bool, mode: str) -> None:
    layer = BlockSparseLinear(wide, high, bias, block=block, density=density, mode=mode, dtype=D)
    dense = layer.to_linear()
    assert torch.equal(dense.weight, layer.to_dense())
    x = torch.randn(2, 7, wide, dtype=D, requires_grad=True)
    z = x.detach().clone().requires_grad_()
    y, expected = layer(x), dense(z)
    dy = torch.randn_like(y)
    y.backward(dy)
    expected.backward(dy)
    terms = max(wide, high, 14) + 2  # in any order; the dense side rounds too, hence twice
    size = z.detach().abs() @ dense.weight.detach().abs().t() + (dense.bias.detach().abs() if bias else 0)
    assert_within(y, expected, 2 * gamma(terms, D) * size)
    assert_within(x.grad, z.grad, 2 * gamma(terms, D) * (dy.abs() @ dense.weight.detach().abs()))
    flat_dy, flat_x = dy.flatten(0, 1).abs(), x.detach().flatten(0, 1).abs()
    in_tiles = layer.pattern.pack(dense.weight.grad), layer.pattern.pack(flat_dy.t() @ flat_x)
    assert_within(layer.values.grad, in_tiles[0], 2 * gamma(terms, D) * in_tiles[1])
    assert bool((layer.values.grad[~layer.pattern.value_mask()] == 0).all())
    if bias:
        assert_within(layer.bias.grad, dense.bias.grad, 2 * gamma(terms, D) * flat_dy.sum(0))


@pytest.mark.parametrize("shape", [(6,), (0, 6), (3, 6), (2, 0, 6), (2, 3, 4, 6)])
def test_leading_axes_are_those_of_nn_linear(shape: tuple[int, ...]) -> None:
    layer = BlockSparseLinear(6, 8, block=2, density=0.5)
    x = torch.randn(shape)
    assert layer(x).shape == layer.to_linear()(x).shape
    torch.testing.assert_close(layer(x), layer.to_linear()(x))  # six products of numbers around one


def test_inputs_in_any_layout() -> None:
    layer = BlockSparseLinear(12, 8, block=4, density=0.7, dtype=D)
    x = torch.randn(12, 10, dtype=D)
    for view in (x.t(), x.t()[::2], torch.randn(5, 24, dtype=D)[:, ::2], torch.randn(12, dtype=D).expand(4, 12)):
        torch.testing.assert_close(layer(view), layer.to_linear()(view), rtol=1e-12, atol=1e-13)


def test_first_values_have_the_scale_of_the_fan_in_that_is_there() -> None:
    layer = BlockSparseLinear(512, 512, block=16, density=0.25, seed=0)
    bound = 1 / math.sqrt(512 * layer.density)
    assert bound == pytest.approx(1 / math.sqrt(128))
    for tensor in (layer.values, layer.bias):
        assert float(tensor.detach().abs().max()) <= bound
    # the standard deviation of n uniform numbers is off by about bound / sqrt(3) / sqrt(n) * 0.45; n = 65536
    assert float(layer.values.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.01)
    y = layer(torch.randn(256, 512))
    dense = nn.Linear(512, 512)(torch.randn(256, 512))
    assert float((y.std() / dense.std()).detach()) == pytest.approx(1, rel=0.05)


def test_a_seed_fixes_pattern_and_values() -> None:
    torch.manual_seed(1)
    a = BlockSparseLinear(40, 40, block=8, density=0.3, seed=5)
    torch.manual_seed(2)
    b, c = (BlockSparseLinear(40, 40, block=8, density=0.3, seed=seed) for seed in (5, 6))
    assert a.pattern.equals(b.pattern) and torch.equal(a.values, b.values) and torch.equal(a.bias, b.bias)
    assert not a.pattern.equals(c.pattern)
    torch.manual_seed(1)
    d = BlockSparseLinear(40, 40, block=8, density=0.3)
    torch.manual_seed(1)
    assert torch.equal(d.values, BlockSparseLinear(40, 40, block=8, density=0.3).values)


@pytest.mark.parametrize(("wide", "high", "block", "density"), SHAPES)
def test_from_dense_keeps_the_largest_tiles(wide: int, high: int, block, density: float) -> None:
    linear = nn.Linear(wide, high, dtype=D)
    layer = BlockSparseLinear.from_dense(linear, density=density, block=block)
    means = tile_means(linear.weight.detach().abs(), layer.tile)
    kept = layer.pattern.to_tile_mask()
    assert int(kept.sum()) == round(density * kept.numel())
    if not bool(kept.all()):
        assert float(means[kept].min()) >= float(means[~kept].max())
    assert torch.equal(layer.to_dense(), linear.weight * layer.pattern.to_mask())
    assert torch.equal(layer.bias, linear.bias)


def test_from_dense_finds_the_tiles_of_a_sparse_weight() -> None:
    linear = nn.Linear(32, 16, bias=False)
    with torch.no_grad():
        linear.weight.mul_(torch.rand(4, 8).gt(0.5).repeat_interleave(4, 0).repeat_interleave(4, 1))
    layer = BlockSparseLinear.from_dense(linear, block=4)
    assert torch.equal(layer.to_dense(), linear.weight) and layer.density < 1
    with pytest.raises(ValueError, match="density or pattern, not both"):
        BlockSparseLinear.from_dense(linear, density=0.5, pattern=layer.pattern)


def test_means_of_ragged_tiles_are_over_what_is_there() -> None:
    x = torch.arange(35, dtype=D).view(5, 7)
    means, areas = tile_means(x, (2, 3)), tile_areas((5, 7), (2, 3))
    for r in range(3):
        for c in range(3):
            tile = x[2 * r : 2 * r + 2, 3 * c : 3 * c + 3]
            assert means[r, c] == tile.mean() and areas[r, c] == tile.numel()


# ---------------------------------------------------------------- narrow storage


@pytest.mark.parametrize("storage", ["bfloat16", "int8"])
def test_narrow_storage_computes_with_the_rounded_weight(storage: str) -> None:
    layer = BlockSparseLinear(70, 50, block=(8, 16), density=0.4)
    exact = layer.to_dense().detach()
    x = torch.randn(9, 70)
    narrow = copy.deepcopy(layer).store(storage)
    weight = narrow.to_dense()
    worst = (weight - exact).abs()
    if storage == "int8":
        step = layer.values.detach().abs().amax((1, 2)) / 127
        assert bool((layer.pattern.pack(worst).amax((1, 2)) <= step * (0.5 + 1e-5)).all())
    else:
        assert bool((worst <= exact.abs() * 2**-8).all())
    bound = gamma(72, torch.float32) * (x.abs() @ weight.abs().t() + layer.bias.abs())
    assert_within(narrow(x), (x.double() @ weight.double().t() + layer.bias.double()).detach(), bound.detach())
    assert narrow.values.element_size() < 4 and not narrow.values.requires_grad and storage in repr(narrow)
    state = through_a_file(narrow.state_dict())
    other = BlockSparseLinear(70, 50, block=(8, 16), density=0.7, storage=storage)
    other.load_state_dict(state)
    assert torch.equal(other(x), narrow(x))
    with pytest.raises(RuntimeError, match="for inference"):
        narrow.update_pattern(narrow.pattern)
    with pytest.raises(RuntimeError, match="already stored"):
        narrow.store("int8")


def test_from_dense_can_store_at_once() -> None:
    linear = nn.Linear(32, 32)
    layer = BlockSparseLinear.from_dense(linear, density=0.5, block=8, storage="int8")
    assert layer.values.dtype == torch.int8
    x = torch.randn(3, 32, requires_grad=True)
    layer(x).sum().backward()  # the input still gets its gradient
    torch.testing.assert_close(x.grad, layer.to_dense().sum(0).expand(3, 32), rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- changes of pattern


def test_tiles_keep_their_values_and_new_ones_are_zero() -> None:
    layer = BlockSparseLinear(37, 29, block=(4, 8), density=0.5, dtype=D)
    for seed in range(20):
        before, old = layer.to_dense().detach(), layer.pattern.to_mask()
        layer.update_pattern(of_count(layer, layer.capacity - seed % 3, seed))
        now = layer.pattern.to_mask()
        assert torch.equal(layer.to_dense(), torch.where(old & now, before, 0))
        assert bool((layer.values[~layer.pattern.value_mask()] == 0).all())
        with torch.no_grad():
            layer.values.copy_(layer.pattern.pack(torch.randn(29, 37, dtype=D)))


def test_sources_by_brute_force() -> None:
    g = torch.Generator().manual_seed(0)
    for _ in range(50):
        n, m, absent = 5, 6, 12
        old = torch.randperm(absent, generator=g)[:n]
        new = torch.randperm(absent, generator=g)[:m]
        old[-1], new[-1] = absent, absent  # slack
        expected = [old.tolist().index(k) if k in old.tolist() and k != absent else -1 for k in new.tolist()]
        source = slot_sources(old, new, absent)
        assert source.tolist() == expected
        x = torch.randn(n, 2)
        assert torch.equal(remapped(x, source), torch.stack([x[s] if s >= 0 else torch.zeros(2) for s in expected]))


def test_given_values_and_zeros() -> None:
    layer = BlockSparseLinear(10, 6, block=4, density=0.6)
    pattern = of_count(layer, layer.capacity, 3)
    dense = torch.randn(6, 10)
    layer.update_pattern(pattern, values=pattern.pack(dense) + 0)
    assert torch.equal(layer.to_dense(), dense * pattern.to_mask())
    given = torch.full_like(layer.values, 2.0).masked_fill(~pattern.value_mask(), float("nan"))
    layer.update_pattern(pattern, values=given)  # padding is not taken over
    assert torch.equal(layer.values, 2.0 * pattern.value_mask())
    layer.update_pattern(pattern, values="zeros")
    assert not bool(layer.values.any())


def test_a_hundred_patterns_nothing_compiled_nothing_allocated() -> None:
    torch._dynamo.reset()
    layer = BlockSparseLinear(48, 40, block=8, density=0.4, capacity=14)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    held = {name: tensor.data_ptr() for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]}
    x = torch.randn(5, 48)
    assert {"values", "offsets", "indices", "offsets_t", "indices_t", "order"} <= held.keys()
    compiled(x).sum().backward()
    assert counter.frame_count == 1
    with assert_no_recompile():
        for seed in range(100):
            layer.update_pattern(of_count(layer, 1 + seed % 14, seed))
            with torch.no_grad():
                layer.values.copy_(layer.pattern.pack(torch.randn(40, 48)))
            layer.zero_grad()
            y = compiled(x)
            y.sum().backward()
            dense = layer.to_linear()
            torch.testing.assert_close(y, dense(x), rtol=1e-4, atol=1e-5)  # 48 products of numbers around one
            dense(x).sum().backward()
            torch.testing.assert_close(layer.values.grad, layer.pattern.pack(dense.weight.grad), rtol=1e-4, atol=1e-5)
    assert {name: tensor.data_ptr() for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]} == held
    assert counter.frame_count == 1


def test_a_backward_after_a_change_of_pattern_is_refused() -> None:
    layer = BlockSparseLinear(16, 16, block=4, density=0.5)
    y = layer(torch.randn(2, 16))
    layer.update_pattern(of_count(layer, layer.capacity, 1))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_overflow_is_an_error_that_changes_nothing_or_grows() -> None:
    layer = BlockSparseLinear(16, 16, block=4, density=0.5)
    more, before = of_count(layer, 9, 0), copy.deepcopy(layer.state_dict())
    with pytest.raises(RuntimeError, match="capacity"):
        layer.update_pattern(more)
    assert all(torch.equal(a, b) for a, b in zip(layer.state_dict().values(), before.values(), strict=True))
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.randn(3, 16)).sum().backward()
    optimizer.step()
    moments = layer.pattern.unpack(optimizer.state[layer.values]["exp_avg"])
    kept, parameter = layer.pattern.to_mask() & more.to_mask(), layer.values
    layer.update_pattern(more, overflow="grow", optimizer=optimizer)
    assert layer.values is parameter and layer.capacity == 9 and layer.pattern.nnz == 9
    after = layer.pattern.unpack(optimizer.state[layer.values]["exp_avg"])
    assert torch.equal(after, torch.where(kept, moments, 0))
    layer.zero_grad()
    layer(torch.randn(3, 16)).sum().backward()
    optimizer.step()


def test_a_static_layer_refuses() -> None:
    layer = BlockSparseLinear(16, 16, block=4, density=0.5, mode="static")
    with pytest.raises(RuntimeError, match="static layer keeps its pattern"):
        layer.update_pattern(layer.pattern)


def test_a_static_layer_plans_where_a_row_would_hold_a_thread_up(two_threads) -> None:
    """In one crowded row or, seen from the gradient, one crowded column; never for an even pattern."""
    crowded = torch.zeros(16, 16, dtype=torch.bool)
    crowded[4] = True
    even = torch.eye(16, dtype=torch.bool)
    for mask, planned, planned_t in ((crowded, True, False), (crowded.t(), False, True), (even, False, False)):
        pattern = gs.Pattern.from_mask(mask, (4, 4))
        layer = BlockSparseLinear(16, 16, block=4, pattern=pattern, mode="static")
        for work, wanted in ((layer.work, planned), (layer.work_t, planned_t)):
            assert (work is not None) == wanted
            if work is not None:
                covered = [s for row, first, end in work.reshape(-1, 3).tolist() if row >= 0 for s in range(first, end)]
                assert sorted(covered) == list(range(pattern.nnz))
        x = torch.randn(5, 16, requires_grad=True)
        expected = x @ layer.to_dense().t() + layer.bias
        torch.testing.assert_close(layer(x), expected)
        (got,), (dense,) = (torch.autograd.grad(y.square().sum(), x) for y in (layer(x), expected))
        torch.testing.assert_close(got, dense)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


# ---------------------------------------------------------------- states


@pytest.mark.parametrize(("wide", "high", "block", "density"), SHAPES[:5])
@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_state_round_trip(wide: int, high: int, block, density: float, mode: str) -> None:
    layer = BlockSparseLinear(wide, high, block=block, density=density, capacity=None, mode=mode)
    state = through_a_file(layer.state_dict())
    assert list(state) == ["values", "bias", "offsets", "indices"]
    other = BlockSparseLinear(wide, high, block=block, density=1.0, mode=mode)  # other tiles, other capacity
    parameter = other.values
    other.load_state_dict(state)
    x = torch.randn(4, wide)
    x.requires_grad_()
    assert other.values is parameter and torch.equal(other(x), layer(x)) and other.pattern.equals(layer.pattern)
    (a,), (b,) = torch.autograd.grad(other(x).sum(), x), torch.autograd.grad(layer(x).sum(), x)
    assert torch.equal(a, b)  # the transposed index was made anew


def test_a_state_that_does_not_fit_is_refused() -> None:
    layer = BlockSparseLinear(32, 16, block=8, density=0.5)
    before = copy.deepcopy(layer.state_dict())
    for change, message in [
        ({"indices": torch.full_like(before["indices"], 255)}, "not a pattern"),
        ({"offsets": before["offsets"].flip(0)}, "not a pattern"),
        ({"values": torch.zeros(4, 4, 4)}, "size mismatch"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            layer.load_state_dict({**before, **change})
    with pytest.raises(RuntimeError, match=r"Missing key.*indices"):
        layer.load_state_dict({name: value for name, value in before.items() if name != "indices"})
    assert all(torch.equal(a, b) for a, b in zip(layer.state_dict().values(), before.values(), strict=True))


def test_deepcopy_meta_and_dtype() -> None:
    layer = BlockSparseLinear(32, 16, block=8, density=0.5)
    twin = copy.deepcopy(layer)
    twin.update_pattern(of_count(twin, twin.capacity, 9))
    assert not twin.pattern.equals(layer.pattern)
    double = copy.deepcopy(layer).double()
    assert double(torch.randn(2, 32, dtype=D)).dtype == D and double.indices.dtype == torch.uint8
    meta = BlockSparseLinear(32, 16, block=8, density=0.5, device="meta")
    real = meta.to_empty(device="cpu")
    real.load_state_dict(layer.state_dict())
    x = torch.randn(2, 32)
    assert torch.equal(real(x), layer(x)) and "tiles=?" in repr(BlockSparseLinear(8, 8, device="meta", density=1.0))


def test_autocast_gives_what_comes_in_the_dtype_of_the_values() -> None:
    net = nn.Sequential(nn.Linear(16, 16), BlockSparseLinear(16, 16, block=4, density=0.5))
    with torch.autocast("cpu", torch.bfloat16):
        assert net(torch.randn(3, 16)).dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_features": 0}, "in_features must be"),
        ({"out_features": 2.5}, "out_features must be"),
        ({"block": 0}, "block must be"),
        ({"block": (4, -1)}, "block must be"),
        ({"density": 0.0}, r"density must be in \(0, 1\], got 0.0"),
        ({"density": 1.5}, "got 1.5"),
        ({"density": 0.001}, "rounds to 0"),
        ({"capacity": 2}, "capacity=2 is too small: 8 tiles"),
        ({"mode": "frozen"}, "'frozen'"),
        ({"overflow": "drop"}, "'drop'"),
        ({"storage": "int4"}, "'int4'"),
        ({"pattern": gs.Pattern.full((16, 16), (8, 8))}, r"tile \(4, 4\), got"),
        ({"pattern": gs.Pattern.full((8, 16), (4, 4))}, r"shape \(16, 16\)"),
        (
            {"pattern": gs.Pattern(torch.tensor([0, 9, 9, 9, 9]), torch.zeros(9).to(torch.uint16), (16, 16), (4, 4))},
            "indices",
        ),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlockSparseLinear(**{"in_features": 16, "out_features": 16, "block": 4, "density": 0.5, **arguments})


def test_bad_calls_are_named() -> None:
    layer = BlockSparseLinear(16, 8, block=4, density=0.5)
    with pytest.raises(ValueError, match=r"16 features, got shape \(3, 15\)"):
        layer(torch.randn(3, 15))
    with pytest.raises(ValueError, match="pattern must have shape"):
        layer.update_pattern(gs.Pattern.full((16, 8), (4, 4)))
    with pytest.raises(ValueError, match="values must have shape"):
        layer.update_pattern(layer.pattern, values=torch.zeros(1, 4, 4))
