"""Networks that are trained with skipping of zeros: Fixup's formula, its start, where its zeros are; what compacts."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gossamer as gs
from gossamer.models.fixup import FixupBottleneck, ShiftedConv2d


def stir(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter off its special starting value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2)])
def test_a_shifted_convolution_is_the_papers_formula(kernel: int, stride: int) -> None:
    layer = stir(ShiftedConv2d(5, 6, kernel, stride).double())
    x = torch.randn(2, 5, 7, 6, dtype=torch.float64, requires_grad=True)
    expected = F.conv2d(x + layer.before, layer.conv.weight, stride=stride, padding=kernel // 2) + layer.after
    inputs = (x, *layer.parameters())
    dy = torch.randn_like(expected)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    for got, wanted in zip(
        torch.autograd.grad(layer(x), inputs, dy), torch.autograd.grad(expected, inputs, dy), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_fixup_starts_as_its_shortcuts_and_scales_what_it_should() -> None:
    torch.manual_seed(0)
    net = gs.models.fixup_resnet50((3, 32, 32), 10, width=32)
    blocks = [m for m in net.modules() if isinstance(m, FixupBottleneck)]
    assert len(blocks) == 16
    x = torch.randn(2, 128, 8, 8).relu()
    assert torch.equal(blocks[1](x), x)  # no branch yet
    for block in blocks[4:]:
        for conv in (block.conv1.conv, block.conv2.conv):
            fan_out = conv.out_channels * conv.kernel_size[0] ** 2
            assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5 * 16**-0.25, rel=0.05)
    assert not net.classifier.weight.any() and not net.classifier.bias.any()


def densities_of_gradients(name: str, layers: int, **options) -> list[float]:
    """Nonzeros of the gradient at each convolution's output."""
    torch.manual_seed(0)
    net = stir(gs.models.build(name, (3, 32, 32), 10, **options))
    found = []

    def watch(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        output.register_hook(lambda dy: found.append(dy.ne(0).float().mean().item()))

    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == layers
    for conv in convs:
        conv.register_forward_hook(watch)
    net(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert len(found) == layers
    return found


def test_gradients_are_sparse_without_batchnorm_and_dense_with_it() -> None:
    # Every convolution of VGG and the two inner ones of each of 16 bottlenecks lie before a ReLU; those at a join share
    # its gradient, and so does the stem.
    assert max(densities_of_gradients("vgg16_plain", 13)) < 0.9
    assert max(densities_of_gradients("fixup_resnet50", 53, width=4)) < 0.95
    assert min(densities_of_gradients("resnet34", 36, width=4)) > 0.95


@pytest.mark.parametrize(("name", "options"), [("vgg16_plain", {}), ("resnet34", {"width": 16})])
def test_dead_channels_are_cut_out(name: str, options: dict) -> None:
    torch.manual_seed(0)
    net = gs.models.build(name, (3, 32, 32), 10, **options).eval()
    x = torch.randn(2, 3, 32, 32)
    graph = gs.compaction.ChannelGraph.build(net, x)
    keep = {group.name: torch.arange(group.channels) % 4 != 1 for group in graph.removable}
    gs.compaction.zero_channels_(net, graph, keep)
    small = gs.compact(net, x, check_latency=False)
    assert sum(p.numel() for p in small.model.parameters()) < 0.7 * sum(p.numel() for p in net.parameters())
    torch.testing.assert_close(small.model(x), net(x), rtol=1e-4, atol=1e-4)


def test_fixup_says_why_its_channels_stay() -> None:
    net = stir(gs.models.fixup_resnet50((3, 32, 32), 10, width=4)).eval()
    graph = gs.compaction.ChannelGraph.build(net, torch.randn(2, 3, 32, 32))
    assert graph.removable == ()
    assert "sum in stages.0.0.conv2 reduces over this axis" in graph.explain()
