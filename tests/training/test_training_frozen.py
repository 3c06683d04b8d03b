"""Law: what is not trained is not touched, and what is trained only now and then takes part when it can."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_cases import NETWORKS, SETTINGS, build, images, loss, run

import gossamer as gs
from gossamer.training import METHODS, Chase, RigL

GRADIENTS = ("rigl", "snfs", "mest", "granet", "srigl", "chase")  # methods that read them


def make(method: str, model: nn.Module, opt: torch.optim.Optimizer, **options: Any) -> gs.training.Method:
    return METHODS[method](model, opt, **{"density": 0.3, "total_steps": 24, **SETTINGS[method], **options})


class Adapted(nn.Module):
    """A linear layer that stays, and a correction of low rank that is trained."""

    def __init__(self, base: nn.Linear, rank: int = 8) -> None:
        super().__init__()
        self.base, self.down = base, nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def frozen_backbone() -> nn.Module:
    model = NETWORKS["conv"]()
    model[:3].requires_grad_(False)
    model.add_module("9", nn.Linear(5, 24))
    model.add_module("10", nn.Linear(24, 5))
    return model


def frozen_norms() -> nn.Module:
    model = NETWORKS["residual"]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module is not model.bnc:
            module.requires_grad_(False)
    return model


def adapted() -> nn.Module:
    model = NETWORKS["mlp"]()
    for place in (1, 3):
        model[place] = Adapted(model[place].requires_grad_(False))
    model.insert(6, nn.Linear(5, 5))
    return model


FROZEN: dict[str, Callable[[], nn.Module]] = {"backbone": frozen_backbone, "norms": frozen_norms, "adapters": adapted}


@pytest.mark.parametrize(("case", "listed"), [*((case, True) for case in FROZEN), (next(iter(FROZEN)), False)])
@pytest.mark.parametrize("method", SETTINGS)
def test_frozen_parameters_keep_every_bit(method: str, case: str, listed: bool) -> None:
    torch.manual_seed(0)
    model = FROZEN[case]()
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    before = {name: p.clone() for name, p in frozen.items()}
    opt = torch.optim.AdamW([p for p in model.parameters() if listed or p.requires_grad], lr=1e-2)
    options = {"example_inputs": images()[0]} if method in ("srigl", "chase") else {}
    sparse = make(method, model, opt, total_steps=12, **options)
    run(model, opt, 12)
    assert all(torch.equal(p, before[name]) for name, p in frozen.items())
    assert not frozen.keys() & sparse.masks.keys()
    sizes = sum(mask.numel() for mask in sparse.masks.values())
    assert sizes == sum(sparse.sizes.values()) and sparse.nnz() <= round(0.3 * sizes)  # frozen weights do not count


def test_frozen_tiles_stay() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(gs.nn.BlockSparseLinear(32, 32, block=8, density=0.5), nn.ReLU(), nn.Linear(32, 4))
    model[0].requires_grad_(False)
    before, pattern = model[0].values.clone(), model[0].pattern.to_tile_mask()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    make("rigl", model, opt)
    for i in range(8):
        opt.zero_grad()
        model(torch.randn(6, 32, generator=torch.Generator().manual_seed(i))).square().mean().backward()
        opt.step()
    assert torch.equal(model[0].values, before) and torch.equal(model[0].pattern.to_tile_mask(), pattern)


def test_a_network_of_frozen_weights_has_nothing_to_prune_and_says_so() -> None:
    model = NETWORKS["mlp"]()
    model.requires_grad_(False)
    model[1].bias.requires_grad_(True)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"nothing to prune.*'5.weight'\] are frozen: name them in include"):
        make("static", model, opt)


def test_a_frozen_view_of_a_trained_weight_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = nn.Parameter(model[0].weight.data, requires_grad=False)
    with pytest.raises(ValueError, match=r"0\.weight and 1\.weight share memory"):
        make("static", model, torch.optim.SGD(model[0].parameters(), lr=0.1))


@pytest.mark.parametrize("method", SETTINGS)
def test_frozen_in_the_middle_stays_where_it_is(method: str) -> None:
    """The mask of a weight that is frozen later stays, and so do the channels it makes or reads."""
    options = {"example_inputs": images()[0]} if method in ("srigl", "chase") else {}
    model, opt, sparse = build(method, "adamw", "conv", **options)
    run(model, opt, 6)
    model[3].requires_grad_(False)
    opt.zero_grad()
    mask, weight = sparse.masks["3.weight"].clone(), model[3].weight.clone()
    run(model, opt, 18, first=6)
    assert torch.equal(sparse.masks["3.weight"], mask) and torch.equal(model[3].weight, weight)
    assert sparse.step == 24 and sparse.pending == []


def test_channels_of_a_layer_frozen_later_are_asked_for_elsewhere(caplog: pytest.LogCaptureFixture) -> None:
    model, opt, sparse = build("chase", "adamw", "conv", channel_sparsity=0.5, example_inputs=images()[0])
    assert isinstance(sparse, Chase)
    model[4].requires_grad_(False)  # the norm behind 3
    run(model, opt, 24)
    assert bool(sparse.channels()["3"].all())
    assert int(sparse.channels()["0"].sum()) == sparse.floors["0"] and "those that are not frozen allow" in caplog.text


def heads(period: int) -> tuple[nn.ModuleList, Callable[[int], Tensor]]:
    """A trunk and two heads; head 1 is used every `period` steps, head 0 in the others."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU())
    net = nn.ModuleList([trunk, nn.ModuleList([nn.Linear(24, 16), nn.Linear(24, 16)])])

    def value(t: int) -> Tensor:
        x = torch.randn(8, 12, generator=torch.Generator().manual_seed(t))
        return net[1][int(t % period == 0)](net[0](x)).square().mean()

    return net, value


@pytest.mark.parametrize("method", GRADIENTS)
def test_heads_that_take_turns_all_explore(method: str) -> None:
    """Head 0 never has a gradient at an update: it waits for its next one, which scores it at the update after."""
    net, value = heads(2)
    opt = torch.optim.Adam(net.parameters(), lr=1e-2)
    options = {"channel_sparsity": 0.0} if method == "chase" else {"min_salient": 0} if method == "srigl" else {}
    sparse = make(method, net, opt, total_steps=48, stop=1.0, **options) if method != "chase" else make(
        method, net, opt, total_steps=48, **options
    )  # fmt: skip
    moved = dict.fromkeys(sparse.masks, 0)
    for t in range(1, 49):
        before = {name: mask.clone() for name, mask in sparse.masks.items()}
        opt.zero_grad()
        value(t).backward()
        opt.step()
        for name, mask in sparse.masks.items():
            moved[name] += int(not torch.equal(mask, before[name]))
            assert bool((net.get_parameter(name)[~mask] == 0).all())
    assert len(sparse.history) >= 10 and all(count >= 3 for count in moved.values()), moved
    assert sparse.nnz() <= round(0.3 * sum(sparse.sizes.values()))
    assert sum(state["exp_avg"].numel() for state in opt.state.values()) > 0


def test_the_first_gradient_after_an_update_scores_the_next() -> None:
    """Growth follows it, not the order of the weights."""
    net, value = heads(2)
    opt = torch.optim.SGD(net.parameters(), lr=1e-3)
    sparse = make("rigl", net, opt, regrow_dropped=False)
    kept = None
    for t in range(1, 9):
        opt.zero_grad()
        value(t).backward()
        if t == 5:  # head 0 went without at 4
            kept = net[1][0].weight.grad.clone()
        before = sparse.masks["1.0.weight"].clone()
        opt.step()
    grown = sparse.masks["1.0.weight"] & ~before
    assert kept is not None and int(grown.sum()) > 0
    absent = ~before & ~grown
    assert float(kept.abs()[grown].min()) >= float(kept.abs()[absent].max())


def test_turns_survive_a_resume() -> None:
    def part(state: dict[str, Any] | None, first: int, last: int) -> dict[str, Any]:
        net, value = heads(2)
        opt = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        sparse = make("rigl", net, opt)
        if state is not None:
            sparse.load_state_dict(state["sparse"])
            net.load_state_dict(state["net"])
            opt.load_state_dict(state["opt"])
        for t in range(first + 1, last + 1):
            opt.zero_grad()
            value(t).backward()
            opt.step()
        return {"sparse": sparse.state_dict(), "net": net.state_dict(), "opt": opt.state_dict()}

    whole = part(None, 0, 16)
    for stop in (4, 6):  # before and after the gradient that is awaited
        pieces = part(part(None, 0, stop), stop, 16)
        assert all(torch.equal(a, pieces["net"][name]) for name, a in whole["net"].items())
        assert all(
            torch.equal(m["bits"], pieces["sparse"]["masks"][n]["bits"]) for n, m in whole["sparse"]["masks"].items()
        )


@pytest.mark.parametrize("how", ["none", "zeros"])
def test_a_weight_that_never_gets_a_gradient_is_named_once(how: str, caplog: pytest.LogCaptureFixture) -> None:
    net, value = heads(10**6)
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    sparse = make("rigl", net, opt)
    mask = sparse.masks["1.1.weight"].clone()
    for t in range(1, 25):
        opt.zero_grad(set_to_none=how == "none")
        value(t).backward()
        if how == "zeros" and net[1][1].weight.grad is None:
            net[1][1].weight.grad = torch.zeros_like(net[1][1].weight)
        opt.step()
    assert torch.equal(sparse.masks["1.1.weight"], mask) and len(sparse.history) == 4
    said = [record.message for record in caplog.records if "no gradient has come to" in record.message]
    assert len(said) == 1 and "['1.1.weight']" in said[0] and "step 8" in said[0]


def test_tiles_take_turns_too() -> None:
    torch.manual_seed(0)
    trunk = nn.Linear(16, 32)
    two = nn.ModuleList([gs.nn.BlockSparseLinear(32, 32, block=8, density=0.5) for _ in range(2)])
    net = nn.ModuleList([trunk, two])
    opt = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    sparse = RigL(net, opt, density=0.4, total_steps=40, update_every=4, stop=1.0)
    first = {name: mask.clone() for name, mask in sparse.masks.items()}
    heard = []
    for t in range(1, 41):
        opt.zero_grad()
        x = torch.randn(8, 16, generator=torch.Generator().manual_seed(t))
        two[t % 2](trunk(x).relu()).square().mean().backward()
        heard.append(len(two[1].values._post_accumulate_grad_hooks or {}))
        opt.step()
    assert all(not torch.equal(mask, first[name]) for name, mask in sparse.masks.items())
    assert sum(heard) < 30  # the tap of a head that goes without is open until its next gradient, not always


def test_loss_of_all_layers_still_sees_every_one() -> None:
    """Nothing is owed when every weight has a gradient: the usual case keeps nothing between updates."""
    model, opt, sparse = build("rigl")
    for t in range(9):
        opt.zero_grad()
        loss(model, *images(seed=t)).backward()
        opt.step()
        assert not sparse.gradients.owed and not sparse.gradients.kept


@pytest.mark.parametrize("frozen", [True, False])
def test_a_refusal_says_why_channels_stay(frozen: bool) -> None:
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    model[0].bias.requires_grad_(not frozen)
    optimizer = torch.optim.AdamW(p for p in model.parameters() if frozen or p.ndim > 1)
    with pytest.raises(ValueError, match="no channels can be removed") as refused:
        make("chase", model, optimizer, example_inputs=torch.randn(4, 8))
    reason = "frozen" if frozen else "not in this optimizer"
    assert str(refused.value).splitlines()[-1] == f"0 stays: 0.bias is {reason}"
