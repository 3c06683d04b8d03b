"""Dense products by the fastest engine: every engine's numbers and gradients, who is chosen, and when nobody asks."""

import pytest
import torch
import torch.nn.functional as F

import gossamer as gs
from gossamer.ops import dense
from gossamer.testing.clock import Clock

PRESENT = [name for name, why in dense.engines().items() if why is None]
LAYERS = [name for name in PRESENT if dense.ENGINES[name].run is not None]
EPSILON = torch.finfo(torch.float32).eps


@pytest.fixture(autouse=True)
def small_products_ask(monkeypatch, anew):
    torch.set_num_threads(1)
    monkeypatch.setattr(dense, "LEAST", 0)
    dense.forget()
    yield
    dense.pin(None)
    dense.forget()


@pytest.fixture
def speeds(monkeypatch):
    """Engine -> seconds of each of its products, by a clock that only they move; and the engines in their order."""
    clock, seconds, ran = Clock(), {}, []
    monkeypatch.setattr("gossamer.measure.clock.now", clock)
    for name in LAYERS:

        def run(x, weight, bias, name=name):
            ran.append(name)
            clock.advance(seconds.get(name, 1.0))
            return F.linear(x, weight, bias)

        engine = dense.ENGINES[name]
        monkeypatch.setitem(dense.ENGINES, name, dense.Engine(name, engine.missing, engine.prepare, run, engine.packs))
    return seconds, ran


def operands(m=33, k=65, n=17, transposed=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, bias = torch.randn(m, k, generator=generator), torch.randn(n, generator=generator)
    weight = torch.randn(k, n, generator=generator).t() if transposed else torch.randn(n, k, generator=generator)
    return x, weight, bias


def bound(x, weight, bias=0.0):
    """What k roundings of these numbers can add up to, element by element."""
    sizes = x.abs().double() @ weight.abs().double().t() + torch.as_tensor(bias).abs()
    return (x.shape[1] + 2) * EPSILON * sizes


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(33, 65, 17), (1, 300, 5), (128, 1, 64), (7, 64, 1)])
@pytest.mark.parametrize("name", PRESENT)
def test_every_engine_multiplies(name, shape, transposed):
    x, weight, bias = operands(*shape, transposed)
    run = dense.ENGINES[name].prepare(weight, len(x))
    exact = x.double() @ weight.double().t()
    assert (run(x, None).double() - exact).abs().le(bound(x, weight)).all()
    assert (run(x, bias).double() - exact - bias).abs().le(bound(x, weight, bias)).all()


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_any_order(name):
    dense.pin(name)
    x, weight, bias = (each.requires_grad_() for each in operands())
    dy = torch.randn(33, 17)
    y = dense.linear(x, weight, bias, keep_packed=True)
    dx, dw, db = torch.autograd.grad(y, (x, weight, bias), dy, create_graph=True)
    with torch.no_grad():
        for found, left, right in ((dx, dy, weight.t()), (dw, dy.t(), x.t())):
            exact = left.double() @ right.double().t()
            assert (found.double() - exact).abs().le(bound(left, right)).all()
    torch.testing.assert_close(db, dy.sum(0))
    (second,) = torch.autograd.grad((dx * x.detach()).sum(), weight)  # d/dw of dy w . x
    torch.testing.assert_close(second, dy.t() @ x.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "onednn packed"])
def test_a_weight_written_through_data_is_seen(name):
    dense.pin(name)
    x, weight, _ = operands()
    weight.requires_grad_()
    before = dense.linear(x, weight)
    weight.data.mul_(2.0)
    torch.testing.assert_close(dense.linear(x, weight), 2.0 * before)


def test_a_pack_is_kept_only_where_it_was_asked_for_and_of_one_version():
    x, weight, _ = operands()
    dense.pin("onednn packed")
    held = len(dense._PACKS)
    dense.linear(x, weight)
    assert len(dense._PACKS) == held
    before = dense.linear(x, weight, keep_packed=True)
    assert len(dense._PACKS) == held + 1
    weight *= 2.0
    torch.testing.assert_close(dense.linear(x, weight, keep_packed=True), 2.0 * before)


@pytest.mark.parametrize("fastest", ["torch", "onednn", "gossamer"])
def test_the_fastest_is_chosen_and_another_one_when_that_changes(speeds, fastest):
    seconds, ran = speeds
    x, weight, _ = operands()
    seconds[fastest] = 0.5
    for _ in range(40):
        dense.linear(x, weight)
    del ran[:]
    for _ in range(8):
        dense.linear(x, weight)
    if fastest == "torch":
        assert ran == []  # torch's own operator, called at once
    else:
        assert set(ran) == {fastest}
    assert fastest.replace("torch", "dense") in dense.explain()
    seconds.update({fastest: 3.0, "torch": 1.0})
    for _ in range(400):
        dense.linear(x, weight)
    del ran[:]
    dense.linear(x, weight)
    assert fastest == "torch" or fastest not in ran


@pytest.mark.parametrize(("others", "tried"), [(1.1, range(3, 40)), (50.0, range(1))])
def test_a_settled_product_is_seldom_asked_about_and_others_are_tried_if_not_too_dear(
    speeds, monkeypatch, others, tried
):
    seconds, ran = speeds
    seconds.update(onednn=others, gossamer=others)
    x, weight, _ = operands()
    for _ in range(60):
        dense.linear(x, weight)
    (site,) = dense._sites.values()
    asked, choose = [], site.tuner.choose
    monkeypatch.setattr(site.tuner, "choose", lambda *args: asked.append(1) or choose(*args))
    del ran[:]
    for _ in range(1000):
        dense.linear(x, weight)
    assert 5 < len(asked) < 80
    assert ran.count("gossamer") in tried


def test_lengths_that_hardly_come_again_share_what_was_learnt(speeds, monkeypatch):
    seconds, ran = speeds
    seconds.update(gossamer=0.5)
    monkeypatch.setattr(dense, "_EXACT_SHAPES", 2)
    weight = operands()[1]
    for rows in range(65, 129):
        dense.linear(torch.ones(rows, 65), weight)
    assert len(dense._sites) == 3
    assert set(ran[-8:]) == {"gossamer"}


def test_gradients_choose_for_themselves(speeds):
    seconds, ran = speeds
    seconds.update(gossamer=0.5)
    x, weight, bias = (each.requires_grad_() for each in operands())
    for _ in range(40):
        dense.linear(x, weight, bias).sum().backward()
    del ran[:]
    dense.linear(x, weight, bias).sum().backward()
    assert ran == ["gossamer"] * 3


def test_nobody_is_asked_where_torchs_own_must_run(speeds):
    seconds, ran = speeds
    seconds.update(gossamer=0.5)
    x, weight, _ = operands()
    assert torch.equal(torch.func.vmap(lambda row: dense.linear(row[None], weight))(x)[:, 0], x @ weight.t())
    torch.func.grad(lambda w: dense.linear(x, w).sum())(weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert dense.linear(x, weight).dtype == torch.bfloat16
    dense.linear(x.double(), weight.double())
    torch.use_deterministic_algorithms(True)
    dense.linear(x, weight)
    gs.ops.matmul(x, weight.t())
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("medium")
    dense.linear(x, weight)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.fp32_precision = "none"
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    dense.linear(x, weight)
    torch.backends.mkldnn.matmul.fp32_precision = "none"
    compiled = torch.compile(lambda x, w: dense.linear(x, w), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, weight), x @ weight.t())
    traced = torch.jit.trace(lambda x, w: dense.linear(x, w), (x, weight), check_trace=False)
    assert "aten::linear" in str(traced.graph)
    assert ran == []


def test_checkpointing_compares_what_torchs_own_saves(speeds):
    seconds, ran = speeds
    seconds.update(gossamer=0.5)
    x, weight, _ = operands()
    weight.requires_grad_()
    y = torch.utils.checkpoint.checkpoint(lambda x: dense.linear(x, weight), x, use_reentrant=False)
    y.sum().backward()
    assert ran == []
    torch.testing.assert_close(weight.grad, torch.ones(17, 33) @ x)


def test_matmul_and_the_skipping_layer_use_the_engine():
    dense.pin("gossamer")
    x, weight, bias = operands(256, 256, 256)
    own = dense.ENGINES["gossamer"].prepare(weight, 256)
    assert torch.equal(gs.ops.matmul(x, weight.t()), own(x, None))
    layer = gs.nn.Linear(256, 256)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
        for _ in range(30):
            y = layer(x)
    assert "forward: dense" in layer.site.explain()
    assert torch.equal(y, own(x, bias))
    found, terms = gs.ops.matmul(x.view(2, 128, 256), weight.t()), x.abs() @ weight.abs().t()
    # Two orders of adding 256 products, of which each may be off by its share of the sum of what is added.
    assert ((found.view(256, 256) - x @ weight.t()).abs() <= 256 * 2.0**-23 * terms).all()


@pytest.mark.parametrize("name", ["onednn", "gossamer"])
def test_shapes_that_do_not_fit_are_refused_as_torch_does(name):
    dense.pin(name)
    x, weight, bias = operands()
    for wrong in ((x, weight.t(), None), (x, weight, bias[:-1])):
        with pytest.raises(RuntimeError) as expected:
            F.linear(*wrong)
        with pytest.raises(RuntimeError) as found:
            dense.linear(*wrong)
        assert str(found.value) == str(expected.value)


def test_infinity_times_zero_is_no_number_in_every_engine():
    x, weight, _ = operands()
    x[3], weight[5, 0] = 0.0, torch.inf
    for name in PRESENT:
        assert dense.ENGINES[name].prepare(weight, 33)(x, None)[3, 5].isnan(), name


def test_an_engine_that_is_not_there_cannot_be_pinned(monkeypatch):
    with pytest.raises(ValueError, match=r"name must be one of .*'torch'.* got 'cublas'"):
        dense.pin("cublas")
    engine = dense.ENGINES["onednn"]
    gone = dense.Engine("onednn", lambda: "torch 2.0 has no operator", engine.prepare, engine.run)
    monkeypatch.setitem(dense.ENGINES, "onednn", gone)
    with pytest.raises(RuntimeError, match=r"'onednn' cannot be pinned: torch 2\.0 has no operator"):
        dense.pin("onednn")
    x, weight, _ = operands()
    dense.linear(x, weight)
    assert "onednn " not in dense.explain()
