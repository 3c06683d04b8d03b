"""Output layers over very many labels: what they take of parameters, memory and time, and what a sparse one takes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gossamer import measure
from gossamer.profile.findings import Finding, Gain, Place, told, verdict_of
from gossamer.profile.study import Study
from gossamer.xmc import FusedHead
from gossamer.xmc.recipe import Recipe

MANY = 4096
"""Labels from which a head of fixed fan-in is looked at."""
ROWS = 64


def find_labels(study: Study) -> Finding:
    """The finding `labels`: the share that the output layer has, and a step of training beside one of fixed fan-in."""
    last = next((n for n in reversed(study.seen.order) if isinstance(study.seen.inputs[n].module, nn.Linear)), None)
    if last is None:
        return Finding("labels", "nothing here", "no linear layer ran")
    head = study.seen.inputs[last].module
    assert isinstance(head, nn.Linear)
    total = sum(parameter.numel() for parameter in study.model.parameters())
    share = sum(parameter.numel() for parameter in head.parameters()) / max(total, 1)
    time = study.times.share[last]
    found = (
        f"the last linear layer, {last}, has {head.out_features:,} outputs: {share:.1%} of {total:,} parameters and "
        f"{time:.1%} of the time of a pass"
    )
    where = (Place(last, share, time),)
    if study.is_decoder:
        found += ". They are a vocabulary, of which each token has one: xmc is for texts with sets of labels"
        return Finding("labels", "nothing here", found, share, where=where)
    if head.out_features < MANY:
        return Finding(
            "labels", "nothing here", f"{found}; from {MANY:,} labels on it would be looked at", share, where=where
        )
    fan_in = min(Recipe().fan_in, head.in_features)
    dense = _bytes_dense(head)
    fused = FusedHead(head.in_features, head.out_features, fan_in=fan_in, device="cpu")
    sparse = sum(buffer.numel() * buffer.element_size() for buffer in fused.buffers())
    rows = study.seen.inputs[last].rows
    assert rows is not None
    x = rows.float().cpu().repeat(-(-ROWS // len(rows)), 1)[:ROWS].contiguous()
    gain = _step(head, fused, x)
    found += (
        f". To train it by SGD takes {dense / 2**20:,.0f} MiB, and {sparse / 2**20:,.0f} MiB where each label reads "
        f"{fan_in} of {head.in_features} inputs. What that does to accuracy must be measured"
    )
    lines = (
        "import torch\nimport gossamer as gs\n\n"
        f"x, labels = torch.randn({ROWS}, {head.in_features}), [[0]] * {ROWS}    # yours: a list for each row\n"
        f"head = gs.xmc.FusedHead({head.in_features}, {head.out_features}, fan_in={fan_in})\n"
        "grad_x, loss = head.step(x, labels, lr=0.01)"
    )
    return Finding("labels", verdict_of(gain), found, share, gain, where, lines)


def _bytes_dense(head: nn.Linear) -> int:
    """Weights and their gradients in float32, and the logits of a batch with theirs."""
    return 4 * 2 * (head.weight.numel() + head.out_features + ROWS * head.out_features)


def _step(head: nn.Linear, fused: FusedHead, x: Tensor) -> Gain:
    """A step of training of the head alone, dense and with a fixed fan-in."""
    twin = nn.Linear(head.in_features, head.out_features, head.bias is not None, device="cpu", dtype=torch.float32)
    optimizer = torch.optim.SGD(twin.parameters(), lr=1e-3)
    labels = [[row % head.out_features] for row in range(len(x))]
    targets = torch.zeros(len(x), head.out_features, dtype=torch.float32, device="cpu")
    targets[range(len(x)), [row[0] for row in labels]] = 1.0

    def dense() -> None:
        with torch.enable_grad():
            read = x.clone().requires_grad_()
            nn.functional.binary_cross_entropy_with_logits(twin(read), targets, reduction="sum").backward()
        optimizer.step()
        optimizer.zero_grad()

    run = measure.interleave({"dense": dense, "sparse": lambda: fused.step(x, labels, lr=1e-3)}, reps=7, seconds=6.0)
    ratio, noise = told(run, "sparse")
    how = f"both took turns, with random weights of the same sizes{noise}"
    base = f"a step of training of the output layer alone, {len(x)} rows, by torch's SGD"
    return Gain(ratio, base, how)
