"""Law: skip_mv and gated_mv on CUDA do what the reference does, without a device sync, in graphs, on every run.

Never run where there is no GPU; `docs/gpu-status.md` says on which device it last passed.
"""

import pytest
import torch

import gossamer as gs
from gossamer.kernels import reference
from gossamer.testing import assert_same_bits, assert_within, gamma

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = "cuda"
SHAPES = [(1, 37, 130), (2, 600, 100), (8, 4096, 1100), (11, 64, 520), (1, 11008, 4096), (3, 0, 7), (0, 7, 3)]
FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def triton():
    pytest.importorskip("triton", reason="triton is not installed: pip install gossamer[triton]")
    from gossamer.kernels import triton

    return triton


def sparse(*shape, dtype=torch.float32, density=0.3):
    generator = torch.Generator(DEVICE).manual_seed(sum(shape))
    kept = torch.rand(shape, device=DEVICE, generator=generator) < density
    return (torch.randint(-1, 2, shape, device=DEVICE, generator=generator) * kept).to(dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_the_reference(shape, dtype):
    rows, c, k = shape
    density = min(0.3, 100 / max(c, 1))  # sums stay exact in bfloat16
    x, gate, bias = sparse(rows, c, dtype=dtype, density=density), sparse(rows, k, dtype=dtype), sparse(k, dtype=dtype)
    w = sparse(c, k, dtype=dtype, density=1.0)
    w[(x == 0).all(0)] = torch.nan
    y, counts = triton().skip_mv(x, w, bias, 0.0)
    expected, expected_counts = reference.skip_mv(x, w, bias, 0.0)
    assert_same_bits(y + 0, expected + 0)
    assert_same_bits(counts, expected_counts)
    up = sparse(k, c, dtype=dtype, density=1.0)
    up[(gate == 0).all(0)] = torch.nan
    assert_same_bits(triton().gated_mv(x, up, bias, gate) + 0, reference.gated_mv(x, up, bias, gate) + 0)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
def test_real_numbers_are_within_the_bound_of_their_sums(stored):
    x = torch.randn(2, 11008, device=DEVICE).relu()
    w, gate = torch.randn(11008, 4096, device=DEVICE).to(stored), torch.randn(2, 4096, device=DEVICE).relu()
    exact, size = x.double() @ w.double(), x.double() @ w.double().abs()
    assert_within(triton().skip_mv(x, w, None, 0.0)[0], exact, gamma(11008, torch.float32) * size)
    bound = gamma(11009, torch.float32) * size * gate.double()
    assert_within(triton().gated_mv(x, w.t().contiguous(), None, gate), exact * gate.double(), bound)


def both(x, w, gate):
    return *triton().skip_mv(x, w, None, 0.5), triton().gated_mv(x, w, None, gate)


def test_no_device_sync_a_graph_follows_the_zeros_and_runs_agree():
    w = torch.randn(700, 700, device=DEVICE)
    x, gate = torch.randn(3, 700, device=DEVICE), torch.randn(3, 700, device=DEVICE).relu()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        both(x, w, gate)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        both(x, w, gate)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = both(x, w, gate)
    for scale in (0.0, 0.1, 1.0, 10.0):
        x.normal_().mul_(scale)
        gate.normal_().relu_()
        graph.replay()
        for got, expected in zip(results, both(x, w, gate), strict=True):
            assert_same_bits(got, expected)
        dense = torch.where(x.abs() > 0.5, x, 0).double() @ w.double()
        assert_within(results[0], dense, gamma(700, torch.float32) * (x.double().abs() @ w.double().abs()))


def test_gradcheck_twice():
    x, w, gate = (torch.randn(*s, device=DEVICE).double().requires_grad_() for s in ((3, 5), (5, 4), (3, 4)))
    for threshold in (0.0, 0.5):
        assert torch.autograd.gradcheck(lambda x, w, t=threshold: gs.ops.skip_mv(x, w, threshold=t), (x, w))
        assert torch.autograd.gradgradcheck(lambda x, w, t=threshold: gs.ops.skip_mv(x, w, threshold=t), (x, w))
    up = w.detach().t().contiguous().requires_grad_()
    assert torch.autograd.gradcheck(gs.ops.gated_mv, (x, up, gate))
    assert torch.autograd.gradgradcheck(gs.ops.gated_mv, (x, up, gate))
