"""Law: a compiled model is compiled once, however often its masks change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from training_cases import NETWORKS, OPTIMIZERS, SETTINGS, build, images, loss, run

from gossamer.training import METHODS, Chase, RigL


def compiled(network: str) -> tuple[torch.nn.Module, CompileCounter]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    counter = CompileCounter()
    return torch.compile(NETWORKS[network](), backend=counter, fullgraph=True), counter


@pytest.mark.parametrize("method", ["rigl", "srigl", "chase"])
@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_ten_updates_one_graph(network: str, method: str) -> None:
    model, counter = compiled(network)
    opt = OPTIMIZERS["momentum"](model.parameters())
    options = {"total_steps": 30} if method == "rigl" else {"total_steps": 30, "example_inputs": images()[0]}
    options |= {"explore_every": 2, "channel_every": 2} if method == "chase" else {"update_every": 2}
    options = {**SETTINGS[method], **options}
    sparse = METHODS[method](model, opt, density=0.3, **options)
    run(model, opt, 24)
    assert counter.frame_count == 1 and len(sparse.history) >= 10
    eager = build(method, "momentum", network, **options)
    run(eager[0], eager[1], 24)
    assert list(sparse.masks) == list(eager[2].masks)  # names without _orig_mod
    # the eager backend runs the same kernels in the same order
    assert all(torch.equal(a, b) for a, b in zip(sparse.masks.values(), eager[2].masks.values(), strict=True))
    for a, b in zip(model.parameters(), eager[0].parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_recompiles_only_at_a_compaction() -> None:
    model, counter = compiled("conv")
    opt = OPTIMIZERS["momentum"](model.parameters())
    Chase(
        model, opt, density=0.3, total_steps=40, explore_every=4, channel_every=8, channel_sparsity=0.5,
        compact_every=2, example_inputs=images()[0],
    )  # fmt: skip
    counts, widths = [], []
    for t in range(40):
        opt.zero_grad()
        loss(model, *images(seed=t)).backward()
        opt.step()
        counts.append(counter.frame_count)
        widths.append(sum(p.numel() for p in model.parameters()))
    changes = [t for t in range(1, 40) if widths[t] != widths[t - 1]]
    again = [t for t in range(1, 40) if counts[t] != counts[t - 1]]
    assert len(changes) >= 2 and again == [t + 1 for t in changes]  # the forward after each compaction, once


@pytest.mark.parametrize("method", ["chase", "srigl"])
def test_tracing_from_inside_compiled_code_is_refused(method: str) -> None:
    model, _ = compiled("conv")
    opt = OPTIMIZERS["sgd"](model.parameters())
    with pytest.raises(ValueError, match="a compiled model needs example_inputs"):
        METHODS[method](model, opt, total_steps=9)


def test_compiling_after_the_method_was_made_is_noticed() -> None:
    model, _, _ = build("chase", network="conv")
    torch._dynamo.reset()
    with pytest.raises(Exception, match="a compiled model needs example_inputs"):
        loss(torch.compile(model, backend="eager", fullgraph=True), *images())


def test_compiled_optimizer_steps_run_the_hooks() -> None:
    """torch.compile(optimizer.step) leaves the hooks in Python: every step is seen and masked."""
    torch._dynamo.reset()
    eager, step = build("rigl", "momentum"), build("rigl", "momentum")
    run(eager[0], eager[1], 12)
    traced: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., Any]:
        traced.extend(node.stack_trace or "" for node in graph.graph.nodes)
        return graph.forward

    compiled_step = torch.compile(step[1].step, backend=backend)
    for t in range(12):
        step[1].zero_grad()
        loss(step[0], *images(seed=t)).backward()
        compiled_step()
        assert step[2].step == t + 1
        assert all(bool((p[~step[2].masks[n]] == 0).all()) for n, p in step[0].named_parameters() if n in step[2].masks)
    assert all(torch.equal(a, b) for a, b in zip(eager[2].masks.values(), step[2].masks.values(), strict=True))
    assert traced and not any(f"gossamer/{part}/" in place for place in traced for part in ("training", "kernels"))


def test_rigl_on_the_wrapped_and_the_bare_module_agree() -> None:
    model, _ = compiled("mlp")
    a = RigL(model, OPTIMIZERS["sgd"](model.parameters()), total_steps=9)
    assert list(a.masks) == ["1.weight", "3.weight", "5.weight"]
