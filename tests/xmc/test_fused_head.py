"""The fused head: its first connections, its buffers, steps that learn, and what it refuses."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gossamer.measure import memory as memory_of
from gossamer.ops.fan_in.connections import draw_values
from gossamer.testing import assert_same_bits
from gossamer.xmc import FusedHead
from gossamer.xmc.data import Csr
from gossamer.xmc.heads.memory import Layout


def test_first_values_are_uniform():
    values = torch.empty(5000, 4)
    draw_values(values, seed=1)
    assert (
        float(values.abs().max()) <= 0.5
        and abs(float(values.mean())) < 0.01
        and abs(float(values.std()) - 0.2887) < 0.01
    )


@pytest.mark.parametrize("loss", ["bce", "hinge"])
@pytest.mark.parametrize(
    "dtype, optimizer, group",
    [(torch.float32, "adam", 1), (torch.bfloat16, "sgd", 1), (torch.bfloat16, "momentum", 16)],
)
def test_it_learns(loss, dtype, optimizer, group):
    torch.manual_seed(0)
    head = FusedHead(32, 100, fan_in=16, dtype=dtype, optimizer=optimizer, loss=loss, group=group, seed=1)
    assert head.values.dtype == dtype and head.indices.shape == (-(-100 // group), 16)
    x = torch.nn.functional.normalize(torch.randn(20, 32), dim=1)
    labels = [[3 * i, 99] for i in range(20)]
    lr = {"adam": 0.05, "sgd": 0.5, "momentum": 0.1}[optimizer]
    losses = [head.step(x, labels, lr)[1] for _ in range(60)]
    assert losses[-1] < 0.25 * losses[0] and int(head.steps) == 60


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_softmax_over_a_shortlist_is_that_of_autograd(optimizer):
    """Of the labels named in every step the values are torch.optim's; of those named in none, untouched."""
    torch.manual_seed(0)
    head = FusedHead(16, 50, fan_in=5, loss="softmax", optimizer=optimizer, group=16)
    columns = head.indices.long().repeat_interleave(16, 0)[:50]
    v, b = head.values.double().requires_grad_(), head.bias.double().requires_grad_()
    rule = (torch.optim.AdamW if optimizer == "adam" else torch.optim.SGD)([v, b], lr=0.05, weight_decay=0.0)
    before, shortlist = head.values.clone(), torch.tensor([[1, 2, 3, 1], [20, 3, -1, -1], [4, 5, -1, -1]])
    labels = [[2, 30], [3], []]
    members, named = [[1, 2, 3, 30], [3, 20]], [1, 2, 3, 4, 5, 20, 30]
    for _ in range(20):
        x = torch.randn(3, 16)
        xd = x.double().requires_grad_()
        z = xd @ torch.zeros(50, 16).double().scatter(1, columns, v).t() + b
        expected = sum(
            -z[row, list_].log_softmax(0)[[list_.index(label) for label in labels[row]]].mean()
            for row, list_ in enumerate(members)
        )
        rule.zero_grad()
        expected.backward()
        rule.step()
        grad_x, loss = head.step(x, labels, 0.05, shortlist=shortlist)
        torch.testing.assert_close(grad_x.double(), xd.grad, rtol=1e-4, atol=1e-5)
        assert abs(loss - float(expected.detach())) < 1e-4
    torch.testing.assert_close(head.values.double(), v.detach(), rtol=1e-4, atol=1e-5)
    others = [label for label in range(50) if label not in named]
    assert torch.equal(head.values[others], before[others])
    for wrong, match in (
        (None, "shortlist must be an int64 tensor for loss='softmax', got NoneType"),
        (torch.tensor([[50]] * 3), "shortlist must name labels below 50, got 50"),
        (torch.tensor([[1]]), r"shortlist must have shape \[3, size\], got \(1, 1\)"),
    ):
        with pytest.raises((TypeError, ValueError), match=match):
            head.step(torch.zeros(3, 16), labels, 0.1, shortlist=wrong)


def test_labels_come_as_lists_or_csr_and_a_copy_goes_on_alike():
    x, lists = torch.randn(3, 8), [[5, 1, 5], [], [9]]
    head = FusedHead(8, 10, fan_in=4, dtype=torch.bfloat16, optimizer="adam")
    other, loaded = copy.deepcopy(head), FusedHead(8, 10, fan_in=4, dtype=torch.bfloat16, optimizer="adam", seed=9)
    first = head.step(x, lists, 0.1)
    loaded.load_state_dict(head.state_dict())
    loaded.seed = head.seed
    second = other.step(x.double(), Csr.from_lists(lists, 10), 0.1)
    assert_same_bits(first[0], second[0])
    assert first[1] == second[1]
    for each in (head, other, loaded):
        each.step(x, lists, 0.1, scale=0.5)
    for name, tensor in head.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor) and torch.equal(loaded.state_dict()[name], tensor), name


def test_conversion_is_for_the_values_alone():
    """`model.bfloat16()` reaches a head inside too: its bias and its optimizer's state keep their bits."""
    torch.manual_seed(0)
    head = FusedHead(32, 40, fan_in=8, optimizer="adam")
    x = torch.randn(4, 32)
    head.step(x, [[1], [2], [3], [4]], 0.1)
    kept = [state.clone() for state in (head.bias, *head.states)]
    torch.nn.ModuleList([head]).bfloat16()
    assert head.values.dtype == torch.bfloat16
    for now, before in zip((head.bias, *head.states), kept, strict=True):
        assert_same_bits(now, before)
    gradient, loss = head.step(x, [[1], [2], [3], [4]], 0.1)
    assert gradient.isfinite().all() and loss == loss


def test_what_it_refuses(monkeypatch):
    head = FusedHead(8, 10, fan_in=4)
    before = copy.deepcopy(head.state_dict())
    for x, labels, match in (
        (torch.zeros(2, 7), [[], []], r"x must be floats \[batch, 8\]"),
        (torch.zeros(2, 8).long(), [[], []], "x must be floats"),
        (torch.zeros(2, 8), [[]], r"labels must be of shape \(2, 10\), got \(1, 10\)"),
        (torch.zeros(2, 8), [[10], []], "row 0 has the column 10"),
        (torch.zeros(1, 8), Csr.from_lists([[1]], 11), r"labels must be of shape \(1, 10\), got \(1, 11\)"),
    ):
        with pytest.raises(ValueError, match=match):
            head.step(x, labels, 0.1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in head.state_dict().items())
    for options, match in (
        ({"fan_in": 9}, "fan_in must be at most the width of 8, got 9"),
        ({"group": 3}, "group must be one of"),
        ({"optimizer": "lamb"}, "optimizer must be one of"),
        ({"loss": "mse"}, "loss must be"),
        ({"dtype": torch.float16}, "dtype must be"),
    ):
        with pytest.raises((ValueError, TypeError), match=match):
            FusedHead(8, 10, **{"fan_in": 4, **options})
    monkeypatch.setattr(memory_of, "free_memory", lambda: 10_000)
    with pytest.raises(MemoryError, match=r"labels=1,000 .* 28 bytes each, .* at most 357 fit"):
        FusedHead(8, 1000, fan_in=4)


MEASURED = """
import sys, torch
from gossamer.xmc import FusedHead
peak = lambda: next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
FusedHead(768, 100, fan_in=4).step(torch.randn(2, 768), [[1], []], 0.1)
before, (labels, batch) = peak(), map(int, sys.argv[1:])
head = FusedHead(768, labels, fan_in=32, dtype=torch.bfloat16)
x = torch.randn(batch, 768)
for _ in range(2):
    head.step(x, [[row, labels - 1] for row in range(batch)], 0.1)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
def test_memory_is_what_the_formula_says_and_no_logits():
    """A batch of 512 would have a gibibyte of logits."""
    labels, mib = 500_000, 2**20
    peaks = {}
    for batch in (32, 512):
        script = [sys.executable, "-c", MEASURED, str(labels), str(batch)]
        peaks[batch] = int(subprocess.run(script, capture_output=True, text=True, check=True).stdout)
    formula = labels * Layout(32, 2, 2, 0, 1, True).label
    assert peaks[32] <= 1.1 * formula + 64 * mib
    assert peaks[512] - peaks[32] <= 32 * mib
