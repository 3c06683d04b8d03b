"""Channels of every kind go: single rows, residual channels, attention heads, convolution groups."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from training_cases import SETTINGS, STEPS, build, images, run, train

import gossamer as gs
from gossamer.training import METHODS, Chase

X = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def vit(data: int = 0, **options: object) -> tuple[nn.Module, Chase]:
    """A vision transformer of two blocks and eight heads after 24 steps of Chase at channel sparsity 0.6."""
    torch.manual_seed(0)
    model = gs.models.ViT((1, 8, 8), 10, dim=64, depth=2, heads=8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    method = Chase(
        model, optimizer, density=0.1, channel_sparsity=0.6, total_steps=24, explore_every=4, channel_every=4,
        example_inputs=X, **options,
    )  # fmt: skip
    x = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(data))
    for _ in range(24):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), torch.arange(8)).backward()
        optimizer.step()
    return model.eval(), method


def heads(method: Chase) -> list[torch.Tensor]:
    assert method.graph is not None
    kind = {group.name: group.kind for group in method.graph.groups}
    return [alive for name, alive in method.channels().items() if kind[name] == "heads"]


@pytest.mark.parametrize("normalize", ["none", "group"])
def test_a_transformer_loses_heads_and_neurons_and_compacts_exactly(normalize: str) -> None:
    model, method = vit(normalize=normalize)
    left = [int(alive.sum()) for alive in heads(method)]
    assert sum(left) in (6, 7) and min(left) >= 1  # 0.4 of 16
    total = sum(len(alive) for alive in method.channels().values())
    assert total - sum(int(a.sum()) for a in method.channels().values()) == round(0.6 * total)
    small = gs.compact(model, X, round_to=1, check_latency=False)
    assert [block.attention.num_heads for block in small.model.blocks] == left
    assert all(block.up.out_features < 256 for block in small.model.blocks)
    with torch.no_grad():
        before, after = model(X), small.model(X)
    assert float((before - after).abs().max()) <= 1e-5 * float(before.abs().max())


def test_which_heads_stay_depends_on_the_data() -> None:
    first, second = (heads(vit(data)[1]) for data in (0, 1))
    assert any(not torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_heads_go_with_the_rounding_of_the_command_line() -> None:
    model, method = vit(normalize="group", round_to=16)  # a head of 8 rows: widths of two heads
    assert sum(int(alive.sum()) for alive in heads(method)) in (6, 7)
    small = gs.compact(model, X, round_to=16, check_latency=False)
    assert sum(block.attention.num_heads for block in small.model.blocks) <= 8


@pytest.mark.parametrize(("network", "compact_every"), [("residual", 2), ("mobile", None), ("concat", 2)])
def test_every_kind_follows_its_own_schedule(network: str, compact_every: int | None) -> None:
    model, opt, method = build(
        "chase", network=network, scope="all", channel_sparsity=0.5, explore_every=2, channel_every=2, min_width=0.0,
        compact_every=compact_every, example_inputs=torch.randn(2, 3, 4, 4),
    )  # fmt: skip
    assert isinstance(method, Chase)
    kinds = {kind: [n for n, k in method.kinds.items() if k == kind] for kind in method.kinds.values()}
    assert len(kinds) > 1 or network == "concat"
    before = dict.fromkeys(kinds, 0)
    for t in train(model, opt, STEPS):
        share = 0.5 * (1 - (1 - min(t / method.last_removal, 1.0)) ** 3)
        if method.history[-1]["kind"] == "channels" if method.history else False:
            for kind, names in kinds.items():
                alive = [method.channels()[name] for name in names]
                size = sum(len(a) for a in alive)
                gone = size - sum(int(a.sum()) for a in alive)
                assert gone >= before[kind]
                assert abs(gone - share * size) < 1.0 or t != method.history[-1]["step"]
                before[kind] = gone
    assert all(before.values())


def test_a_kind_at_its_floor_hands_the_rest_to_the_others() -> None:
    _, method = vit(min_width=1.0)  # floors of 3 heads: 10 of 16 may go, as many as wanted
    assert min(int(alive.sum()) for alive in heads(method)) >= 3
    total = sum(len(alive) for alive in method.channels().values())
    assert total - sum(int(a.sum()) for a in method.channels().values()) == round(0.6 * total)


def test_narrow_groups_lose_channels_at_a_coarse_rounding() -> None:
    """The first stage of ResNet-20 has 16 channels: one multiple of 16."""
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    model = gs.models.build("resnet20", input_shape=(3, 8, 8), classes=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    method = Chase(
        model, optimizer, density=0.2, channel_sparsity=0.5, total_steps=10, explore_every=2, channel_every=2,
        example_inputs=x, normalize="group", round_to=16,
    )  # fmt: skip
    for _ in range(10):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), torch.arange(4)).backward()
        optimizer.step()
    narrow = {name: alive for name, alive in method.channels().items() if len(alive) == 16}
    assert all(4 <= int(alive.sum()) < 16 for alive in narrow.values()) and len(narrow) == 3
    small = gs.compact(model.eval(), x, round_to=16, check_latency=False)
    assert all(small.report["channels"][name]["after"] < 16 for name in narrow)


class Fixed(nn.Module):
    """A width written into the code: its channels cannot go. The block behind it is as any other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(48, 16), nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x.flatten(1)).relu().view(-1, 16)
        return self.d(self.c(self.b(x).relu()).relu())


@pytest.mark.parametrize("method", ["chase", "srigl"])
@pytest.mark.parametrize("traced", ["at the start", "in the first batch"])
def test_channels_that_could_never_be_cut_out_are_not_removed(
    method: str, traced: str, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    model = Fixed()
    opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    options = {"example_inputs": images()[0]} if traced == "at the start" else {}
    arguments = {"density": 0.3, "total_steps": 24, **SETTINGS[method], **options}
    sparse = METHODS[method](model, opt, **arguments)
    run(model, opt)
    channels = sparse.channels()
    assert "a" not in channels and {"b", "c"} <= channels.keys()
    assert "channels of a stay, they could not be cut out afterwards" in caplog.text
    assert "a stays: it could not be cut out afterwards" in sparse.removed.explain()
    assert bool((model.a.weight != 0).any(1).all()) and bool(sparse.masks["a.weight"].any(1).all())
    small = gs.compact(model.eval(), images()[0], check_latency=False, round_to=1)
    assert not small.unfit and small.model.a.out_features == 16
    for name in ("b", "c"):
        assert getattr(small.model, name).out_features == int(channels[name].sum())
