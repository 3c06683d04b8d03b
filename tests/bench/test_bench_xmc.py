"""The suite of classifiers runs, and the dense head it compares with learns what a dense head learns."""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from gossamer import bench
from gossamer.bench.xmc import rivals
from gossamer.bench.xmc.dense_head import AdamHead, DenseHead
from gossamer.xmc.data import Csr


def test_every_section_runs_and_makes_its_tables():
    result = bench.run("xmc", bench.Settings(quick=True, reps=1, seeds=(0,)))
    for name, section in bench.sections("xmc").items():
        rows = result["sections"][name]["rows"]
        assert all(isinstance(row.get("rows", []), list) for row in rows)  # what the command prints candidates from
        assert rows and section.table.text(rows).count("\n") == len(rows) + 2
        for table in section.further.values():
            assert table.text(rows).count("\n") == len(rows) + 2
    (memory,) = result["sections"]["memory"]["rows"]
    assert memory["formula"] == 2000 * (16 * 6 + 4) and set(memory["seconds"]) >= {"step", "rewire", "top-5", "opened"}


@pytest.mark.parametrize("block", [3, 7, 100])
@pytest.mark.parametrize("product", [None, torch.mm])
@pytest.mark.parametrize("loss", ["bce", "hinge"])
def test_the_dense_rival_takes_the_same_step(loss, product, block):
    torch.manual_seed(0)
    weight, bias, x = torch.randn(20, 6), torch.randn(20), torch.randn(4, 6)
    labels = Csr.from_lists([[0, 19], [], [7], [3, 4, 5]], columns=20)
    targets = torch.tensor(labels.to_scipy().toarray())
    free = [each.clone().requires_grad_() for each in (weight, bias, x)]
    z = free[2] @ free[0].t() + free[1]
    if loss == "bce":
        total = binary_cross_entropy_with_logits(z, targets, reduction="sum")
    else:
        total = (1 - (2 * targets - 1) * z).clamp(min=0).square().sum()
    total.backward()
    head = DenseHead(weight.clone(), bias.clone(), loss=loss, block=block, product=product)
    grad_x = head.step(x, labels, 0.1)
    torch.testing.assert_close(grad_x, free[2].grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(head.weight, weight - 0.1 * free[0].grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(head.bias, bias - 0.1 * free[1].grad, rtol=1e-5, atol=1e-5)


def test_the_dense_head_of_a_classifier_is_a_linear_layer_with_adam():
    torch.manual_seed(0)
    layer = torch.nn.Linear(6, 20)
    head = AdamHead(6, 20, layer.bias.detach(), seed=0)
    head.weight.copy_(layer.weight.detach())
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    words = Csr(torch.tensor([0, 1, 1, 2]), torch.tensor([1, 0]), torch.tensor([2.0, 3.0]), (3, 2))
    labels = Csr.from_lists([[0, 19], [], [7]], columns=20)
    targets = torch.tensor(labels.to_scipy().toarray())
    for _ in range(3):
        x = torch.randn(3, 4, requires_grad=True)
        z = layer(torch.cat([x, torch.tensor(words.to_scipy().toarray())], 1))
        loss = binary_cross_entropy_with_logits(z, targets, reduction="sum") / 3
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        grad, found = head.step(x.detach(), labels, 0.1, features=words, scale=1 / 3)
        torch.testing.assert_close(grad, x.grad)
        assert found == pytest.approx(float(loss.detach()))
    torch.testing.assert_close(head.weight, layer.weight.detach())
    z = layer(torch.cat([x, torch.tensor(words.to_scipy().toarray())], 1))
    assert torch.equal(head.topk(x.detach(), 2, features=words)[1], z.topk(2).indices)


def test_a_program_that_is_absent_says_so(monkeypatch):
    monkeypatch.setenv(rivals.VARIABLE, "/nowhere/python")
    one = Csr(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1), (1, 2))
    assert "/nowhere/python" in rivals.run("napkinXC PLT", one, Csr.from_lists([[0]], 2), one)
