"""Law: what a method reports is what happened."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from training_cases import SETTINGS, build, images, train

from gossamer.training.ever_active import pack, unpack


@pytest.mark.parametrize("method", SETTINGS)
def test_reports_match_the_masks(method: str) -> None:
    model, opt, sparse = build(method, "momentum", "conv")
    ever = {name: mask.clone() for name, mask in sparse.masks.items()}
    previous = {name: mask.clone() for name, mask in sparse.masks.items()}
    for step in train(model, opt, 24):
        events = [event for event in sparse.history if event["step"] == step]
        now = {name: mask.clone() for name, mask in sparse.masks.items()}
        for name in now:
            ever[name] |= now[name]
        nnz = sum(int(mask.sum()) for mask in now.values())
        total = sum(mask.numel() for mask in now.values())
        assert sparse.nnz() == nnz and sparse.density() == nnz / total
        if events:
            assert events[-1]["nnz"] == nnz and events[-1]["density"] == nnz / total
        if len(events) == 1:
            assert events[0]["grown"] == sum(int((now[n] & ~previous[n]).sum()) for n in now)
            assert events[0]["dropped"] == sum(int((previous[n] & ~now[n]).sum()) for n in now)
        previous = now
    stats = sparse.stats()
    assert stats["step"] == 24 and stats["nnz"] == nnz and json.dumps(stats)
    for name, layer in stats["layers"].items():
        assert layer["nnz"] == int(now[name].sum()) and layer["size"] == now[name].numel()
        assert layer["itop"] == int(ever[name].sum()) / ever[name].numel() and 0 <= layer["churn"] <= 1
    assert json.dumps(sparse.history)


@pytest.mark.parametrize("shape", [(1,), (7,), (8,), (3, 5), (2, 3, 3, 3)])
def test_packing_is_lossless(shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape) < 0.5
    assert torch.equal(unpack(pack(mask), shape), mask) and pack(mask).numel() == -(-mask.numel() // 8)
    with pytest.raises(ValueError, match="bytes for a mask of shape"):
        unpack(torch.zeros(9, dtype=torch.uint8), shape)


def test_channels_keep_their_original_numbers() -> None:
    model, opt, sparse = build(
        "chase", network="conv", compact_every=1, channel_sparsity=0.5, example_inputs=images()[0]
    )
    before = {name: a.clone() for name, a in sparse.channels().items()}
    for _ in train(model, opt, 24):
        now = sparse.channels()
        assert all(bool((before[name] | ~a).all()) for name, a in now.items())  # nobody comes back
        before = now
    assert [len(a) for a in before.values()] == [16, 24]
    assert {group.name for group in sparse.graph.groups} >= set(before)


def test_methods_without_channels_have_none() -> None:
    _, _, sparse = build("rigl")
    assert sparse.channels() == {} and sparse.graph is None


def test_importing_training_is_light() -> None:
    heavy = ("triton", "transformers", "sklearn", "matplotlib")
    code = f"import sys, gossamer.training; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_training_learns() -> None:
    """Fitting 64 random labels at a fifth of the weights, for every method."""
    x, y = images(64)
    for method in SETTINGS:
        model, opt, _ = build(method, "adamw", "mlp", density=0.2, total_steps=150)
        first = float(torch.nn.functional.cross_entropy(model(x), y))
        for _ in range(150):
            opt.zero_grad()
            value = torch.nn.functional.cross_entropy(model(x), y)
            value.backward()
            opt.step()
        assert value < 0.35 * first, method
