"""A model divided among ranks: heads are dealt evenly, parts add up to the whole, what cannot be divided is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from serving_decoders import FAMILIES, decoder

from gossamer.ranks import Ranks
from gossamer.serving import HeadPattern, Sparsity
from gossamer.serving.geometry import Geometry
from gossamer.serving.paging.store import Store, views
from gossamer.serving.stepping.division import check_divisible, costs, deal, divided, narrowed

transformers = pytest.importorskip("transformers")

DIVIDED = [name for name in FAMILIES if not name.startswith(("opt", "phi", "gpt_neox")) and "one key head" not in name]
THREE = {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 96}


class Silent(Ranks):
    """Ranks that keep what they have: the sum is the test's."""

    def add(self, *tensors: torch.Tensor) -> None:
        return None


@given(
    ranks=st.integers(1, 5), cheap=st.floats(0, 1),
    layers=st.lists(st.lists(st.booleans(), min_size=5, max_size=12), min_size=1, max_size=12),
)  # fmt: skip
def test_each_rank_has_its_share_of_heads_and_work(ranks: int, cheap: float, layers: list[list[bool]]) -> None:
    paid = [[cheap if streams else 1.0 for streams in layer] for layer in layers]
    hands = deal(paid, ranks)
    for layer, heads in enumerate(paid):
        assert sorted(head for hand in hands for head in hand[layer]) == list(range(len(heads)))
        assert {len(hand[layer]) for hand in hands} <= {len(heads) // ranks, -(-len(heads) // ranks)}
        assert all(hand[layer] == sorted(hand[layer]) for hand in hands)
    spent = [sum(heads[head] for heads, mine in zip(paid, hand, strict=True) for head in mine) for hand in hands]
    assert max(abs(each - sum(spent) / ranks) for each in spent) <= 1


def test_heads_cost_what_they_see() -> None:
    model = decoder("llama")
    geometry = Geometry.of(model.config)
    pattern = HeadPattern(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], dtype=torch.float64))
    parts = Sparsity(static=0.5, pattern=pattern, sink=32, local=64).parts(geometry)
    assert costs(geometry, parts, 1000) == [[16000.0, 1536.0], [1536.0, 16000.0], [16000.0, 1536.0]]
    assert deal(costs(geometry, parts, 1000), 2) == [[[0], [0], [0]], [[1], [1], [1]]]


@torch.no_grad()
@pytest.mark.parametrize("family", DIVIDED)
@pytest.mark.parametrize("ranks", [2, 3])
def test_what_ranks_compute_adds_up(family: str, ranks: int) -> None:
    """Attention and MLP of every layer, biases too; with unequal shares, and heads that do not follow each other."""
    config = type(decoder(family).config).from_dict(decoder(family).config.to_dict() | THREE)
    if hasattr(config, "attention_bias"):
        config.attention_bias = True
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    before = {name: (each.data_ptr(), each._version) for name, each in model.named_parameters()}
    geometry = Geometry.of(config)
    hands = [[[0, 2], [1], [0, 2]], [[1], [0, 2], [1]]] if ranks == 2 else [[[0]] * 3, [[2]] * 3, [[1]] * 3]
    check_divisible(model, geometry, ranks)
    parts = [divided(model, geometry, hand, Silent(rank, ranks)) for rank, hand in enumerate(hands)]
    calls: dict[str, Any] = {}
    for name, module in model.base_model.layers.named_modules():
        if name.endswith(("self_attn", "mlp")):
            module.register_forward_hook(lambda _, *call, name=name: calls.update({name: call}), with_kwargs=True)
    model(torch.arange(7)[None], use_cache=False)
    assert len(calls) == 2 * len(geometry.layers)
    for name, (taken, named, out) in calls.items():
        every = [part.base_model.layers.get_submodule(name)(*taken, **named) for part in parts]
        first = [each[0] if isinstance(each, tuple) else each for each in (*every, out)]
        torch.testing.assert_close(sum(first[:-1]), first[-1], rtol=1e-4, atol=1e-4)
    shared = model.get_input_embeddings().weight
    assert all(part.get_input_embeddings().weight is shared for part in parts)
    split = sum(each.numel() for each in model.base_model.layers[0].mlp.parameters() if each.dim() == 2)
    mine = [sum(e.numel() for e in part.base_model.layers[0].mlp.parameters() if e.dim() == 2) for part in parts]
    assert sum(mine) == split and max(mine) - min(mine) <= 3 * 96
    assert before == {name: (each.data_ptr(), each._version) for name, each in model.named_parameters()}


def test_ranks_hold_the_pages_of_their_own_heads() -> None:
    model = decoder("llama, all key heads, llama3")
    geometry, sparsity = Geometry.of(model.config), Sparsity(static=0.5, token_budget=192, pattern=None)
    parts = sparsity.parts(geometry)
    whole = Store(geometry, sparsity, "float32", parts, dict.fromkeys(views(parts), 9))
    sizes = []
    for hand in deal(costs(geometry, parts, 2048), 2):
        mine, own = narrowed(geometry, parts, hand)
        assert [layer.key_heads for layer in mine.layers] == [2, 2, 2]
        assert [[part.heads.tolist() for part in some] for some in own] == [[[0], [1]]] * 3
        sizes.append(Store(mine, sparsity, "float32", own, dict.fromkeys(views(parts), 9)).nbytes)
    assert sizes == [whole.nbytes // 2] * 2


def test_only_one_rank_counts_what_a_layer_does_once() -> None:
    geometry = Geometry.of(decoder("llama, all key heads, llama3").config)
    parts = Sparsity(static=0.5, token_budget=192).parts(geometry)
    hands = deal(costs(geometry, parts, 2048), 2)
    firsts = [[part.first for some in narrowed(geometry, parts, hand)[1] for part in some] for hand in hands]
    assert [a + b for a, b in zip(*firsts, strict=True)] == [1] * 6


@pytest.mark.parametrize("family", ["opt", "phi", "gpt_neox"])
def test_other_families_are_refused(family: str) -> None:
    model = decoder(family)
    with pytest.raises(ValueError, match=r"cannot be divided among 2 ranks, expected one of gemma2, .*llama"):
        check_divisible(model, Geometry.of(model.config), 2)


def test_what_has_no_share_for_each_is_refused() -> None:
    model = decoder("llama")
    geometry = Geometry.of(model.config)
    with pytest.raises(ValueError, match="has layers of 2 key heads, got 3 ranks to divide them: expected at most 2"):
        check_divisible(model, geometry, 3)
    other = copy.deepcopy(model)
    other.model.layers[1].mlp.up_proj = torch.nn.Bilinear(2, 2, 2)
    with pytest.raises(ValueError, match="layer 1 of LlamaForCausalLM has a Bilinear as up_proj, expected a plain"):
        check_divisible(other, geometry, 2)
    other = copy.deepcopy(model)
    other.model.layers[2].self_attn.sinks = torch.nn.Parameter(torch.zeros(4))
    with pytest.raises(ValueError, match=r"layer 2 of LlamaForCausalLM has sinks of shape \[4\]"):
        check_divisible(other, geometry, 2)
