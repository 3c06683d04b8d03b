"""Law: converting a model changes no parameter's numbers, strides, dtype or identity; it is undone wholly."""

import copy

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parameters_to_vector, prune

import gossamer as gs


class Gated(nn.Module):
    def __init__(self, dim=16, hidden=24):
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(dim, hidden), nn.Linear(dim, hidden)
        self.down_proj, self.act_fn = nn.Linear(hidden, dim), nn.SiLU()

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def convolutions():
    return nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(16, 16, 3, padding=1, groups=2), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 16),
    )  # fmt: skip


def features():
    return nn.Sequential(Gated(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))


IMAGES, ROWS = torch.Size((4, 8, 9, 9)), torch.Size((12, 16))


def thresholds(net, **options):
    return gs.nn.threshold(net, torch.randn(200, 16), 0.4, **options)


CONVERSIONS = {
    "skip_zeros": (convolutions, IMAGES, gs.nn.skip_zeros),
    "skip_zeros, packs kept": (convolutions, IMAGES, lambda net: gs.nn.skip_zeros(net, keep_packed=True)),
    "skip_zeros of linears": (features, ROWS, gs.nn.skip_zeros),
    "threshold": (features, ROWS, thresholds),
    "apply_thresholds": (features, ROWS, lambda net: gs.nn.apply_thresholds(net, {"1": 0.5})),
    "gated": (features, ROWS, gs.nn.gated),
    "gated and threshold": (features, ROWS, lambda net: (gs.nn.gated(net), thresholds(net))),
}


@pytest.fixture(params=CONVERSIONS)
def conversion(request):
    return CONVERSIONS[request.param]


def look(net):
    return [(name, id(p), p.data_ptr(), p.stride(), p.dtype, p._version) for name, p in net.named_parameters()]


def step(net, optimizer, shape, seed):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    def closure():
        optimizer.zero_grad()
        loss = F.mse_loss(net(x), torch.zeros(shape[0], 16))
        loss.backward()
        return loss

    optimizer.step(closure)


def test_parameters_stay_what_they_are(conversion):
    make, shape, convert = conversion
    net = make()
    before, numbers = look(net), copy.deepcopy(net.state_dict())
    convert(net)
    for training in (True, False):
        net.train(training)
        for _ in range(3):
            net(torch.randn(shape)).sum().backward()
        with torch.no_grad():
            net(torch.randn(1, *shape[1:]))
    assert look(net) == before
    assert all(torch.equal(value, numbers[name]) for name, value in net.state_dict().items())
    assert all(p.grad.stride() == p.stride() for p in net.parameters())


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, fused=True),
    "Adam": lambda p: torch.optim.Adam(p, 1e-2, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, 1e-2, fused=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 1e-2, fused=True),
    "LBFGS": lambda p: torch.optim.LBFGS(p, 0.1, max_iter=2),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["skip_zeros", "threshold"])
def test_an_optimizer_made_before_goes_on(name, optimizer):
    make, shape, convert = CONVERSIONS[name]
    torch.manual_seed(1)
    nets = [make() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    optimizers = [OPTIMIZERS[optimizer](net.parameters()) for net in nets]
    for seed in range(6):
        if seed == 3:
            convert(nets[0])
            if name == "threshold":  # the same function: gradients of more than 8 rows are dense
                assert type(nets[0][1]) is gs.nn.ThresholdLinear
        for net, each in zip(nets, optimizers, strict=True):
            step(net, each, shape, seed)
    for one, other in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-4)


def test_what_others_do_with_parameters_works(conversion, tmp_path):
    make, shape, convert = conversion
    net = make()
    convert(net)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    make().load_state_dict(load_file(tmp_path / "net.safetensors"))
    net(torch.randn(shape)).sum().backward()
    assert len(parameters_to_vector(net.parameters())) == sum(p.numel() for p in net.parameters())
    assert all(p.view(-1).shape == p.grad.view(-1).shape for p in net.parameters())
    last = list(net.modules())[-1]
    prune.l1_unstructured(last, "weight", 0.3)
    net(torch.randn(shape))
    assert float((last.weight == 0).float().mean()) > 0.2


def transposed(net):
    """As a model may come: some weights in another order."""
    for module in net.modules():
        if isinstance(module, nn.Linear):
            module.weight.data = module.weight.data.t().contiguous().t()
        if isinstance(module, nn.Conv2d) and module.groups == 1:
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
    return net


def skipping(net, **options):
    gs.nn.skip_zeros(net, **options)
    return lambda: gs.nn.unskip_zeros(net)


UNDOABLE = {
    "skip_zeros": (convolutions, IMAGES, skipping),
    "skip_zeros, channels_last": (convolutions, IMAGES, lambda net: skipping(net, channels_last=True)),
    "threshold": (features, ROWS, lambda net: thresholds(net).undo),
    "threshold, reordered": (features, ROWS, lambda net: thresholds(net, reorder=True).undo),
}


@pytest.mark.parametrize("lay", [lambda net: net, transposed], ids=["as made", "in other orders"])
@pytest.mark.parametrize("name", UNDOABLE)
def test_what_is_undone_is_undone_wholly(name, lay):
    make, shape, convert = UNDOABLE[name]
    net, x = lay(make()).eval(), torch.randn(shape)
    modules = dict(net.named_modules())

    def attributes():
        return {name: sorted(vars(module)) for name, module in net.named_modules()}

    y, before, text = net(x), attributes(), repr(net)
    strides, state = [p.stride() for p in net.parameters()], list(net.state_dict())
    undo = convert(net)
    net(x)
    with torch.no_grad():
        net(x[:1])
    undo()
    assert dict(net.named_modules()) == modules and repr(net) == text and attributes() == before
    assert [p.stride() for p in net.parameters()] == strides and list(net.state_dict()) == state
    torch.testing.assert_close(net(x), y)


def test_another_order_in_memory_is_asked_for_by_name():
    net = convolutions()
    gs.nn.skip_zeros(net, channels_last=True)
    assert all(
        module.weight.is_contiguous(memory_format=torch.channels_last)
        for module in net
        if isinstance(module, nn.Conv2d)
    )
    net, x = features(), torch.randn(1, 16)
    plain = thresholds(net)
    assert plain.saved == 0 and "reorder=True" in str(plain) and plain.sparsity == pytest.approx(0.4, abs=0.02)
    with torch.no_grad():
        y = net(x)
    report = gs.nn.apply_thresholds(net, plain.thresholds, reorder=True)
    assert net[1].weight.t().is_contiguous() and "reorder" not in str(report)
    with torch.no_grad():
        torch.testing.assert_close(net(x), y)
        assert net[1].density() < 1
    with pytest.raises(TypeError, match="reorder must be a bool, got 'yes'"):
        thresholds(net, reorder="yes")


@pytest.mark.parametrize("name", ["skip_zeros", "threshold", "threshold, reordered"])
def test_what_inference_mode_made_serves_afterwards(name):
    make, shape, convert = UNDOABLE[name]
    net, x = make(), torch.randn(1, *shape[1:])
    with torch.inference_mode():
        undo = convert(net)
        net(x)
        copied = copy.deepcopy(net)
        copied(x)
    for each in (net, copied):
        with torch.no_grad():
            each(x)
    net(torch.randn(shape)).sum().backward()
    assert all(p.grad is not None and not p.is_inference() for p in net.parameters())
    assert not any(tensor.is_inference() for tensor in net.buffers())
    undo()
    net(torch.randn(shape)).sum().backward()


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x):
        return x + self.down(self.up(x).relu())


SHARING = {
    "skip_zeros": (Residual, gs.nn.skip_zeros),
    "threshold": (Residual, thresholds),
    "threshold, reordered": (Residual, lambda net: thresholds(net, reorder=True)),
    "gated": (Gated, lambda net: (gs.nn.gated(net, reorder=True), thresholds(net, reorder=True))),
}


@pytest.mark.parametrize("name", SHARING)
def test_blocks_of_one_class_share_their_compiled_graphs(name):
    """Nothing that belongs to one layer, a key or a threshold, is a constant of a graph."""
    make, convert = SHARING[name]
    counted = []

    def backend(graph, inputs):
        counted.append(graph)
        return graph

    def graphs(net, x):
        torch.compiler.reset()
        counted.clear()
        for block in net:
            block.compile(fullgraph=True, backend=backend)
        with torch.no_grad():
            return net(x), len(counted)

    net = nn.Sequential(*(make() for _ in range(12)))
    for rows in (1, 12):
        x, ours = torch.randn(rows, 16), copy.deepcopy(net)
        _, before = graphs(copy.deepcopy(net), x)
        convert(ours)
        with torch.no_grad():
            expected = ours(x)
        y, found = graphs(ours, x)
        assert found == before
        torch.testing.assert_close(y, expected)
