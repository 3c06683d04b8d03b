"""Law: a method sees what the optimizer sees: accumulated, clipped, unscaled gradients of steps that really happen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from training_cases import NETWORKS, OPTIMIZERS, SETTINGS, STEPS, build, images, loss, run, train

from gossamer.training import RigL, Static


def masks(sparse: Any) -> dict[str, torch.Tensor]:
    return {name: mask.clone() for name, mask in sparse.masks.items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("method", ["rigl", "snfs", "srigl", "chase"])
def test_four_micro_batches_are_one_batch(method: str) -> None:
    """float64 and sums of the same terms: the masks must be identical."""
    whole = build(method, "momentum", "mlp", dtype=torch.float64)
    parts = build(method, "momentum", "mlp", dtype=torch.float64)
    for t in range(24):
        x, y = images(seed=t, dtype=torch.float64)
        whole[1].zero_grad()
        loss(whole[0], x, y).backward()
        whole[1].step()
        parts[1].zero_grad()
        for i in range(4):
            (loss(parts[0], x[4 * i : 4 * i + 4], y[4 * i : 4 * i + 4]) / 4).backward()
        parts[1].step()
        assert equal(masks(whole[2]), masks(parts[2]))
    assert len(whole[2].history) >= 4


def test_scores_are_clipped_gradients() -> None:
    """Clipping one parameter alone changes which layer of a global ranking wins; scores must follow it."""
    model, opt, sparse = build("chase", "sgd", density=0.05, explore_every=1, channel_sparsity=0.0, extra_density=0.01)
    loss(model, *images()).backward()
    nn.utils.clip_grad_norm_([p for n, p in model.named_parameters() if n != "5.weight"], 1e-9)
    before = masks(sparse)
    opt.step()
    grown = {name: int((mask & ~before[name]).sum()) for name, mask in sparse.masks.items()}
    assert grown["5.weight"] > 0 and grown["1.weight"] == grown["3.weight"] == 0


@pytest.mark.parametrize("method", SETTINGS)
def test_bfloat16_autocast(method: str) -> None:
    model, opt, sparse = build(method, "adamw", "conv")
    for t in range(24):
        opt.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(model, *images(seed=t))
        value.backward()
        opt.step()
    assert all(bool((p[~sparse.masks[n]] == 0).all()) for n, p in model.named_parameters() if n in sparse.masks)
    assert torch.isfinite(value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_parameters_of_other_dtypes(dtype: torch.dtype) -> None:
    model, opt, sparse = build("rigl", "sgd", "mlp", dtype=dtype)
    total = sparse.nnz()
    run(model, opt, 12)
    assert sparse.nnz() == total and len(sparse.history) == 3
    assert sparse.layers[0].scores(model[1].weight).dtype == (
        torch.float64 if dtype == torch.float64 else torch.float32
    )


def overflow(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad[...] = float("inf")


@pytest.mark.parametrize("optimizer", ["momentum", "fused"])
def test_a_step_that_gradscaler_skips_defers_the_update(optimizer: str) -> None:
    """Overflow on the very step of an update: the mask waits for the next step that happens, and is not lost."""
    model, opt, sparse = build("rigl", optimizer, update_every=4)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
    total, happened, skipped = sparse.nnz(), 0, (3, 4, 8)
    for t in range(12):
        opt.zero_grad()
        scaler.scale(loss(model, *images(seed=t))).backward()
        if t in skipped:
            overflow(model)
        before, weights = masks(sparse), [p.detach().clone() for p in model.parameters()]
        scaler.step(opt)
        scaler.update()
        if t in skipped:
            assert equal(before, masks(sparse)) and sparse.step == happened
            assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
        else:
            happened += 1
        assert sparse.nnz() == total and sparse.step == happened
    assert [event["step"] for event in sparse.history] == [4, 8]
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_scaled_gradients_of_a_fused_optimizer_are_unscaled_for_the_scores() -> None:
    """Averages over steps must not mix scales: SNFS with a scale that changes equals SNFS without any."""
    results = []
    for scaled in (False, True):
        model, opt, sparse = build("snfs", "fused")
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        for t in range(10):
            opt.zero_grad()
            scaler.scale(loss(model, *images(seed=t))).backward()
            scaler.step(opt)
            scaler.update(2.0 ** (10 - t) if scaled else None)  # powers of two: the scale itself rounds nothing
        results.append(sparse)
    assert equal(masks(results[0]), masks(results[1]))
    assert all(torch.equal(a, results[1].average[name]) for name, a in results[0].average.items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_raise_and_change_nothing(value: float) -> None:
    model, opt, sparse = build("rigl", update_every=4)
    run(model, opt, 3)
    loss(model, *images()).backward()
    model[3].weight.grad[0, 0] = value
    before, weights = masks(sparse), [p.detach().clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match=r"3\.weight: gradient not finite at the update of step 4"):
        opt.step()
    assert equal(before, masks(sparse)) and sparse.step == 3 and sparse.history == []
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    run(model, opt, 1)  # the update is still due
    assert [event["step"] for event in sparse.history] == [4]


def test_averages_that_are_not_finite_raise_and_leave_the_mask() -> None:
    """Overflow between updates, without GradScaler: found at the next update, by name."""
    for method, options, what in (
        ("snfs", {}, "averaged gradient"),
        ("rigl", {"grad_window": 4}, "gradient of an earlier step"),
    ):
        model, opt, sparse = build(method, "sgd", update_every=4, **options)
        run(model, opt, 1)
        loss(model, *images()).backward()
        hole = (~sparse.masks["3.weight"]).nonzero()[0]
        model[3].weight.grad[tuple(hole)] = float("inf")  # masked: the weights stay finite
        opt.step()
        run(model, opt, 1)
        before = masks(sparse)
        with pytest.raises(RuntimeError, match=rf"3\.weight: {what} not finite at the update of step 4"):
            run(model, opt, 1)
        assert equal(before, masks(sparse)) and sparse.history == []


def test_weights_that_are_not_finite_raise_and_leave_the_mask() -> None:
    model, opt, sparse = build("set", update_every=4)
    run(model, opt, 3)
    before = masks(sparse)
    loss(model, *images()).backward()
    model[3].weight.grad[sparse.masks["3.weight"]] = float("nan")
    with pytest.raises(RuntimeError, match=r"3\.weight: weights not finite"):
        opt.step()
    assert equal(before, masks(sparse))


def test_an_update_waits_for_a_step_that_has_gradients(caplog: pytest.LogCaptureFixture) -> None:
    model, opt, sparse = build("rigl", "sgd", update_every=4)
    for t in range(1, 11):
        opt.zero_grad()
        if t not in (4, 8, 9):
            loss(model, *images()).backward()
        opt.step()
    assert sparse.pending == [] and [event["step"] for event in sparse.history] == [5, 10]
    assert "updates wait" not in caplog.text  # each came before the next was due


def test_methods_without_gradient_scores_do_not_wait() -> None:
    model, opt, sparse = build("set", "sgd", update_every=2)
    for _ in range(4):
        loss(model, *images()).backward()
        model[5].weight.grad = None
        opt.step()
    assert [event["step"] for event in sparse.history] == [2, 4]


def test_closures_see_masked_gradients() -> None:
    plain, closed = build("rigl", "nesterov", "conv"), build("rigl", "nesterov", "conv")
    run(plain[0], plain[1], 10)
    for t in range(10):

        def closure(t: int = t) -> torch.Tensor:
            closed[1].zero_grad()
            value = loss(closed[0], *images(seed=t))
            value.backward()
            return value

        value = closed[1].step(closure)
        assert value > 0
    assert equal(masks(plain[2]), masks(closed[2]))
    assert all(torch.equal(a, b) for a, b in zip(plain[0].parameters(), closed[0].parameters(), strict=True))


@pytest.mark.parametrize("optimizer", ["momentum", "adamw", "fused"])
def test_replace_step_leaves_the_optimizer_out(optimizer: str) -> None:
    model, opt, sparse = build("rigl", optimizer, update_every=4, replace_step=True)
    run(model, opt, 3)
    weights = [p.detach().clone() for p in model.parameters()]
    steps = [s.get("step", torch.tensor(0)).clone() for s in opt.state.values()]
    opt.zero_grad()
    loss(model, *images()).backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    before = masks(sparse)
    opt.step()
    assert not equal(before, masks(sparse)) and sparse.step == 4
    for name, old in zip(dict(model.named_parameters()), weights, strict=True):
        new = model.get_parameter(name)
        kept = before[name] & sparse.masks[name] if name in before else torch.ones_like(old, dtype=torch.bool)
        assert torch.equal(new[kept], old[kept]) and bool((new[~kept] == 0).all())
    assert [s.get("step", torch.tensor(0)) for s in opt.state.values()] == steps
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    run(model, opt, 1)  # and the next step is a step
    assert any(not torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


@pytest.mark.parametrize("init", ["zeros", "gradient", "random"])
def test_grown_weights_start_where_asked(init: str) -> None:
    model, opt, sparse = build("rigl", "momentum", update_every=4, grow_init=init, regrow_dropped=False)
    run(model, opt, 3)
    before = masks(sparse)
    opt.zero_grad()
    loss(model, *images()).backward()
    gradient = model[1].weight.grad.clone()
    opt.step()
    grown = sparse.masks["1.weight"] & ~before["1.weight"]
    value = model[1].weight.detach()[grown]
    assert int(grown.sum()) > 10
    assert bool((opt.state[model[1].weight]["momentum_buffer"][grown] == 0).all())
    if init == "zeros":
        assert bool((value == 0).all())
    elif init == "gradient":
        assert torch.equal(value, -0.05 * gradient[grown])
    else:
        spread = model[1].weight.detach()[sparse.masks["1.weight"] & before["1.weight"]].std()
        assert 0.5 * spread < value.std() < 1.5 * spread


def test_grad_window_scores_the_mean_of_the_last_gradients() -> None:
    """Two opposite gradients in the window cancel, however large: a place that is steadily small wins."""
    model = nn.Linear(4, 1, bias=False)
    opt = torch.optim.SGD(model.parameters(), lr=0.0)
    sparse = RigL(
        model, opt, density=0.25, total_steps=99, update_every=3, grad_window=2, drop_fraction=1.0,
        drop_schedule="constant", regrow_dropped=False,
    )  # fmt: skip
    sparse.masks["weight"].copy_(torch.tensor([[True, False, False, False]]))
    for gradient in ([0.0, 0.0, 0.0, 500.0], [0.0, 100.0, 1.0, 0.0], [0.0, -100.0, 1.0, 0.0]):
        model.weight.grad = torch.tensor([gradient])
        opt.step()
    assert sparse.masks["weight"].tolist() == [[False, False, True, False]]
    assert sparse.gradients.window == {}  # opens again before the next update only
    model.weight.grad = torch.zeros(1, 4)
    opt.step()
    assert sparse.gradients.window == {}


def test_ema_and_swa_copies_are_masked_on_request() -> None:
    model, opt, sparse = build("rigl", network="conv")
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for _ in train(model, opt, 10):
        ema.update_parameters(model)
    weight = ema.module[3].weight
    assert bool((weight[~sparse.masks["3.weight"]] != 0).any())  # averages remember weights that are gone
    kept = weight[sparse.masks["3.weight"]].clone()
    assert sparse.apply_to(ema) is ema
    assert bool((weight[~sparse.masks["3.weight"]] == 0).all()) and torch.equal(kept, weight[sparse.masks["3.weight"]])
    with pytest.raises(ValueError, match="expected shape"):
        sparse.apply_to(NETWORKS["mlp"]())


def test_apply_to_zeroes_the_norms_of_removed_channels() -> None:
    model, opt, sparse = build("chase", network="conv")
    run(model, opt)
    torch.manual_seed(9)
    copied = sparse.apply_to(NETWORKS["conv"]())
    dead = ~sparse.channels()["3"]
    assert bool(dead.any()) and bool((copied[4].weight[dead] == 0).all())
    assert bool((copied[4].weight[~dead] == 1).all())


def test_detach_ends_it() -> None:
    model, opt, sparse = build("rigl")
    run(model, opt, 5)
    sparse.detach()
    run(model, opt, 5)
    assert sparse.step == 5 and bool((model[1].weight[~sparse.masks["1.weight"]] != 0).any())


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    model = NETWORKS["conv"]()
    torch.manual_seed(3)
    NETWORKS["conv"]()
    after = torch.get_rng_state()
    torch.set_rng_state(after)
    opt = OPTIMIZERS["momentum"](model.parameters())
    Static(model, opt, total_steps=9).detach()
    build_state = torch.get_rng_state()
    assert torch.equal(after, build_state) and not torch.equal(state, after)
    model, opt, _ = build("chase", network="conv", grow_init="random")
    before = torch.get_rng_state()
    run(model, opt)
    assert torch.equal(before, torch.get_rng_state())


def test_other_parameters_train_as_without_a_method() -> None:
    """At density 1 a method changes nothing at all, bit for bit."""
    torch.manual_seed(0)
    dense = NETWORKS["residual"]()
    opt = OPTIMIZERS["adamw"](dense.parameters())
    run(dense, opt, 8)
    model, opt, sparse = build("rigl", "adamw", "residual", density=1.0)
    run(model, opt, 8)
    assert sparse.density() == 1.0
    assert all(torch.equal(a, b) for a, b in zip(dense.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("first", [5, 6, 9])
def test_a_window_is_a_mean_over_the_steps_it_saw(first: int) -> None:
    """|w| + |mean gradient| needs the mean itself: an update soon after another one has a shorter window."""
    model, opt, sparse = build("chase", "sgd", grad_window=3, explore_every=4, explore_stop=first / 24)
    seen: list[torch.Tensor] = []
    read: dict[int, torch.Tensor] = {}
    decide = sparse.handle

    def handle(event: str, t: int):
        if event == "explore":
            read[t] = sparse.gradients.now["3.weight"].clone()
        return decide(event, t)

    sparse.handle = handle  # type: ignore[method-assign]
    for t in range(1, 17):
        opt.zero_grad()
        loss(model, *images(seed=t)).backward()
        seen.append(model[3].weight.grad.clone())
        opt.step()
    last = 0
    for t in sorted(read):
        window = seen[max(last, t - 3) : t]
        assert torch.allclose(read[t], torch.stack(window).mean(0), rtol=1e-5, atol=1e-8), t
        last = t
    assert {4, first, 8, 12, 16} <= read.keys() | {16}


@pytest.mark.parametrize("how", ["data", "numpy", "other data"])
@pytest.mark.parametrize("method", ["static", "set", "rigl", "granet", "chase"])
def test_masks_hold_whoever_writes_and_however(method: str, how: str) -> None:
    model, optimizer, sparse = build(method, "momentum", "mlp")
    for t in train(model, optimizer, sparse.total_steps):
        for name, mask in sparse.masks.items():
            assert not bool(model.get_parameter(name)[~mask].any()), f"{name} after step {t}"
        for parameter in model.parameters() if t in (3, sparse.total_steps - 2) else ():
            drawn = torch.randn_like(parameter)
            if how == "data":
                parameter.data.copy_(drawn)
            elif how == "numpy":
                parameter.detach().numpy()[...] = drawn.numpy()
            else:
                parameter.data = drawn


def test_what_was_written_outside_a_mask_does_not_grow_in_a_replaced_step() -> None:
    model, optimizer, sparse = build("rigl", "momentum", "mlp", replace_step=True)
    for t in train(model, optimizer, STEPS):
        if sparse.history and sparse.history[-1]["step"] == t:
            break
        before = masks(sparse)
        for name, mask in before.items():
            model.get_parameter(name).data[~mask] = 1.0
    grown = {name: mask & ~before[name] for name, mask in sparse.masks.items()}
    assert any(bool(new.any()) for new in grown.values())
    assert not any(bool(model.get_parameter(name)[new].any()) for name, new in grown.items())
