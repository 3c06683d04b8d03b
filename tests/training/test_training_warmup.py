"""Weights that grow under Adam move by lr at most while they are young; all others as if nothing were asked."""

from __future__ import annotations

import pytest
import torch
from training_cases import build, images, train

LR = 1e-2  # of the optimizers in the table


def moves(optimizer: str, warmup: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Per step after the update of step 60: how far each weight moved, and which had grown in that update."""
    model, opt, method = build("rigl", optimizer, "mlp", total_steps=200, update_every=60, grow_warmup=warmup)
    far, young = [], []
    last: dict[str, torch.Tensor] = {}
    steps = train(model, opt, 90)
    for t in steps:
        weights = {name: p.detach().clone() for name, p in model.named_parameters() if name in method.masks}
        masks = {name: mask.clone() for name, mask in method.masks.items()}
        if t == 30:  # late in a training
            for state in opt.state.values():
                state["step"] += 100_000
        if t == 59:
            before = masks
        if t == 60:
            fresh = torch.cat([(masks[name] & ~before[name]).flatten() for name in masks])
        if t > 60:
            far.append(torch.cat([(weights[name] - last[name]).abs().flatten() for name in masks]))
            young.append(fresh)
        last = weights
    assert int(fresh.sum()) > 20
    return far, young


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "nadam", "radam"])
def test_young_weights_move_by_lr_at_most(optimizer: str) -> None:
    far, young = moves(optimizer, 10)
    bound = LR * (1 + 1e-4)  # float32: a difference of two weights that were rounded
    assert all(float(d[y].max()) <= bound for d, y in zip(far[:10], young[:10], strict=True))


def test_without_it_adam_jumps_and_with_it_only_while_they_are_young() -> None:
    free, young = moves("adam", 0)
    assert float(free[0][young[0]].max()) > 2.5 * LR
    held, _ = moves("adam", 2)
    assert max(float(d[y].max()) for d, y in zip(held[2:], young[2:], strict=True)) > 1.5 * LR
    # the first step after growth is the same step for everything that had not grown
    assert torch.equal(free[0][~young[0]], held[0][~young[0]])
    grown = free[0][young[0]]
    assert torch.allclose(held[0][young[0]], grown.clamp(max=LR), rtol=1e-4)


def test_ages_are_cut_with_their_weights() -> None:
    model, opt, method = build(
        "chase", "adamw", "conv", grow_warmup=100, compact_every=1, channel_sparsity=0.5, example_inputs=images()[0],
        explore_every=2, channel_every=2,
    )  # fmt: skip
    for _ in train(model, opt, 24):
        for name, left in method.warmup.left.items():
            tensor = method.tensors[name]
            assert left.shape == tensor.parameter.shape and bool(((left >= 0) & (left <= 100)).all())
    assert method.warmup.left and model[0].out_channels + model[3].out_channels < 40
