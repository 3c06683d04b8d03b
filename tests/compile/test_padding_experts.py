"""Mixtures of experts are work on tokens: padded batches of them are packed, with the answers of eager."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import gossamer as gs
from gossamer.compile.backend import compiled
from gossamer.compile.options import options_of
from gossamer.compile.record import Record, observers
from gossamer.testing.asserts import assert_no_recompile

transformers = pytest.importorskip("transformers")
SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 50}
ONE = {**SMALL, "num_hidden_layers": 1}
DEEPSEEK = {
    "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1,
    "moe_intermediate_size": 24, "first_k_dense_replace": 0, "q_lora_rank": 16, "kv_lora_rank": 16,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "n_shared_experts": 1,
}  # fmt: skip
MODELS = {
    "mixtral": lambda: transformers.MixtralModel(
        transformers.MixtralConfig(**ONE, num_key_value_heads=2, num_local_experts=4)
    ),
    "qwen3": lambda: transformers.Qwen3MoeModel(
        transformers.Qwen3MoeConfig(
            **SMALL, num_key_value_heads=2, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24
        )
    ),
    "deepseek": lambda: transformers.DeepseekV3Model(transformers.DeepseekV3Config(**ONE, **DEEPSEEK)),
    "olmoe": lambda: transformers.OlmoeModel(transformers.OlmoeConfig(**SMALL, num_experts=4, num_experts_per_tok=2)),
}


def batch(texts: int, long: int, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 50, (texts, long), generator=generator)
    lengths = torch.randint(1, long + 1, (texts, 1), generator=generator)
    return {"input_ids": ids, "attention_mask": (torch.arange(long) < lengths).long()}


@pytest.fixture
def records():
    found: list[Record] = []
    observers.append(found.append)
    torch._dynamo.reset()
    yield found
    observers.pop()


@pytest.mark.parametrize(
    "name", ["mixtral", "deepseek", *(pytest.param(each, marks=pytest.mark.slow) for each in ("qwen3", "olmoe"))]
)
def test_packed_equals_eager(name: str, records: list[Record]) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    batches = [batch(3, 17, 0), batch(5, 11, 1)]
    with torch.no_grad():
        expected = [model(**each).last_hidden_state for each in batches]
        model.set_experts_implementation("gossamer")
        fast = torch.compile(model, backend=lambda gm, inputs: compiled(gm, inputs, options_of({}), lambda g, _: g))
        found = [fast(**each).last_hidden_state for each in batches]
    for each, one, two in zip(batches, found, expected, strict=True):
        kept = each["attention_mask"] == 1
        torch.testing.assert_close(one[kept], two[kept], rtol=1e-4, atol=1e-5)
        assert not one[~kept].any()
    assert sum(record.tally.packed_calls for record in records) == len(batches)
    with torch.no_grad(), assert_no_recompile():
        fast(**batch(6, 29, 3))


def test_explain_shows_each_product_of_experts() -> None:
    model = MODELS["mixtral"]().eval()
    model.set_experts_implementation("gossamer")
    torch._dynamo.reset()
    found = gs.compile.explain(model, batch(3, 17, 0))
    assert not found.advice
    (record,) = found.records
    routed = [found for found in record.findings if "routing" in found.zeros]
    assert len(routed) == 2 and all("grouped" in found.choice and "packed" in found.choice for found in routed)
    assert {"e", "b", "s"} <= set(routed[0].axes)


def test_explain_says_why_a_mixture_stays_dense() -> None:
    torch._dynamo.reset()
    mixture = MODELS["mixtral"]().eval().layers[0].mlp
    found = gs.compile.explain(mixture, torch.randn(3, 17, SMALL["hidden_size"]))
    assert 'model.set_experts_implementation("gossamer")' in found.advice and found.advice in str(found)
    sinks = transformers.GptOssModel(
        transformers.GptOssConfig(**ONE, num_key_value_heads=2, head_dim=8, num_local_experts=4, num_experts_per_tok=2)
    ).eval()
    sinks.set_experts_implementation("gossamer")
    torch._dynamo.reset()
    (record,) = gs.compile.explain(sinks, batch(3, 17, 0)).records
    assert "as with attention sinks" in record.tally.refused
    assert [found.choice for found in record.findings if found.operator == "experts"] == ["grouped"] * 2


def test_what_is_of_the_present_tokens_stays_inside(records: list[Record]) -> None:
    """An index of experts is another one without padding, so nobody outside may see it."""
    from gossamer.compile.mixtures.expert_rows import expert_index, expert_rows

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.experts = torch.nn.Linear(8, 24), torch.nn.Parameter(torch.randn(3, 8, 8))

        def forward(self, x: torch.Tensor, mask: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
            q, k, v = self.qkv(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
            y = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
            y = y.transpose(1, 2).flatten(2)
            ids = ids + (y[..., :1] > 1e9).long()  # depends on attention
            offsets, order = expert_index(ids.flatten(0, 1), 3)
            out = expert_rows(y.flatten(0, 1), ids.flatten(0, 1), offsets, order, self.experts, False)
            return out.sum(1).view_as(x), offsets

    torch.manual_seed(0)
    model, x, ids = Model(), torch.randn(3, 9, 8), torch.randint(0, 3, (3, 9, 1))
    mask = torch.arange(9) < torch.tensor([[9], [2], [4]])
    fast = torch.compile(model, backend=lambda gm, inputs: compiled(gm, inputs, options_of({}), lambda g, _: g))
    with torch.no_grad():
        for one, two in zip(fast(x, mask, ids), model(x, mask, ids), strict=True):
            torch.testing.assert_close(one, two)
    assert "is of the tokens that are there" in records[0].tally.refused
