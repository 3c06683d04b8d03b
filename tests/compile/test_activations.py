"""Zeros of activations: found in graphs of Dynamo, skipped at run time, with the answers of eager."""

import copy
import gc

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from torch import nn
from torch._dynamo.backends.debugging import aot_eager
from torch._inductor.compile_fx import compile_fx

from gossamer.compile.zeros import activations
from gossamer.compile.zeros.activations import rewrite
from gossamer.ops import closed

ROWS, INNER, OUTER = 48, 64, 40


def as_it_is(gm, inputs):
    return gm


class Compiled:
    """A function compiled with the pass, and what the pass found. Zeros decide, not times.

    Graphs run as the pass leaves them. AOTAutograd and inductor, which take longer than all else, come into some tests.
    """

    def __init__(self, function, inner=as_it_is, **options):
        self.findings, self.inner, self.options = [], inner, options
        self.counter = torch._dynamo.testing.CompileCounterWithBackend(self.backend)
        self.call = torch.compile(function, backend=self.counter, fullgraph=True)

    def backend(self, gm, inputs):
        self.findings += rewrite(gm, **self.options)
        return self.inner(gm, inputs)

    def __call__(self, *args, **kwargs):
        return self.call(*args, **kwargs)


@pytest.fixture(autouse=True)
def small_and_decided_by_density(monkeypatch):
    monkeypatch.setattr(activations, "LEAST", 0)
    torch._dynamo.reset()
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch._dynamo.reset()


def top_k(x):
    best = x.topk(8)
    return torch.zeros_like(x).scatter(-1, best.indices, best.values)


def written_in_place(x):
    h = x.clone()
    h.relu_()
    return h


def masked_later(x):
    h = x + 1
    h.masked_fill_(x < 0.5, 0.0)
    return h


MAKERS = {
    "relu": (F.relu, "relu"),
    "relu method": (lambda x: x.relu(), "relu"),
    "relu in place": (lambda x: F.relu(x * 2, inplace=True), "relu"),
    "written in place": (written_in_place, "relu"),
    "dropout in evaluation": (lambda x: F.dropout(x.relu(), 0.3, False), "relu"),
    "views": (lambda x: x.relu().view(4, -1, INNER).contiguous(), "relu"),
    "transposed twice": (lambda x: x.relu().t().t(), "relu"),
    "squared": (lambda x: F.relu(x) ** 2, "relu"),
    "square": (lambda x: F.relu(x).square(), "relu"),
    "relu6": (F.relu6, "relu6"),
    "threshold": (lambda x: F.threshold(x, 0.5, 0.0), "threshold"),
    "hardtanh": (lambda x: F.hardtanh(x, 0.0, 2.0), "hardtanh"),
    "clamp": (lambda x: x.clamp(min=0), "clamp"),
    "own comparison": (lambda x: x * (x > 0), "mask"),
    "mask of floats": (lambda x: x * (x > 0.5).float(), "mask"),
    "masked_fill": (lambda x: x.masked_fill(x < 0.3, 0), "mask"),
    "masked_fill in place": (masked_later, "mask"),
    "where": (lambda x: torch.where(x > 0, x, 0.0), "mask"),
    "where zeros first": (lambda x: torch.where(x < 0, torch.zeros_like(x), x), "mask"),
    "regated": (lambda x: F.relu(x) * x.cos(), "relu"),
    "top-k": (top_k, "top-k"),
    "gelu of relu": (lambda x: F.gelu(F.relu(x)), "relu"),
    "a part of it": (lambda x: torch.cat([F.relu(x), F.relu(-x)], -1)[..., INNER:], "relu"),
}

PRODUCTS = {
    "linear": lambda h, w, b: F.linear(h, w, b),
    "matmul": lambda h, w, b: h @ w.t() + b,
    "mm": lambda h, w, b: torch.mm(h, w.t().contiguous()),
    "addmm": lambda h, w, b: torch.addmm(b, h, w.t()),
    "mv": lambda h, w, b: torch.mv(w, h[0]),
    "matrix times a vector": lambda h, w, b: w @ h[3],
}


def close(found, expected):
    scale = max(float(expected.detach().abs().max()), 1.0)
    assert torch.allclose(found, expected, rtol=0, atol=1e-5 * scale), float((found - expected).abs().max())


def weights(outer=OUTER, inner=INNER):
    return torch.randn(outer, inner) / 8, torch.randn(outer)


def passes(finding):
    """Pass -> the algorithm that it takes, as the finding says it."""
    lines = [line for line in finding.gain().splitlines() if not line.startswith((" ", "torch"))]
    return dict(line.split(",")[0].split(": ") for line in lines if ", " in line)


@pytest.mark.parametrize("maker", MAKERS)
def test_zeros_are_found_and_skipped(maker):
    function, kind = MAKERS[maker]
    (w, b), x = weights(), torch.randn(ROWS, INNER)
    ours = Compiled(lambda x: F.linear(function(x), w, b))
    with torch.no_grad():
        close(ours(x), F.linear(function(x), w, b))
    (finding,) = ours.findings
    assert (finding.zeros, finding.axes, finding.operator) == (kind, ("t", "k"), "linear"), finding
    assert passes(finding) == {"forward": "skip"}


@pytest.mark.parametrize("product", PRODUCTS)
def test_products_however_they_are_spelled(product):
    function = PRODUCTS[product]
    (w, b), x = weights(), torch.randn(ROWS, INNER)
    ours = Compiled(lambda x, w, b: function(x.relu(), w, b), aot_eager, keep_packed=True)
    with torch.no_grad():
        close(ours(x, w, b), function(x.relu(), w, b))
    (finding,) = ours.findings
    assert finding.zeros == "relu" and passes(finding) == {"forward": "skip"}, finding


def overwritten(x):
    h = F.relu(x)
    h.add_(1.0)
    return h


def overwritten_through_a_view(x):
    h = F.relu(x)
    h.view(-1).sub_(0.5)
    return h


DENSE = {
    "gelu": (F.gelu, "gelu, which makes no zeros"),
    "silu": (F.silu, "silu, which makes no zeros"),
    "from outside": (lambda x: x, "outside"),
    "softmax": (lambda x: x.relu().softmax(-1), "exp(0) is not 0"),
    "residual": (lambda x: x.relu() + x, "all its terms"),
    "exp": (lambda x: x.relu().exp(), "not 0 at 0"),
    "cos through a view": (lambda x: x.relu().cos().view_as(x), "not 0 at 0"),
    "normed": (lambda x: F.layer_norm(x.relu(), (INNER,)), "shifts"),
    "clamp above": (lambda x: x.relu().clamp(min=0.5), "not known to keep"),
    "overwritten": (overwritten, "writes into it in place"),
    "overwritten through a view": (overwritten_through_a_view, "writes into it in place"),
    "one part without": (lambda x: torch.cat([F.relu(x), x], -1)[..., :INNER], "not known to keep"),
    "power 0": (lambda x: x.relu() ** 0, "not known to keep"),
}


@pytest.mark.parametrize("case", DENSE)
def test_no_zeros_stay_dense_and_say_why(case):
    function, why = DENSE[case]
    (w, b), x = weights(), torch.randn(ROWS, INNER)
    ours = Compiled(lambda x: F.linear(function(x), w, b))
    with torch.no_grad():
        close(ours(x), F.linear(function(x), w, b))
    (finding,) = ours.findings
    assert finding.choice == "dense" and finding.gain is None and why in finding.why, finding


REFUSED = {
    "half floats": (lambda x: F.linear(x.bfloat16().relu(), torch.ones(8, INNER, dtype=torch.bfloat16)), "bfloat16"),
    "a batch of weights": (lambda x: torch.bmm(x.relu()[None], torch.ones(1, INNER, 3)), "a weight of its own"),
    "few channels": (lambda x: F.linear(x.relu()[:, :5], torch.ones(8, 5)), "5 input channels"),
    "a scaled sum": (lambda x: torch.addmm(torch.ones(8), x.relu(), torch.ones(INNER, 8), beta=2), "scaled"),
    "groups": (lambda x: F.conv2d(x.relu().view(1, 16, 12, 16), torch.ones(16, 8, 3, 3), groups=2), "groups=2"),
    "one dimension": (lambda x: F.conv1d(x.relu().view(1, 16, -1), torch.ones(16, 16, 3)), "conv1d"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_kernel_takes_stays_dense(case):
    function, why = REFUSED[case]
    x = torch.randn(ROWS, INNER)
    ours = Compiled(function)
    with torch.no_grad():
        close(ours(x).float(), function(x).float())
    finding = ours.findings[-1]
    assert finding.choice == "dense" and finding.zeros == "relu" and why in finding.why, finding


def test_little_work_stays_dense(monkeypatch):
    monkeypatch.setattr(activations, "LEAST", 1 << 24)
    (w, b), x = weights(), torch.randn(ROWS, INNER)
    ours = Compiled(lambda x: F.linear(x.relu(), w, b))
    with torch.no_grad():
        ours(x)
    assert "too little work" in ours.findings[0].why


def test_a_marked_value_is_a_source():
    (w, b), x = weights(), torch.randn(ROWS, INNER).relu()
    ours = Compiled(lambda x: F.linear(x, w, b), sources={"l_x_"})
    with torch.no_grad():
        close(ours(x), F.linear(x, w, b))
    assert ours.findings[0].zeros == "marked" and passes(ours.findings[0]) == {"forward": "skip"}


class FeedForward(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.up, self.down, self.dropout = nn.Linear(INNER, 96), nn.Linear(96, INNER), dropout

    def forward(self, x):
        return self.down(F.dropout(F.relu(self.up(x)), self.dropout, self.training))


@pytest.mark.parametrize("relu", [F.relu, lambda h: F.relu(h, inplace=True)], ids=["new", "in place"])
def test_training_skips_in_both_backward_passes(relu):
    eager = FeedForward()
    eager.forward = lambda x: eager.down(relu(eager.up(x))).add_(x)  # a result may be written into
    mine = copy.deepcopy(eager)
    mine.forward = lambda x: mine.down(relu(mine.up(x))).add_(x)
    ours = Compiled(mine, aot_eager)
    for _ in range(3):
        x = torch.randn(4, 12, INNER, requires_grad=True)
        other = x.detach().clone().requires_grad_()
        eager(x).square().sum().backward()
        ours(other).square().sum().backward()
        close(other.grad, x.grad)
        for one, two in zip(mine.parameters(), eager.parameters(), strict=True):
            close(one.grad, two.grad)
            with torch.no_grad():
                one.sub_(one.grad, alpha=1e-3), two.sub_(two.grad, alpha=1e-3)
    up, down = ours.findings
    assert (up.zeros, up.axes) == ("relu", ("t", "o")) and "gradient" in up.why
    assert passes(up) == {"forward": "dense", "input": "skip", "weight": "skip_dy"}
    assert passes(down) == {"forward": "skip", "input": "dense", "weight": "skip_x"}
    assert ours.counter.frame_count == 1


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_convolutions(order):
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(24, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 8, 1, bias=False),
    ).eval()  # fmt: skip
    x = torch.randn(2, 16, 20, 20).contiguous(memory_format=order)
    ours = Compiled(net, aot_eager)
    with torch.no_grad():
        close(ours(x), net(x))
    first, *others = ours.findings
    assert first.choice == "dense" and [each.axes for each in others] == [("n", "m")] * 2
    assert [passes(each)["forward"] for each in others] == ["dense", "skip"]  # a maximum of four is seldom 0


def test_shapes_may_change_without_a_graph_for_each():
    net = FeedForward().eval()
    ours = Compiled(net, aot_eager, keep_packed=True)
    with torch.no_grad():
        for rows in (9, 17, 5, 1, 8, 100, 33, 2):
            x = torch.randn(rows, INNER)
            close(ours(x), net(x))
    assert ours.counter.frame_count <= 3  # one fixed, one for every number, one for a single row


def test_inductor_takes_graphs_of_any_number_of_rows():
    net = FeedForward().eval()
    ours = Compiled(net, compile_fx, keep_packed=True)
    with torch.no_grad():
        for rows in (9, 5, 100):
            x = torch.randn(rows, INNER)
            torch._dynamo.mark_dynamic(x, 0)
            close(ours(x), net(x))
    assert ours.counter.frame_count == 1


@pytest.mark.parametrize("rows", [1, 5])
def test_few_rows_need_a_weight_by_input(rows):
    net, x = FeedForward().eval(), torch.randn(rows, INNER)
    before = [(each.data_ptr(), each.stride()) for each in net.parameters()]
    with torch.no_grad():
        plain, kept = Compiled(net), Compiled(net, keep_packed=True)
        for ours in (plain, kept):
            for _ in range(2):
                close(ours(x), net(x))
                net.down.weight.mul_(1.5)  # a change that torch counts is seen
                close(ours(x), net(x))
            torch._dynamo.reset()
    assert before == [(each.data_ptr(), each.stride()) for each in net.parameters()]
    assert plain.findings[1].choice == "dense" and "stored by output channel" in plain.findings[1].why
    assert passes(kept.findings[1]) == {"forward": "skip"}


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(INNER, 96), nn.Linear(INNER, 96), nn.Linear(96, INNER)
        nn.init.constant_(self.gate.bias, -1.0)

    def forward(self, x):
        up = self.up(x)  # before its gate
        return self.down(up * F.relu(self.gate(x)))


@pytest.mark.parametrize("rows", [(1,), (2, 3), (20,)])
def test_few_rows_leave_out_closed_neurons(monkeypatch, rows):
    monkeypatch.setattr(activations, "LEAST_WEIGHT", 0)
    monkeypatch.setattr(closed, "LEAST", 0)
    net, x = Gated().eval(), torch.randn(*rows, INNER)
    ours = Compiled(net, keep_packed=True)
    with torch.no_grad():
        for _ in range(2):
            close(ours(x), net(x))
            net.gate.weight.neg_()  # a change that torch counts is seen
    up, gate, down = ours.findings
    if rows == (20,):
        assert up.choice == gate.choice == "dense" and passes(down)
        return
    assert (up.zeros, up.axes) == (gate.zeros, gate.axes) == ("relu", ("t", "o"))
    assert passes(up) == passes(gate) == {"decode": "closed"} and passes(down) == {"forward": "skip"}


def test_closed_neurons_where_rows_change_or_gradients_flow(monkeypatch):
    monkeypatch.setattr(activations, "LEAST_WEIGHT", 0)
    monkeypatch.setattr(closed, "LEAST", 0)
    net = Gated().eval()
    ours = Compiled(net, aot_eager, keep_packed=True)
    with torch.no_grad():
        for rows in (2, 5, 30, 8):
            x = torch.randn(rows, INNER)
            close(ours(x), net(x))
    assert ours.counter.frame_count == 2 and "decode" in passes(ours.findings[-2])
    found = torch.autograd.grad(ours(x).sum(), net.gate.weight)[0]
    close(found, torch.autograd.grad(net(x).sum(), net.gate.weight)[0])


def test_a_site_lives_as_long_as_its_graph():
    (w, b), x = weights(), torch.randn(ROWS, INNER)
    ours = Compiled(lambda x: F.linear(x.relu(), w, b))
    with torch.no_grad():
        ours(x)
        ours.findings.clear()
        gc.collect()
        close(ours(x), F.linear(x.relu(), w, b))


def test_a_copy_of_a_graph_has_the_same_sites():
    (w, b), x, copies = weights(), torch.randn(ROWS, INNER), []

    def copied(gm, inputs):
        copies.append(copy.deepcopy(gm))
        return aot_eager(gm, inputs)

    ours = Compiled(lambda x: F.linear(x.relu(), w, b), copied)
    with torch.no_grad():
        ours(x)
        torch._dynamo.reset()
        del ours
        gc.collect()
        close(copies[0](x, w, b)[0], F.linear(x.relu(), w, b))


def opt(**changes):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "ffn_dim": 128, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 99}
    config = transformers.OPTConfig(**sizes, word_embed_proj_dim=32, max_position_embeddings=64, **changes)
    return transformers.OPTForCausalLM(config)


def test_a_real_decoder():
    model = opt().eval()
    ours = Compiled(model)
    with torch.no_grad():
        for length in (12, 20):
            tokens = torch.randint(99, (2, length))
            close(ours(tokens).logits, model(tokens).logits)
    found = [each for each in ours.findings if each.choice != "dense"]
    assert len(found) == ours.counter.frame_count and {each.zeros for each in found} == {"relu"}
    assert passes(found[-1]) == {"forward": "skip"}


def test_a_real_decoder_trains():
    eager = opt(dropout=0.0, attention_dropout=0.0)
    mine = copy.deepcopy(eager)
    ours = Compiled(mine, aot_eager)
    tokens = torch.randint(99, (2, 16))
    eager(tokens, labels=tokens).loss.backward()
    ours(tokens, labels=tokens).loss.backward()
    for one, two in zip(mine.parameters(), eager.parameters(), strict=True):
        close(one.grad, two.grad)
    skipped = [passes(each) for each in ours.findings if each.gain]
    assert sum(each["input"] == "skip" for each in skipped) == sum(each["forward"] == "skip" for each in skipped) == 1
