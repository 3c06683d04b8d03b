"""What people do around a compiled model: inference first and training later, half floats, copies."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow


def model() -> Any:
    torch.manual_seed(0)
    torch._dynamo.reset()
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, vocab_size=50,
        hidden_dropout_prob=0, attention_probs_dropout_prob=0,
    )  # fmt: skip
    return transformers.BertForMaskedLM(config)


def batch() -> dict[str, Any]:
    ids = torch.randint(3, 50, (4, 19), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": (torch.arange(19) < torch.tensor([[19], [4], [9], [12]])).long()}


def test_trains_after_inference_mode_with_a_fused_optimizer() -> None:
    ours = model()
    theirs = copy.deepcopy(ours)
    fast, inputs = torch.compile(ours, backend="gossamer"), batch()
    with torch.inference_mode():
        fast(**inputs)
    labels = torch.where(inputs["attention_mask"] == 1, inputs["input_ids"], -100)
    for run, owner in ((fast, ours), (theirs, theirs)):
        optimizer = torch.optim.SGD(owner.parameters(), lr=0.1, fused=True)
        for _ in range(3):
            optimizer.zero_grad()
            run(**inputs, labels=labels).loss.backward()
            optimizer.step()
    for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_floats_and_a_copy(dtype: torch.dtype) -> None:
    ours, inputs = model().to(dtype).eval(), batch()
    fast = torch.compile(ours, backend="gossamer")
    kept = inputs["attention_mask"] == 1
    with torch.no_grad():
        expected, found = ours(**inputs).logits[kept], fast(**inputs).logits[kept]
        again = copy.deepcopy(fast)(**inputs).logits[kept]
    bound = 16 * torch.finfo(dtype).eps * float(expected.abs().max())
    assert float((found - expected).abs().max()) <= bound
    assert torch.equal(again, found)
