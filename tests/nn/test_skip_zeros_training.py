"""Training a converted model is training the model; BatchNorm is noticed; methods, compaction, ranks, compile agree."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import skip_zeros_worker
import torch
import torch.distributed as dist
from skip_zeros_worker import batch, network, train
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gossamer as gs
from gossamer.planner.tuner import question

STEPS = 50


@pytest.mark.parametrize("skip", ["auto", "input"])
@pytest.mark.parametrize("fuse", [True, False])
def test_every_step_is_that_of_dense_training_to_rounding(skip, fuse):
    """At the weights of each step; two runs part for good once a ReLU's input rounds to the other side of zero.

    One of 10^5 inputs does so in few of the steps, and then its share of the gradient is another.
    """
    net, dense = network(), network()
    report = gs.nn.skip_zeros(net, fuse, skip=skip)
    optimizer, losses, flips = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9), [], 0
    for step in range(STEPS):
        x, y = batch(step)
        dense.load_state_dict(net.state_dict())
        pair = [nn.functional.cross_entropy(each(x), y) for each in (net, dense)]
        for each, loss in zip((net, dense), pair, strict=True):
            each.zero_grad()
            loss.backward()
        losses.append(pair[1].item())
        assert abs(pair[0].item() - losses[-1]) < 16 * 2**-23 * losses[-1]
        both = zip(net.parameters(), dense.parameters(), strict=True)
        apart = max(float((mine.grad - its.grad).norm() / its.grad.norm()) for mine, its in both)
        flips += apart > 1e-5
        assert apart < 0.1
        optimizer.step()
    assert flips <= 3
    assert len(report.converted) == 5 and losses[-1] < 0.8 * losses[0]
    if skip == "input":
        assert all(one["calls"] == {"skip": STEPS} for site in report.stats().values()
                   for name, one in site.items() if name != "weight")  # fmt: skip


def test_batch_norm_makes_gradients_dense_and_auto_notices():
    """Between a convolution and its ReLU it hands back a gradient without zeros: there is nothing to skip, ever."""
    net = network(batch_norm=True)
    report = gs.nn.skip_zeros(net)
    train(net, 30)
    for name in ("features.3", "features.7", "features.10"):
        by_input = report.stats()[name]["input"]
        assert by_input["density"]["dy"] > 0.99
        assert by_input["path"] == "dense" and by_input["calls"] == {"dense": 30} and by_input["switches"] == 0
    for name in ("features.3", "features.10"):  # behind a ReLU there are zeros all the same
        assert report.stats()[name]["forward"]["density"]["x"] < 0.8
    assert report.fused == ("head.1",)


def test_without_batch_norm_skipping_the_gradient_is_tried(monkeypatch):
    monkeypatch.setattr(question, "CALL", 0.0)  # so small a network could not gain
    net = network()
    report = gs.nn.skip_zeros(net)
    train(net, 12)
    for name in ("features.2", "features.5", "features.7"):
        by_input = report.stats()[name]["input"]
        assert by_input["density"]["dy"] < 0.8
        assert by_input["calls"]["skip"] >= 3  # a first call and two that count


@pytest.mark.parametrize("pooled", [True, False])
def test_a_max_pool_leaves_a_quarter_of_the_gradient(pooled):
    net = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.MaxPool2d(2) if pooled else nn.Identity())
    report = gs.nn.skip_zeros(net, skip="input")
    net(torch.randn(4, 16, 8, 8, requires_grad=True)).sum().backward()
    assert report.stats()["0"]["input"]["density"]["dy"] == pytest.approx(0.25 if pooled else 1.0)


def test_deterministic_training_repeats_itself():
    def losses():
        net = network()
        gs.nn.skip_zeros(net)
        return train(net, 12)

    torch.use_deterministic_algorithms(True)
    try:
        assert losses() == losses()
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_copy_trains_like_the_original():
    net = network()
    gs.nn.skip_zeros(net, skip="input")
    twin = copy.deepcopy(net)
    assert train(net, 5) == train(twin, 5)


def test_a_dense_checkpoint_goes_on_converted_and_back():
    plain, net = network(), network()
    gs.nn.skip_zeros(net)
    train(plain, 3)
    net.load_state_dict(plain.state_dict(), strict=True)
    x, _ = batch(9)
    torch.testing.assert_close(net(x), plain(x))
    train(net, 3)
    plain.load_state_dict(net.state_dict(), strict=True)
    torch.testing.assert_close(net(x), plain(x))


@pytest.mark.parametrize("method", ["rigl", "set", "chase"])
def test_methods_mask_what_skips(method):
    def masks(skip):
        net = network()
        if skip:
            report = gs.nn.skip_zeros(net, skip="input")
            assert len(report.converted) == 5
        optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
        more = {"channel_sparsity": 0.3} if method == "chase" else {"update_every": 4}
        method_ = gs.training.METHODS[method](net, optimizer, density=0.3, total_steps=24, **more)
        for t in range(10):
            x, y = batch(t)
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
        return {name: mask.clone() for name, mask in method_.masks.items()}, net

    plain, _ = masks(False)
    skipping, net = masks(True)
    assert list(plain) == list(skipping) and "features.2.weight" in skipping
    for name, mask in skipping.items():
        assert int(mask.sum()) == int(plain[name].sum())
        assert not net.get_parameter(name)[~mask.bool()].any()


@pytest.mark.parametrize("route", ["export", "fx"])
def test_compaction_shrinks_it_like_torchs(route):
    def emptied(skip):
        net = network()
        if skip:
            gs.nn.skip_zeros(net)
        with torch.no_grad():
            for at, gone in ((2, 5), (5, 9), (7, 3)):
                net.features[at].weight[:gone] = 0
                net.features[at].bias[:gone] = 0
        return net.eval()

    x, _ = batch(0)
    plain, net = emptied(False), emptied(True)
    expected = net(x).detach()
    shapes = []
    for each in (plain, net):
        small = gs.compact(each, x, round_to=None, check_latency=False, route=route).model
        shapes.append({name: tuple(p.shape) for name, p in small.named_parameters()})
    assert shapes[0] == shapes[1]
    assert shapes[1]["features.2.weight"] == (11, 16, 3, 3) and shapes[1]["features.5.weight"] == (23, 11, 3, 3)
    layer = small.features[2]
    assert type(layer) is gs.nn.Conv2d and layer.relu and (layer.in_channels, layer.out_channels) == (16, 11)
    torch.testing.assert_close(small(x), expected)
    assert small(x).sum().backward() is None and layer.weight.grad.shape == (11, 16, 3, 3)


def test_distributed_data_parallel_takes_it_as_it_is(tmp_path):
    net, alone = network(), network()
    for each in (net, alone):
        gs.nn.skip_zeros(each, skip="input")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        assert train(DistributedDataParallel(net), 4) == train(alone, 4)
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_are_one_process_on_the_whole_batch(tmp_path):
    command = [sys.executable, skip_zeros_worker.__file__]
    processes = [
        subprocess.Popen(
            [*command, str(rank), "2", str(tmp_path / "rendezvous"), str(tmp_path / f"{rank}.pt")],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    output = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(output)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    net = network()
    gs.nn.skip_zeros(net, skip="input")
    losses = train(net, 6)
    for a, b, c in zip(ranks[0]["weights"], ranks[1]["weights"], net.parameters(), strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c.detach(), rtol=1e-4, atol=1e-5)  # six steps of sums in another order
    mean = [(a + b) / 2 for a, b in zip(ranks[0]["losses"], ranks[1]["losses"], strict=True)]
    assert mean == pytest.approx(losses, rel=1e-4)
    assert all(sum(calls.values()) == 6 for rank in ranks for calls in rank["calls"].values())


def test_compiled_into_one_graph_that_holds_no_choice():
    net = nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 4))
    gs.nn.skip_zeros(net)
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(net, fullgraph=True, backend=counting)
    for _ in range(12):  # dense and skip in turn, then one of them
        x = torch.randn(2, 16, 8, 8).relu()
        y = compiled(x)
        y.sum().backward()
        torch.testing.assert_close(y, net(x))
    assert len(graphs) == 1
    assert set(net[0].site.stats()["forward"]["calls"]) == {"dense", "skip"}
