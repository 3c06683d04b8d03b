"""Law: copies of a network that is compacted while it trains lose what it loses, or the wrong ones are refused."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from training_cases import NETWORKS, OPTIMIZERS, SETTINGS, build, images, loss, run

from gossamer.training import METHODS, Chase, RigL

STEPS = 36


def chase(network: str, compact_every: int | None, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer, Chase]:
    return build(
        "chase", "momentum", network, dtype=torch.float64, total_steps=STEPS, channel_sparsity=0.5, scope="all",
        example_inputs=images(dtype=torch.float64)[0], compact_every=compact_every, normalize="group", **options,
    )  # fmt: skip


def step(model: nn.Module, opt: torch.optim.Optimizer, t: int) -> None:
    opt.zero_grad()
    loss(model, *images(seed=t, dtype=torch.float64)).backward()
    opt.step()


EMA = {"use_buffers": True, "multi_avg_fn": get_ema_multi_avg_fn(0.9)}


@pytest.mark.parametrize(("made", "every", "options"), [(0, 1, {}), (0, 7, EMA), (15, 1, EMA)])
def test_an_average_of_a_shrinking_network_is_that_of_the_masked_one(made: int, every: int, options: dict) -> None:
    """Made before the first compaction or between two, updated at every step or after several compactions."""
    means = []
    for compact_every in (None, 2):
        model, opt, sparse = chase("conv", compact_every)
        mean: AveragedModel | None = None
        for t in range(STEPS):
            if t == made:
                mean = AveragedModel(model, **options)
            step(model, opt, t)
            if mean is not None and t % every == 0:
                mean.update_parameters(model)
        assert mean is not None
        sparse.apply_to(mean)
        assert [p.shape for p in mean.module.parameters()] == [p.shape for p in model.parameters()]
        means.append((mean.eval(), sum(p.numel() for p in mean.parameters())))
    (masked, full), (small, few) = means
    x = images(seed=99, dtype=torch.float64)[0]
    assert few < 0.8 * full
    if options:  # running statistics were averaged too
        assert float((masked(x) - small(x)).abs().max()) <= 1e-9 * float(masked(x).abs().max())
    masked.train()
    small.train()
    assert float((masked(x) - small(x)).abs().max()) <= 1e-9 * float(masked(x).abs().max())
    update_bn([images(dtype=torch.float64)[0]], small)


def test_a_copy_that_is_named_loses_channels_at_once_and_its_parameters_stay() -> None:
    model, opt, sparse = chase("conv", 2)
    shadow = sparse.follow(copy.deepcopy(model))
    objects, seen = [id(p) for p in shadow.parameters()], set()
    for t in range(STEPS):
        step(model, opt, t)
        with torch.no_grad():
            for p, q in zip(shadow.parameters(), model.parameters(), strict=True):
                assert p.shape == q.shape
                p.lerp_(q, 0.1)
        seen.add(shadow[0].out_channels)
        assert shadow[0].out_channels == len(shadow[0].weight) == shadow[1].num_features
    assert len(seen) > 2 and [id(p) for p in shadow.parameters()] == objects
    shadow(images(dtype=torch.float64)[0]).sum().backward()


def test_a_copy_is_not_kept_alive() -> None:
    model, opt, sparse = chase("conv", 2)
    shadow = weakref.ref(sparse.follow(copy.deepcopy(model)))
    run(model.float(), opt, 0)
    gc.collect()
    assert shadow() is None and not sparse.followers


def test_copies_of_other_networks_are_refused_and_unchanged() -> None:
    model, opt, sparse = chase("conv", 2)
    other = NETWORKS["residual"]()
    with pytest.raises(ValueError, match=r"copy has nothing at 0\.weight"):
        sparse.follow(other)
    for t in range(STEPS):
        step(model, opt, t)
    with pytest.raises(ValueError, match=r"the copy has no \d\.\w+, which Sequential has"):
        sparse.apply_to(other)
    odd = NETWORKS["conv"]()
    odd[0] = nn.Conv2d(3, 17, 3)
    with pytest.raises(ValueError, match=r"0\.bias of the copy has shape \(17,\), which Sequential never had"):
        AveragedModel(odd).update_parameters(model)
    assert odd[3].weight.shape == (24, 16, 3, 3)
    dense = AveragedModel(other)
    dense.update_parameters(other)  # averages of networks that nobody compacts are as they were


def test_averages_of_wrapped_networks_follow() -> None:
    model, opt, _ = chase("conv", 2)
    wrapped = torch.compile(model, backend="eager")
    mean = AveragedModel(wrapped)
    for t in range(STEPS):
        step(model, opt, t)
        mean.update_parameters(wrapped)
    assert [p.shape for p in mean.parameters()] == [p.shape for p in model.parameters()]


def test_an_average_is_resumed() -> None:
    model, opt, sparse = chase("conv", 2)
    mean = AveragedModel(model)
    for t in range(STEPS // 2):
        step(model, opt, t)
        mean.update_parameters(model)
    saved = [sparse.state_dict(), model.state_dict(), opt.state_dict(), mean.state_dict()]
    model, opt, sparse = chase("conv", 2)
    other = AveragedModel(model)
    sparse.load_state_dict(saved[0])
    sparse.follow(other)
    for target, state in zip((model, opt, other), saved[1:], strict=True):
        target.load_state_dict(state)
    for t in range(STEPS // 2, STEPS):
        step(model, opt, t)
        other.update_parameters(model)
    assert [p.shape for p in other.parameters()] == [p.shape for p in model.parameters()]


# ---------------------------------------------------------------- inference mode


@pytest.mark.parametrize("method", ["static", "rigl", "snfs", "mest", "granet", "srigl", "chase"])
def test_what_is_made_in_inference_mode_serves_training(method: str) -> None:
    options = {"example_inputs": images()[0]} if method in ("srigl", "chase") else {}
    plain = build(method, "adamw", "conv", **options)
    run(*plain[:2])
    model = NETWORKS["conv"]()
    model.load_state_dict(
        {name: x.clone() for name, x in build("static", network="conv", density=1.0)[0].state_dict().items()}
    )
    opt = OPTIMIZERS["adamw"](model.parameters())
    arguments = {"density": 0.3, "total_steps": 24, "init": "random", **SETTINGS[method], **options}
    with torch.inference_mode():
        sparse = METHODS[method](model, opt, **arguments)
        model.eval()(images()[0])
    run(model.train(), opt, 12)
    with torch.inference_mode():
        model.eval()(images()[0])
        saved = sparse.state_dict()
        patterns = sparse.patterns()
        sparse.stats()
        sparse.load_state_dict(saved)
    assert not any(pattern.indices.is_inference() for pattern in patterns.values())
    run(model.train(), opt, 12, first=12)
    assert all(torch.equal(a, b) for a, b in zip(plain[0].parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("method", ["srigl", "chase"])
def test_channels_are_traced_in_the_first_forward_that_can_serve_training(method: str) -> None:
    model, opt, sparse = build(method, "adamw", "conv")
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            model.eval()(images()[0])
        assert (sparse.removed is None) == (mode is torch.inference_mode)
    run(model.train(), opt)
    assert any(not bool(alive.all()) for alive in sparse.channels().values()) or method == "srigl"


def test_copies_brought_in_inference_mode_train_on() -> None:
    model, opt, sparse = chase("conv", 2)
    shadow = copy.deepcopy(model)
    for t in range(STEPS):
        step(model, opt, t)
    with torch.inference_mode():
        sparse.apply_to(shadow)
    shadow(images(dtype=torch.float64)[0]).sum().backward()
    RigL(shadow, torch.optim.SGD(shadow.parameters(), lr=0.1), total_steps=9)
