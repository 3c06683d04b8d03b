"""The fused step of a classifier: equal to autograd with torch.optim, the same bits anyhow, and what it refuses."""

import itertools

import pytest
import torch

from gossamer import _native
from gossamer.kernels.counter import row_keys, slot_bits
from gossamer.ops.fan_in.step import STATES, fan_in_step, sorted_positives
from gossamer.testing import assert_same_bits

BACKENDS = ("reference", "cpu")


def problem(labels=37, width=29, k=5, batch=6, group=1, seed=0, dtype=torch.float32, optimizer="sgd", bias=True):
    generator = torch.Generator().manual_seed(seed)
    rows = -(-labels // group)
    indices = torch.rand(rows, width, generator=generator).argsort(1)[:, :k].sort(1).values
    values = torch.randn(labels, k, generator=generator).to(dtype)
    each = STATES[optimizer]
    states = [torch.zeros(labels, k) for _ in range(each)] + [torch.zeros(labels) for _ in range(each * bias)]
    return values, indices.to(torch.uint16), torch.randn(labels, generator=generator) if bias else None, states


def batch_of(labels, width, batch, seed):
    generator = torch.Generator().manual_seed(seed)
    y = (torch.rand(labels, batch, generator=generator) < 0.1).float()
    return torch.randn(batch, width, generator=generator), y, y.flatten().nonzero().squeeze(1)


def dense(values, indices, width, group):
    columns = indices.long().repeat_interleave(group, 0)[: len(values)]
    return values.new_zeros(len(values), width).scatter_add(1, columns, values)


def loss_of(loss, z, y):
    if loss == "bce":
        return torch.nn.functional.binary_cross_entropy_with_logits(z, y, reduction="sum")
    return (1 - (2 * y - 1) * z).clamp(min=0).square().sum()


def rule_of(optimizer, values, bias, decay):
    groups = [{"params": [values], "weight_decay": decay}, {"params": [bias], "weight_decay": 0.0}]
    if optimizer == "adam":
        return torch.optim.AdamW(groups, lr=0.01)
    return torch.optim.SGD(groups, lr=0.01, momentum=0.9 if optimizer == "momentum" else 0)


@pytest.mark.parametrize("group", [1, 16])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("loss", ["bce", "hinge"])
def test_fifty_steps_are_those_of_autograd_and_torch_optim(loss, optimizer, group):
    """Labels are no multiple of the group or of a vector; the hinge has labels outside the margin, decay moves them."""
    labels, width, k, batch, decay = 37, 29, 5, 6, 0.1
    values, indices, bias, states = problem(labels, width, k, batch, group, optimizer=optimizer)
    v, b = values.double().requires_grad_(), bias.double().requires_grad_()
    rule = rule_of(optimizer, v, b, decay)
    for step in range(1, 51):
        x, y, positives = batch_of(labels, width, batch, step)
        xd = x.double().requires_grad_()
        expected = loss_of(loss, dense(v, indices, width, group) @ xd.t() + b[:, None], y.double()) / batch
        rule.zero_grad()
        expected.backward()
        rule.step()
        grad_x, total = fan_in_step(
            x, values, indices, bias, states, positives, lr=0.01, step=step, loss=loss, optimizer=optimizer,
            group=group, weight_decay=decay, scale=1 / batch,
        )  # fmt: skip
        torch.testing.assert_close(grad_x.double(), xd.grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(total, expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(values.double(), v.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bias.double(), b.detach(), rtol=1e-4, atol=1e-5)


SHAPES = [(1, 1, 1, 1, 1), (3, 4, 4, 1, 1), (70, 33, 17, 65, 1), (70, 33, 33, 130, 64), (40, 50, 16, 33, 16),
          (33, 9, 1, 7, 32), (5, 6, 2, 0, 1), (0, 6, 2, 3, 16)]  # fmt: skip


@pytest.mark.parametrize("isa", _native.available_isas())
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_instruction_set_is_the_reference(shape, isa):
    labels, width, k, batch, group = shape
    before = _native.isa()
    _native.set_isa(isa)
    try:
        for loss, optimizer in itertools.product(("bce", "hinge"), ("sgd", "adam")):
            found = []
            for backend in BACKENDS:
                values, indices, bias, states = problem(labels, width, k, batch, group, optimizer=optimizer)
                wide = indices.to(torch.int32) if group == 1 else indices
                x, _, positives = batch_of(labels, width, batch, 3)
                out = fan_in_step(
                    x, values, wide, bias, states, positives, lr=0.1, step=1, loss=loss, optimizer=optimizer,
                    group=group, backend=backend,
                )  # fmt: skip
                found.append([*out, values, bias, *states])
            for reference, got in zip(*found, strict=True):
                torch.testing.assert_close(got, reference, rtol=2e-4, atol=2e-5)
    finally:
        _native.set_isa(before)


@pytest.mark.parametrize("group", [1, 16])
def test_bits_do_not_depend_on_threads(group):
    """Of so many labels that there are parts enough to be dealt out."""
    labels, width, k, batch = 9000, 64, 8, 33
    x, _, positives = batch_of(labels, width, batch, 1)
    first = None
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        values, indices, bias, states = problem(labels, width, k, batch, group, 2, torch.bfloat16, "adam")
        grad_x, loss = fan_in_step(
            x, values, indices, bias, states, positives, lr=0.1, step=7, optimizer="adam", group=group
        )
        found = [grad_x, loss, values, bias, *states]
        for got, expected in zip(found, first or found, strict=True):
            assert_same_bits(got, expected)
        first = first or found
    torch.set_num_threads(1)


def test_bfloat16_is_rounded_by_the_counter_alone_and_right_on_average():
    """Both backends round alike, bit for bit, and half of an update happens half of the time."""
    labels, k = 4000, 8
    indices = torch.arange(k).expand(labels, k).contiguous().to(torch.uint16)
    x = torch.full((1, k), -(2.0**-9))  # hinge of a positive with z = 0: gradient -2 x, update 2 lr x
    found = []
    for backend in BACKENDS:
        values = torch.ones(labels, k, dtype=torch.bfloat16)
        values[:, ::2] = -1  # so that z = 0
        fan_in_step(x, values, indices, None, [], torch.arange(labels), lr=0.5, step=3, loss="hinge", backend=backend)
        found.append(values)
    assert_same_bits(found[0], found[1])
    moved = (found[0][:, 1::2] != 1).float().mean()  # 1 - 2^-9 lies half way between two bfloat16
    assert abs(float(moved) - 0.5) < 0.02
    bits = slot_bits(row_keys(1, 2, torch.arange(3000)), 10)
    assert bits.unique().numel() > 29990 and abs(float(bits.double().mean()) / 2**31 - 1) < 0.02


@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_logits_give_finite_numbers_and_nan_is_seen(backend):
    values, indices = torch.tensor([[80.0], [-80.0], [1e30]]), torch.zeros(3, 1, dtype=torch.uint16)
    x = torch.tensor([[1.0], [-1.0]])
    for positives in (torch.tensor([], dtype=torch.int64), torch.arange(6)):
        grad_x, loss = fan_in_step(
            x, values[:2].clone(), indices[:2], None, [], positives[positives < 4], lr=0.1, step=1, backend=backend
        )
        assert bool(loss.isfinite()) and bool(grad_x.isfinite().all()) and abs(float(loss) - 160) < 1e-3
    for loss in ("bce", "hinge"):
        new = torch.full((1, 1), torch.nan)
        assert fan_in_step(x, new, indices[:1], None, [], torch.tensor([0]), lr=0.1, step=1, loss=loss)[1].isnan()


def test_a_label_outside_the_margin_is_left_alone_and_one_inside_is_not():
    values = torch.tensor([[-1.0], [-0.5], [2.0]], dtype=torch.bfloat16)
    indices, x = torch.zeros(3, 1, dtype=torch.uint16), torch.tensor([[1.0]])
    grad_x, loss = fan_in_step(x, values, indices, None, [], torch.tensor([2]), lr=0.5, step=1, loss="hinge")
    assert values.tolist() == [[-1.0], [-1.0], [2.0]] and float(loss) == 0.25 and grad_x.tolist() == [[-0.5]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_refused_changes_nothing(backend):
    values, indices, bias, states = problem(optimizer="momentum")
    x, _, positives = batch_of(37, 29, 6, 0)
    before = [each.clone() for each in (values, bias, *states)]

    def step(**changes):
        given = {"values": values, "indices": indices, "bias": bias, "states": states, "positives": positives}
        given |= {"lr": 0.1, "step": 1, "optimizer": "momentum", "backend": backend} | changes
        fan_in_step(given.pop("x", x), **given)

    broken = indices.to(torch.int32)
    broken[36, 4] = 29
    far = torch.tensor([37 * 6])
    # One that is none, or that float32 has not, would be in every weight.
    refused = {
        "lr": (torch.nan, torch.inf, 1e300, -1, None, "0.1"), "scale": (torch.nan, 1e300, None),
        "weight_decay": (torch.nan, -1.0), "eps": (torch.nan, -1.0), "step": ("x", 1.5, True), "seed": (2**63, 0.5),
        "betas": (0.9, (0.9,), (1.0, 0.9), (0.9, -0.1), (torch.nan, 0.9)), "states": (None, [None, None], states[0]),
        "positives": (None,), "values": (values.to_sparse(),), "bias": (bias.to_sparse(), [1.0]),
    }  # fmt: skip
    numbers = [
        ({name: wrong}, (TypeError, ValueError), rf"^{name}\S* must be ") for name in refused for wrong in refused[name]
    ]
    for changes, error, match in (
        ({"indices": broken}, ValueError, "indices"),
        ({"indices": broken.where(broken != 29, -1)}, ValueError, "indices"),
        ({"positives": far}, ValueError, "positives"),
        ({"positives": -far}, ValueError, "positives"),
        ({"positives": torch.tensor([5, 5])}, ValueError, "positives must ascend"),
        ({"positives": far.int()}, TypeError, "positives must have dtype torch.int64, got torch.int32"),
        ({"x": x[:, :28]}, ValueError, "indices"),
        ({"x": x.double()}, TypeError, "x must have dtype torch.float32, got torch.float64"),
        ({"group": 8}, ValueError, "group must be one of 1, 16, 32, 64, got 8"),
        ({"group": 16}, ValueError, r"indices must have the shape \(3, 5\) for 37 labels in groups of 16"),
        ({"states": states[:1]}, ValueError, "states must be float32 of the shapes"),
        ({"loss": "log"}, ValueError, "loss must be one of 'bce', 'hinge', got 'log'"),
        ({"optimizer": "lion"}, ValueError, "optimizer must be one of"),
        ({"step": 0}, ValueError, "step must be an integer of at least 1, got 0"),
        *numbers,
    ):
        with pytest.raises(error, match=match):
            step(**changes)
    for now, was in zip((values, bias, *states), before, strict=True):
        assert_same_bits(now, was)
    with pytest.raises(ValueError, match="labels of row 1 must be at least 0 and below 37, got 37"):
        sorted_positives(torch.tensor([0, 1, 3]), torch.tensor([36, 2, 37]), 37)


@pytest.mark.slow
def test_labels_beyond_two_to_the_24():
    """A label's number is never a float."""
    labels = 2**24 + 40
    values, indices = torch.zeros(labels, 1, dtype=torch.bfloat16), torch.zeros(labels, 1, dtype=torch.uint16)
    for label in (2**24 + 1, 2**24 + 3, labels - 1):
        values.fill_(-1)
        fan_in_step(
            torch.ones(1, 1), values, indices, None, [], torch.tensor([label]), lr=0.5, step=1, loss="hinge",
        )  # fmt: skip
        assert (values != -1).nonzero().tolist() == [[label, 0]]
