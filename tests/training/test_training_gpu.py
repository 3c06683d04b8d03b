"""Law: on a GPU a method makes the choices of a CPU run, and leaks nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from training_cases import NETWORKS, SETTINGS, images, loss

from gossamer.training import METHODS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def on_gpu(method: str, network: str, **options: object) -> tuple[nn.Module, torch.optim.Optimizer, object]:
    torch.manual_seed(0)
    model = NETWORKS[network]().double().cuda()
    opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return model, opt, METHODS[method](model, opt, density=0.3, total_steps=24, **{**SETTINGS[method], **options})


@pytest.mark.parametrize("network", ["mlp", "conv", "residual"])
@pytest.mark.parametrize("method", SETTINGS)
def test_masks_of_a_gpu_run_are_those_of_a_cpu_run(method: str, network: str) -> None:
    """float64: both devices sum the same terms, and no score comes near enough to another to change its place."""
    gpu = on_gpu(method, network)
    torch.manual_seed(0)
    model = NETWORKS[network]().double()
    opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
    cpu = model, opt, METHODS[method](model, opt, density=0.3, total_steps=24, **SETTINGS[method])
    for t in range(24):
        x, y = images(seed=t, dtype=torch.float64)
        for net, optimizer, device in ((gpu[0], gpu[1], "cuda"), (cpu[0], cpu[1], "cpu")):
            optimizer.zero_grad()
            loss(net, x.to(device), y.to(device)).backward()
            optimizer.step()
        for name, mask in gpu[2].masks.items():
            assert mask.is_cuda and torch.equal(mask.cpu(), cpu[2].masks[name]), (t, name)
        for tensor in gpu[2].tensors.values():
            states = [v for v in gpu[1].state[tensor.parameter].values() if v.shape == tensor.mask.shape]
            assert all(bool((x[~tensor.mask] == 0).all()) for x in (tensor.parameter.detach(), *states))


def test_compaction_and_state_on_a_gpu() -> None:
    example = images(dtype=torch.float64)[0].cuda()
    options = {"compact_every": 2, "channel_sparsity": 0.5, "example_inputs": example}
    model, opt, sparse = on_gpu("chase", "conv", **options)
    for t in range(24):
        x, y = images(seed=t, dtype=torch.float64)
        opt.zero_grad()
        loss(model, x.cuda(), y.cuda()).backward()
        opt.step()
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in NETWORKS["conv"]().parameters())
    other = on_gpu("chase", "conv", **options)
    other[2].load_state_dict(sparse.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(sparse.masks.values(), other[2].masks.values(), strict=True))
    assert other[0][0].weight.shape == model[0].weight.shape


def test_a_fused_step_with_overflow_defers_the_update() -> None:
    torch.manual_seed(0)
    model = NETWORKS["mlp"]().cuda()
    opt = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    sparse = METHODS["rigl"](model, opt, density=0.3, total_steps=24, update_every=4)
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
    for t in range(8):
        opt.zero_grad()
        x, y = images(seed=t)
        with torch.autocast("cuda", torch.float16):
            value = loss(model, x.cuda(), y.cuda())
        scaler.scale(value).backward()
        if t == 3:
            model[1].weight.grad[0, 0] = float("inf")
        scaler.step(opt)
        scaler.update()
    assert sparse.step == 7 and [event["step"] for event in sparse.history] == [4]
