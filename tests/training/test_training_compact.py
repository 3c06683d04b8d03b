"""Law: cutting dead channels out during training changes nothing but the time it takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from training_cases import NETWORKS, build, images, loss, run, train

from gossamer.compaction import compact, dead
from gossamer.training import Chase
from gossamer.training.channels import Channels
from gossamer.training.shrinking import shrink

STEPS = 36


def chase(network: str, optimizer: str = "momentum", **options: Any) -> tuple[nn.Module, torch.optim.Optimizer, Chase]:
    return build(
        "chase", optimizer, network, dtype=torch.float64, total_steps=STEPS, explore_every=4, channel_every=4,
        example_inputs=images(dtype=torch.float64)[0], **{"channel_sparsity": 0.5, **options},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("network", "optimizer"),
    [
        *((name, "momentum") for name in ("residual", "mobile", "concat")),
        ("conv", "adamw"),
    ],
)
def test_compacted_training_equals_masked_training(network: str, optimizer: str) -> None:
    """Batch norms in training mode included; both runs make the same choices at every event."""
    options: dict[str, Any] = {"scope": "all", "explore_stop": 0.75}
    masked, compacted = chase(network, optimizer, **options), chase(network, optimizer, compact_every=3, **options)
    objects = [id(p) for p in compacted[0].parameters()]
    for t in range(STEPS):
        values = []
        for model, opt, _ in (masked, compacted):
            opt.zero_grad()
            value = loss(model, *images(seed=t, dtype=torch.float64))
            value.backward()
            opt.step()
            values.append(value.item())
        # sums over fewer zeros, in float64, dozens of steps
        assert values[0] == pytest.approx(values[1], rel=1e-9)
        alive = masked[2].channels()
        assert all(torch.equal(alive[name], a) for name, a in compacted[2].channels().items())
        assert masked[2].nnz() == compacted[2].nnz()
    assert [id(p) for p in compacted[0].parameters()] == objects
    small, full = (sum(p.numel() for p in model.parameters()) for model in (compacted[0], masked[0]))
    assert small < 0.75 * full
    x = images(seed=99, dtype=torch.float64)[0]
    # In eval mode with SGD only: the gradient of a bias in front of a batch norm is rounding noise, which Adam divides
    # by its own size; batch statistics take such a bias out again, running ones lag behind it.
    for training in (True, False) if optimizer == "momentum" else (True,):
        with torch.no_grad():
            a, b = (model.train(training)(x) for model, _, _ in (masked, compacted))
        assert float((a - b).abs().max()) <= 1e-9 * float(a.abs().max())
    assert compacted[2].density() == masked[2].density()  # of the original number of weights
    masked_stats, stats = masked[2].stats(), compacted[2].stats()
    assert stats["itop"] == pytest.approx(masked_stats["itop"], rel=1e-12)
    assert stats["channels"] == masked_stats["channels"]


def test_masks_shrink_with_their_weights() -> None:
    model, opt, sparse = chase("conv", "nesterov", compact_every=1)
    for _ in train(model, opt, STEPS):
        for name, tensor in sparse.tensors.items():
            assert tensor.mask.shape == tensor.parameter.shape, name
            assert bool((tensor.parameter[~tensor.mask] == 0).all())
            for value in opt.state[tensor.parameter].values():
                assert value.shape == tensor.mask.shape and bool((value[~tensor.mask] == 0).all())
    assert [layer.last for layer in sparse.layers] == [model[0].out_channels, model[3].out_channels, 5]


def test_example_of_steps_between_compactions() -> None:
    model, opt, sparse = chase("conv", compact_every=4)
    widths = []
    for _ in train(model, opt, STEPS):
        widths.append(model[3].out_channels)
    changes = [t + 1 for t in range(1, STEPS) if widths[t] != widths[t - 1]]
    removals = [event["step"] for event in sparse.history if event["kind"] == "channels"]
    assert changes == removals[3::4]


@pytest.mark.parametrize("network", ["conv", "residual", "mobile", "concat"])
def test_what_chase_prunes_compaction_proves_dead(network: str) -> None:
    """The other side's judgement, from values alone."""
    model, opt, sparse = chase(network, scope="all")
    run(model, opt, STEPS)
    found = dead(sparse.graph, model)
    for name, alive in sparse.channels().items():
        assert bool(found[name][~alive].all()), name
    assert sum(int((~alive).sum()) for alive in sparse.channels().values()) >= 6
    x = images(seed=5, dtype=torch.float64)[0]
    model.eval()
    small = compact(model, (x,), check_latency=False, round_to=1).model
    assert float((small(x) - model(x)).abs().max()) <= 1e-12 * float(model(x).abs().max())
    assert sum(p.numel() for p in small.parameters()) < 0.75 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("network", ["conv", "residual", "mobile", "concat"])
def test_a_removed_channel_is_zero_in_every_tensor_that_has_it(network: str) -> None:
    """Rows, biases, scales, shifts, columns, and their optimizer states; and it stays so."""
    model, opt, sparse = chase(network, "adamw", scope="all")
    groups = {group.name: group for group in sparse.graph.groups}
    roles = set()
    for _ in train(model, opt, STEPS):
        for name, alive in sparse.channels().items():
            for member in groups[name].members:
                if member.role == "stat":
                    continue
                parameter = model.get_parameter(member.tensor)
                gone = member.index[~alive].flatten()
                states = [s for s in opt.state[parameter].values() if s.shape == parameter.shape]
                for x in (parameter.detach(), *states):
                    assert bool((x.index_select(member.axis, gone) == 0).all()), (name, member.tensor)
                roles |= {member.role} if len(gone) else set()
    assert roles >= {"writer", "reader"} and ("affine" in roles or network == "mobile")


class OutputOnly(Channels):
    """The mutant: only the rows that make a channel are masked, as in the reference code of SRigL."""

    def prune(self, name: str, channels: torch.Tensor, track: Any) -> list[Any]:
        group = self.groups[name]
        weights = tuple(m for m in group.members if m.role == "writer" and m.tensor.endswith("weight"))
        self.groups[name] = replace(group, members=weights)
        touched = super().prune(name, channels, track)
        self.groups[name] = group
        return touched


def test_masking_outputs_only_leaks_through_batch_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """beta - gamma * mean / deviation of a zero channel is not zero: deleting it changes the outputs."""
    errors = []
    for kind in (Channels, OutputOnly):
        monkeypatch.setattr("gossamer.training.channels.Channels.of", classmethod(_of(kind)))
        model, opt, sparse = chase("conv", compact_every=100, normalize="none")
        run(model, opt, STEPS)
        model.eval()
        x = images(seed=5, dtype=torch.float64)[0]
        before = model(x)
        shrink(sparse)
        errors.append(float((model(x) - before).abs().max() / before.abs().max()))
    assert errors[0] < 1e-12 and errors[1] > 1e-3


_MAKE = Channels.__dict__["of"].__func__


def _of(kind: type[Channels]):
    return lambda cls, network, graph, groups, *rest: _MAKE(kind, network, graph, groups, *rest)


def test_round_to_gives_even_widths() -> None:
    model, opt, sparse = chase("residual", scope="all", round_to=4, compact_every=100)
    run(model, opt, STEPS)
    widths = {name: int(a.sum()) for name, a in sparse.channels().items()}
    for kind in set(sparse.kinds.values()):
        mine = {name: width for name, width in widths.items() if sparse.kinds[name] == kind}
        assert sum(width % 4 != 0 and width > sparse.floors[name] for name, width in mine.items()) <= 1
    total = sum(a.numel() for a in sparse.channels().values())
    assert total - sum(widths.values()) == round(0.5 * total)


def test_group_normalisation_compares_layers_of_different_scale() -> None:
    """A layer of large weights hides its weak channels from the plain score, not from the normalised one."""
    lost = {}
    for normalize in ("none", "group"):
        torch.manual_seed(0)
        model = NETWORKS["conv"]()
        with torch.no_grad():
            model[0].weight.mul_(100)
        opt = torch.optim.SGD(model.parameters(), lr=0.0)
        sparse = Chase(
            model, opt, density=1.0, extra_density=0.0, total_steps=10, explore_every=4, channel_every=1,
            channel_sparsity=0.4, normalize=normalize, example_inputs=images()[0],
        )  # fmt: skip
        run(model, opt, 10)
        lost[normalize] = int((~sparse.channels()["0"]).sum())
    assert lost["none"] == 0 and lost["group"] >= 4


def test_running_statistics_of_removed_channels_do_not_matter() -> None:
    model, opt, sparse = chase("conv", compact_every=100)
    run(model, opt, STEPS)
    gone = ~sparse.channels()["3"]
    model.eval()
    x = images(seed=5, dtype=torch.float64)[0]
    before = model(x)
    model[4].running_mean[gone] = 1e6
    model[4].running_var[gone] = 1e-6
    assert bool(gone.any()) and torch.equal(before, model(x))


def test_compaction_with_tiles_is_refused() -> None:
    with pytest.raises(ValueError, match=r"compact_every needs tile \(1, 1\), got \(2, 2\)"):
        chase("conv", compact_every=1, tile=(2, 2))


def test_groups_with_frozen_members_stay() -> None:
    torch.manual_seed(0)
    model = NETWORKS["conv"]()
    model[1].weight.requires_grad_(False)
    opt = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    sparse = Chase(model, opt, total_steps=20, example_inputs=images()[0])
    assert list(sparse.channels()) == ["3"]


def test_nothing_to_remove_is_explained() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    with pytest.raises(ValueError, match="no channels can be removed with scope='inner'"):
        Chase(model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=9, example_inputs=images()[0])


def test_no_forward_no_graph() -> None:
    model, opt, sparse = build("chase", network="conv", explore_every=2, channel_every=2, channel_stop=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with pytest.raises(RuntimeError, match=r"no forward pass of the model, Sequential, was seen before"):
        opt.step()
    assert sparse.removed is None
