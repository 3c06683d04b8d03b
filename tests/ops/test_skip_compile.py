"""Law: the operators pass opcheck, layers compile whole, and a compiled graph holds no choice."""

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

import gossamer as gs
import gossamer.ops  # defines torch.ops.gossamer
from gossamer.testing import assert_no_recompile, convolution

NAMES = ["3x3", "3x3, stride 2, odd", "1x1", "5x5, dilated", "odd channels"]
ops = torch.ops.gossamer


@pytest.fixture(autouse=True)
def forget_compiled_code():
    torch.compiler.reset()


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name, relu):
    """What is chosen may differ from call to call, so of "auto" all is checked but that two calls agree to the bit."""
    case = convolution(name)
    x, weight, bias = case.operands()
    if relu:  # as good a half as any
        weight = weight.contiguous(memory_format=torch.channels_last)
    geometry = [*case.stride, *case.padding, *case.dilation]
    rules = {"test_utils": ("test_schema", "test_faketensor", "test_autograd_registration")}
    graphs = {} if name in ("3x3", "3x3, stride 2, odd") else rules  # they take longest
    for mode, checks in (("input", graphs), ("auto", rules)):
        args = x, weight, bias, geometry, mode, relu, None, False, None
        opcheck(ops.skip_zeros.default, args, **checks)
        _, bits, nonzeros = ops.skip_zeros(*args)
        rest = x, weight, bits if relu else None, nonzeros, geometry, mode, None, False, None
        for want in ([True, True, True], [False, True, False]):
            opcheck(ops.skip_zeros_backward.default, (case.gradient(), *rest, want), **checks)


def test_opcheck_linear():
    x, weight, bias = torch.randn(20, 16), torch.randn(24, 16), torch.randn(24)
    for relu in (False, True):
        args = x, weight, bias, [], "input", relu, None, False, None
        opcheck(ops.skip_zeros.default, args)
        _, bits, nonzeros = ops.skip_zeros(*args)
        dy = torch.randn(20, 24)
        opcheck(
            ops.skip_zeros_backward.default,
            (dy, x, weight, bits if relu else None, nonzeros, [], "input", None, False, None, [True, True, True]),
        )


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("options", [{"skip": "input"}, {"skip": "input", "relu": True}, {"relu": True}, {}], ids=str)
def test_layers_compile_whole(options, compiler):
    site = gs.planner.Site()

    def ours(x, weight, bias, matrix):
        y = gs.ops.conv2d(x, weight, bias, 2, 1, site=site, **options)
        return gs.ops.linear(y.flatten(1), matrix, **options)

    def dense(x, weight, bias, matrix):
        cut = torch.relu if options.get("relu") else lambda y: y
        return cut(F.linear(cut(F.conv2d(x, weight, bias, 2, 1)).flatten(1), matrix))

    def step(function, seed):
        generator = torch.Generator().manual_seed(seed)
        inputs = [
            torch.randint(-3, 4, shape, generator=generator).float().requires_grad_()
            for shape in ((2, 16, 6, 6), (24, 16, 3, 3), (24,), (10, 216))
        ]
        y = function(*inputs)
        return y, *torch.autograd.grad(y.sum(), inputs)

    compiled = torch.compile(ours, fullgraph=True, backend=compiler)
    step(compiled, 0)
    with assert_no_recompile():
        for seed in range(1, 8):
            for one, two in zip(step(compiled, seed), step(dense, seed), strict=True):
                assert torch.equal(one, two)
    assert sum(site.stats()["forward"]["calls"].values()) == 8


def test_a_compiled_graph_chooses_at_every_call():
    site = gs.planner.Site()
    compiled = torch.compile(
        lambda x, weight: gs.ops.conv2d(x, weight, padding=1, site=site), fullgraph=True, backend="aot_eager"
    )
    weight = torch.randn(16, 16, 3, 3)
    for _ in range(12):
        compiled(torch.randn(1, 16, 8, 8).relu(), weight)
    calls = site.stats()["forward"]["calls"]
    assert calls["dense"] and calls["skip"] and sum(calls.values()) == 12


def test_a_refusal_is_recorded_while_compiling():
    site = gs.planner.Site()
    compiled = torch.compile(
        lambda x, weight: gs.ops.conv2d(x, weight, padding=1, site=site), fullgraph=True, backend="aot_eager"
    )
    x, weight = torch.randn(1, 3, 8, 8), torch.randn(16, 3, 3, 3)
    assert torch.equal(compiled(x, weight), F.conv2d(x, weight, padding=1))
    assert len(site.refused) == 1 and "3 input channels" in site.refused[0]


def test_sizes_can_be_symbolic():
    weight = torch.randint(-3, 4, (8, 16, 3, 3)).float()
    compiled = torch.compile(
        lambda x: gs.ops.conv2d(x, weight, padding=1, skip="input", relu=True),
        fullgraph=True,
        backend="aot_eager",
        dynamic=True,
    )
    for size in ((1, 16, 6, 7), (3, 16, 9, 5), (2, 16, 12, 12)):
        x = torch.randint(-3, 4, size).float()
        assert torch.equal(compiled(x), F.conv2d(x, weight, padding=1).relu())


def test_a_kept_pack_of_a_compiled_graph_is_made_anew_when_the_weight_changes():
    weight = torch.nn.Parameter(torch.randint(-3, 4, (8, 16, 3, 3)).float())
    compiled = torch.compile(
        lambda x, w: gs.ops.conv2d(x, w, padding=1, skip="input", keep_packed=True), fullgraph=True, backend="aot_eager"
    )
    x = torch.randint(-3, 4, (1, 16, 6, 6)).float()
    for _ in range(3):
        assert torch.equal(compiled(x, weight), F.conv2d(x, weight, padding=1))
        with torch.no_grad():
            weight.add_(1)
