"""Law: after every optimizer step, masked weights and their optimizer states are exactly zero."""

from __future__ import annotations

import copy

import pytest
import torch
from training_cases import NETWORKS, OPTIMIZERS, SETTINGS, build, images, loss, run, train

from gossamer.training import RigL, Static
from gossamer.training.optimizer_state import keeps_zeros


def leaks(optimizer, method) -> list[str]:
    """Names of masked tensors that are not exactly zero."""
    found = []
    for name, tensor in method.tensors.items():
        every = {"weight": tensor.parameter.detach(), "grad": tensor.parameter.grad}
        every |= {k: v for k, v in optimizer.state.get(tensor.parameter, {}).items() if v.shape == tensor.mask.shape}
        found += [f"{name} {k}" for k, v in every.items() if v is not None and bool((v[~tensor.mask] != 0).any())]
    return found


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", ["rigl", "chase"])  # rigl is static until its first update
def test_no_leak_per_optimizer(method: str, optimizer: str) -> None:
    model, opt, sparse = build(method, optimizer, "conv")
    for step in train(model, opt, 20):
        # an update may drop a weight whose gradient of this step was used
        updated = sparse.history and sparse.history[-1]["step"] == step
        assert [leak for leak in leaks(opt, sparse) if not (updated and leak.endswith("grad"))] == []
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("method", SETTINGS)
def test_no_leak_per_network(method: str, network: str) -> None:
    model, opt, sparse = build(method, "nesterov", network)
    for _ in train(model, opt, 18):  # the last update
        assert [leak for leak in leaks(opt, sparse) if not leak.endswith("grad")] == []
    assert all(mask.sum() > 0 for name, mask in sparse.masks.items()) or method in ("chase", "granet", "snfs")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_masking_gradients_alone_is_exact_where_we_rely_on_it(optimizer: str) -> None:
    """The optimizers `keeps_zeros` names end with the same bits when weights and states are masked at each step too."""
    results = []
    for always in (False, True):
        model, opt, sparse = build("rigl", optimizer, "conv")
        for _ in train(model, opt, 12):
            if always:
                sparse.apply()
        results.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert keeps_zeros(opt) == (optimizer not in ("adamax", "rprop", "asgd"))


def test_adam_without_eps_computes_zero_by_zero_and_is_masked_after_the_step() -> None:
    model, opt, sparse = build("static")
    sparse.detach()
    opt = torch.optim.Adam(model.parameters(), eps=0.0)
    assert not keeps_zeros(opt)
    sparse = Static(model, opt, density=0.3, total_steps=9)
    loss(model, *images()).backward()
    for parameter in model.parameters():
        parameter.grad += 1e-3  # a live weight without any gradient is 0 / 0 too, masks or not
    opt.step()
    assert leaks(opt, sparse) == [] and all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_adamax_state_would_leak_if_only_gradients_were_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.training.optimizer_state.keeps_zeros", lambda optimizer: True)
    model, opt, sparse = build("static", "adamax")
    run(model, opt, 3)
    assert any(leak.endswith("exp_inf") for leak in leaks(opt, sparse))


def test_not_a_number_in_masked_gradients_does_not_leak() -> None:
    """Masking by a product would keep NaN and infinity."""
    model, opt, sparse = build("static")
    weight, mask = model[1].weight, sparse.masks["1.weight"]
    loss(model, *images()).backward()
    weight.grad[~mask] = torch.tensor([float("nan"), float("inf")]).repeat(int((~mask).sum()))[: int((~mask).sum())]
    opt.step()
    assert leaks(opt, sparse) == [] and bool(torch.isfinite(weight).all())


def test_state_from_before_the_method_is_masked() -> None:
    model, opt, _ = build("static", "adamw")
    dense = copy.deepcopy(model)
    opt = OPTIMIZERS["adamw"](dense.parameters())
    run(dense, opt, 3)
    sparse = Static(dense, opt, density=0.2, total_steps=10)
    assert leaks(opt, sparse) == [] or all(leak.endswith("grad") for leak in leaks(opt, sparse))


def test_loading_dense_weights_or_states_is_noticed_at_the_next_step() -> None:
    model, opt, sparse = build("static")
    dense_model, dense_opt, _ = build("static", density=1.0)
    run(dense_model, dense_opt, 2)
    run(model, opt, 2)
    model.load_state_dict(dense_model.state_dict())
    run(model, opt, 1)
    assert leaks(opt, sparse) == []
    opt.load_state_dict(dense_opt.state_dict())
    run(model, opt, 1)
    assert leaks(opt, sparse) == []


def test_channels_last_weights_are_masked_in_their_own_layout() -> None:
    plain = build("rigl", "nesterov", "conv")
    torch.manual_seed(0)
    model = NETWORKS["conv"]().to(memory_format=torch.channels_last)
    opt = OPTIMIZERS["nesterov"](model.parameters())
    sparse = RigL(model, opt, density=0.3, total_steps=24, update_every=4)
    assert sparse.masks["3.weight"].stride() == model[3].weight.stride() != plain[0][3].weight.stride()
    for _ in train(model, opt, 10):
        assert [leak for leak in leaks(opt, sparse) if not leak.endswith("grad")] == []
    run(plain[0], plain[1], 10)
    # the same choices in either layout: units are numbered by place, not by address
    agree = [(a == b).float().mean() for a, b in zip(sparse.masks.values(), plain[2].masks.values(), strict=True)]
    assert torch.equal(sparse.masks["3.weight"].sum(), plain[2].masks["3.weight"].sum()) and min(agree) > 0.95
