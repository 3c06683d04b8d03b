"""Law: what stands for several tensors or for a derivative is refused, by the name of the op or module."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacrev, jvp, vmap

import gossamer as gs
from gossamer import ops

P = gs.Pattern.full((4, 4), (2, 2))
V, D, W, IDS = torch.randn(4, 2, 2), torch.randn(4, 4), torch.randn(3, 4, 4), torch.tensor([0, 2, 1, -1])
X = torch.randn(4, 4)
INDICES, POSITIVES = torch.tensor([[0, 1], [1, 2]], dtype=torch.uint16), torch.tensor([1])
POOL, BATCH = ops.PagePool.allocate(1, 1, 16, sketched=True), ops.Batch.of([1], [1], [[0]])
OPS = {
    "ops.dsd": lambda x: ops.dsd(V, P, x),
    "ops.dds": lambda x: ops.dds(x, V, P),
    "ops.sdd": lambda x: ops.sdd(x, D, P),
    "ops.gather": lambda x: ops.gather(x, P),
    "ops.scatter": lambda x: ops.scatter(V * x[0, 0], P),
    "ops.matmul": lambda x: ops.matmul(x, D, axis="m"),
    "ops.matmul, planned": lambda x: ops.matmul(x, D),
    "ops.grouped_matmul": lambda x: ops.grouped_matmul(x, W, IDS),
    "ops.skip_mv": lambda x: ops.skip_mv(x, D, threshold=0.1),
    "ops.gated_mv": lambda x: ops.gated_mv(x, D, D),
    "nn.BlockSparseLinear": gs.nn.BlockSparseLinear(4, 4, block=2, density=1.0),
    "nn.Experts": gs.nn.Experts(4, 4, experts=2),
    "ops.matmul, in a module": gs.nn.ReLUFeedForward(4, 4),
    "nn.BlockSparseAttention": lambda x, module=gs.nn.BlockSparseAttention(4, 2, P): module(x.unsqueeze(0)),  # noqa: B008
}
WITHOUT_GRADIENT = {
    "ops.detect": lambda x: gs.detect(x).indices,
    **{
        f"ops.page_scores, {by}": lambda x, by=by: ops.page_scores(x.view(1, 1, 16), POOL, BATCH, by=by)
        for by in ("keys", "extremes", "moments")
    },
    "ops.page_choose": lambda x: ops.page_choose(x.view(1, 4, 4), BATCH, 1),
    "ops.page_append": lambda x: ops.page_append(x.view(1, 1, 16), x.view(1, 1, 16), POOL, BATCH),
    "ops.page_attention": lambda x: ops.page_attention(x.view(1, 1, 16), POOL, BATCH),
    "ops.fan_in_topk": lambda x: ops.fan_in_topk(x, x[:2, :2], INDICES, 1)[0],
    "ops.fan_in_step": lambda x: ops.fan_in_step(x, x[:2, :2], INDICES, None, [], POSITIVES, lr=0.1, step=1)[0],
    "ops.fan_in_rewire": lambda x: ops.fan_in_rewire(x[:2, :2], INDICES, 4, fraction=0.5),
}


def batched(call):
    x = X.clone().requires_grad_()
    y = call(x)
    return torch.autograd.grad(y, x, torch.randn(2, *y.shape), is_grads_batched=True)


def dual(call):
    with forward_ad.dual_level():
        return call(forward_ad.make_dual(X, X))


TRANSFORMS = {
    "vmap": lambda call: vmap(call)(X.expand(2, 4, 4)),
    "grad": lambda call: grad(lambda x: call(x).sum())(X),
    "jacrev": lambda call: jacrev(call)(X),
    "vectorize": lambda call: torch.autograd.functional.jacobian(call, X, vectorize=True),
    "is_grads_batched": batched,
    "jvp": lambda call: jvp(call, (X,), (X,)),
    "dual numbers": dual,
}


FORWARD = [transform for transform in TRANSFORMS if transform not in ("vectorize", "is_grads_batched")]


@pytest.mark.parametrize("transform", FORWARD)
@pytest.mark.parametrize("name", WITHOUT_GRADIENT)
def test_what_has_no_gradient_says_no_as_well(name, transform):
    """It is asked of what was given: what an op detaches has lost its tangent, and zeros were the answer."""
    said = "no forward-mode derivative" if transform in ("jvp", "dual numbers") else "cannot be transformed"
    with pytest.raises(RuntimeError, match=rf"gossamer\.{name.split(',')[0]} .*{said}"):
        TRANSFORMS[transform](WITHOUT_GRADIENT[name])


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", OPS)
def test_every_op_and_module_says_no(name, transform):
    said = "no forward-mode derivative" if transform in ("jvp", "dual numbers") else "cannot be transformed"
    # In a backward pass it is an op that meets the batch.
    said_by = "ops" if transform in ("vectorize", "is_grads_batched") else name.split(",")[0]
    with pytest.raises(RuntimeError, match=rf"gossamer\.{said_by}.*{said}"):
        TRANSFORMS[transform](OPS[name])


def test_ensembles_of_modules_are_refused():
    """Stacked parameters and buffers, as torch.func.stack_module_state gives them."""
    layers = [gs.nn.BlockSparseLinear(4, 4, block=2, density=1.0) for _ in range(2)]
    stacked = torch.func.stack_module_state(layers)
    with pytest.raises(RuntimeError, match="BlockSparseLinear cannot be transformed"):
        vmap(lambda state, buffers: functional_call(layers[0], (state, buffers), (X,)))(*stacked)


def test_what_needs_no_kernel_is_transformed():
    top, run = gs.nn.StatisticalTopK(2), gs.nn.Unpadded(nn.Linear(4, 4))
    rows = torch.stack([top(x) for x in X.unbind()])
    torch.testing.assert_close(vmap(top)(X), rows)
    assert torch.equal(grad(lambda x: run(x[None], lengths=torch.tensor([3])).sum())(X)[3], torch.zeros(4))


def test_jacobians_one_gradient_at_a_time():
    assert torch.equal(torch.autograd.functional.jacobian(OPS["ops.sdd"], X)[0, 0, 0, 0], D[:, 0])
