"""Law: skip_mv and gated_mv on CUDA do what the reference does, without a device sync, in graphs, on every run.

Never run where there is no GPU; `docs/gpu-status.md` says on which device it last passed.
"""

import pytest
import torch

import gossamer as gs
from gossamer.ops.registration import MODULES, load_kernel
from gossamer.testing import assert_same_bits, assert_within, gamma

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = "cuda"


def triton(op):
    pytest.importorskip("triton", reason="triton is not installed: pip install triton")
    return load_kernel("triton", MODULES[op], op)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
def test_real_numbers_are_within_the_bound_of_their_sums(stored):
    x = torch.randn(2, 11008, device=DEVICE).relu()
    w, gate = torch.randn(11008, 4096, device=DEVICE).to(stored), torch.randn(2, 4096, device=DEVICE).relu()
    exact, size = x.double() @ w.double(), x.double() @ w.double().abs()
    assert_within(triton("skip_mv")(x, w, None, 0.0)[0], exact, gamma(11008, torch.float32) * size)
    bound = gamma(11009, torch.float32) * size * gate.double()
    assert_within(triton("gated_mv")(x, w.t().contiguous(), None, gate), exact * gate.double(), bound)


def both(x, w, gate):
    return *triton("skip_mv")(x, w, None, 0.5), triton("gated_mv")(x, w, None, gate)


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
