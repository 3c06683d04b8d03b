"""Law: learned weights get a mask that fits them, fresh ones a random one; a resume that forgets a state is told so."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable

import pytest
import torch
from torch import nn
from training_cases import NETWORKS, build, images, loss, run

from gossamer.integrations.rebuild import rebuild
from gossamer.training import METHODS, GradualMagnitude, RigL, SRigL, Static

SAID = "begins with new masks"


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)


def trained(network: str = "mlp", steps: int = 60) -> nn.Module:
    """On one batch until it is known by heart."""
    torch.manual_seed(0)
    model = NETWORKS[network]()
    opt = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(steps):
        opt.zero_grad()
        loss(model, *images(64)).backward()
        opt.step()
    return model


INITIALISATIONS: dict[str, Callable[[torch.Tensor], object]] = {
    "default": lambda w: None,
    "normal": lambda w: nn.init.normal_(w, std=0.02),
    "truncated": lambda w: nn.init.trunc_normal_(w, std=0.02),
    "xavier": nn.init.xavier_uniform_,
    "orthogonal": nn.init.orthogonal_,
    "masked": lambda w: w.mul_(torch.rand_like(w) < 0.1),
    "zero": nn.init.zeros_,
    "constant": lambda w: nn.init.constant_(w, 0.1),
}


@pytest.mark.parametrize("how", INITIALISATIONS)
@pytest.mark.parametrize("network", NETWORKS)
def test_fresh_networks_get_random_masks(network: str, how: str) -> None:
    torch.manual_seed(1)
    model = NETWORKS[network]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                INITIALISATIONS[how](parameter)
    sparse = Static(model, sgd(model), density=0.3, total_steps=9)
    assert sparse.first_mask == "random" and sparse.signs == [] and sparse.stats()["first_mask"] == "random"


def frozen_stem() -> nn.Module:
    model = NETWORKS["conv"]()
    model[0].requires_grad_(False)
    return model


def counted() -> nn.Module:
    model = NETWORKS["conv"]()
    model(images()[0])  # in training mode: statistics are taken
    return model


def loaded() -> nn.Module:
    model = NETWORKS["mlp"]()
    model.load_state_dict(trained().state_dict())
    return model


def digits() -> nn.Module:
    """Inputs that differ in size, as those of the world do; no bias."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 32, bias=False), nn.ReLU(), nn.Linear(32, 5, bias=False))
    scale = torch.linspace(0, 3, 48).view(3, 4, 4)
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for t in range(60):
        x, _ = images(64, seed=t)
        opt.zero_grad()
        nn.functional.cross_entropy(model(x * scale), (x * scale).flatten(1)[:, -5:].argmax(1)).backward()
        opt.step()
    return model


def normed() -> nn.Module:
    model = NETWORKS["attention"]()
    nn.init.normal_(model.norm.bias, std=0.01)
    return model


TRAINED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "frozen": (frozen_stem, "1 weights are frozen (0.weight"),
    "counted": (counted, "batch norms have counted"),
    "loaded": (loaded, "biases are larger than they begin"),
    "learned": (digits, "is not drawn at random"),
    "norms": (normed, "norms differ from channel to channel"),
    "copied": (lambda: copy.deepcopy(trained("residual")), "batch norms have counted"),
}


@pytest.mark.parametrize("case", TRAINED)
def test_trained_networks_keep_their_largest_weights_and_it_is_said(
    case: str, caplog: pytest.LogCaptureFixture
) -> None:
    make, sign = TRAINED[case]
    model = make()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    sparse = Static(model, sgd(model), density=0.3, total_steps=9)
    assert sparse.first_mask == "magnitude" and any(sign in text for text in sparse.stats()["signs"])
    assert "the network looks trained" in caplog.text and sign in caplog.text and "init='random'" in caplog.text
    for layer in sparse.layers:
        weight, mask = layer.view(before[layer.tensor.name]).abs(), layer.view(layer.tensor.mask)
        assert not bool((~mask).any()) or float(weight[mask].min()) >= float(weight[~mask].max())
    for asked in ("random", "magnitude"):
        again = make()
        caplog.clear()
        assert Static(again, sgd(again), density=0.3, total_steps=9, init=asked).first_mask == asked
        assert "looks trained" not in caplog.text


def test_an_optimizer_that_has_stepped_is_a_sign() -> None:
    torch.manual_seed(0)
    model = NETWORKS["mlp"]()
    opt = sgd(model)
    loss(model, *images()).backward()
    opt.step()
    assert Static(model, opt, density=0.3, total_steps=9).signs == ["the optimizer has state"]


def test_magnitude_does_less_harm_than_chance() -> None:
    model = trained()
    errors: dict[str | None, float] = {}
    for init in (None, "random"):
        copied = copy.deepcopy(model)
        Static(copied, sgd(copied), density=0.5, total_steps=9, init=init)
        errors[init] = float(loss(copied, *images(64)).detach())
    assert errors[None] < 0.5 * errors["random"]


@pytest.mark.parametrize("cls", [Static, SRigL])
def test_zeros_of_an_adapter_are_chosen_among_at_random(cls: type) -> None:
    """The first columns of the first rows would be a mask without meaning."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16).requires_grad_(False), nn.Linear(16, 16), nn.Linear(16, 32))
    nn.init.zeros_(model[2].weight)
    options = {"min_salient": 0} if cls is SRigL else {}
    sparse = cls(model, sgd(model), density=0.25, total_steps=9, distribution="uniform", **options)
    assert sparse.first_mask == "magnitude"
    rows, columns = sparse.masks["2.weight"].sum(1), sparse.masks["2.weight"].sum(0)
    assert int(sparse.masks["2.weight"].sum()) == 128 and int((rows > 0).sum()) > 16 and int((columns > 0).sum()) > 10


def test_equal_weights_beside_larger_ones_are_chosen_among_at_random() -> None:
    model = nn.Linear(20, 10)
    with torch.no_grad():
        model.weight.fill_(0.5)[3] = 2.0
    sparse = Static(model, torch.optim.SGD(model.parameters(), lr=0.1), density=0.5, total_steps=9, init="magnitude")
    assert bool(sparse.masks["weight"][3].all()) and int(sparse.masks["weight"].sum()) == 100
    assert int((sparse.masks["weight"].sum(1) > 0).sum()) == 10


def test_gradual_methods_begin_dense_whatever_the_network() -> None:
    model = loaded()
    before = [p.clone() for p in model.parameters()]
    GradualMagnitude(model, sgd(model), density=0.1, total_steps=9)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


# ---------------------------------------------------------------- a resume that forgets the method


@pytest.fixture
def checkpoint() -> dict[str, dict]:
    model, opt, sparse = build("rigl", "adamw")
    run(model, opt, 9)
    return {"model": model.state_dict(), "opt": opt.state_dict(), "sparse": sparse.state_dict()}


@pytest.mark.parametrize("order", ["loaded before", "loaded after"])
@pytest.mark.parametrize("what", [("model", "opt"), ("model",), ("opt",)], ids=["both", "weights", "optimizer"])
def test_a_resume_that_forgets_the_method_is_told_what_to_call(
    checkpoint: dict, what: tuple[str, ...], order: str, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(1)
    model = NETWORKS["mlp"]()
    opt = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def load() -> None:
        for name, target in (("model", model), ("opt", opt)):
            if name in what:
                target.load_state_dict(checkpoint[name])

    if order == "loaded before":
        load()
    METHODS["rigl"](model, opt, density=0.3, total_steps=24, update_every=4, seed=3, init="random")
    assert (SAID in caplog.text) == (order == "loaded before")
    if order == "loaded after":
        load()
    run(model, opt, 2)
    said = [record for record in caplog.records if SAID in record.message]
    assert said and all(record.levelno == logging.WARNING for record in said)
    assert "method.load_state_dict(saved)" in caplog.text
    assert ("exactly zero" in caplog.text) == ("model" in what)
    assert ("already taken steps" in caplog.text) == ("opt" in what)


def test_a_resume_that_forgets_nothing_is_quiet(checkpoint: dict, caplog: pytest.LogCaptureFixture) -> None:
    model, opt, sparse = build("rigl", "adamw")
    sparse.load_state_dict(checkpoint["sparse"])
    model.load_state_dict(checkpoint["model"])
    opt.load_state_dict(checkpoint["opt"])
    run(model, opt, 3, first=9)
    fresh = NETWORKS["mlp"]()
    fresh.load_state_dict(checkpoint["model"])
    other = torch.optim.AdamW(fresh.parameters(), lr=1e-2)
    other.load_state_dict(checkpoint["opt"])
    rebuild(
        lambda m, o, n: RigL(m, o, density=0.3, total_steps=n, update_every=4), fresh, other, 24, checkpoint["sparse"]
    )
    run(fresh, other, 3, first=9)
    build("rigl")
    assert SAID not in caplog.text


def test_zeros_that_initialisations_leave_are_no_resume(caplog: pytest.LogCaptureFixture) -> None:
    model = NETWORKS["mlp"]()
    nn.init.zeros_(model[3].weight)
    sparse = RigL(model, torch.optim.SGD(model.parameters(), lr=0.1), density=0.3, total_steps=24, update_every=4)
    run(model, sparse.optimizer, 5)
    assert SAID not in caplog.text
