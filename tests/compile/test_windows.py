"""Longformer over masks: transformers' answers and gradients, in one graph, and everything given back."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.debugging import aot_eager

import gossamer as gs
from gossamer.compile.backend import compiled
from gossamer.compile.options import Options
from gossamer.testing import assert_no_recompile

transformers = pytest.importorskip("transformers")
WINDOWS = [8, 16]
ONE_LAYER = {"num_hidden_layers": 1, "attention_window": [8]}


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


def longformer(**more: Any) -> Any:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    given = {"attention_window": WINDOWS, "attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}
    return transformers.LongformerModel(transformers.LongformerConfig(vocab_size=99, **sizes | given | more)).eval()


def texts(lengths: tuple[int, ...]) -> dict[str, Tensor]:
    long = max(lengths)
    mask = (torch.arange(long) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": torch.randint(3, 99, mask.shape) * mask + 1 - mask, "attention_mask": mask}


def global_tokens(like: Tensor) -> Tensor:
    """Another number of them in each text, and none in the last."""
    found = torch.zeros_like(like)
    found[0, [0, like.shape[1] // 2, like.shape[1] - 1]] = 1
    found[1:-1, 0] = 1
    return found


def run(model: Any, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """All hidden states at real tokens."""
    states = model(**given, output_hidden_states=True).hidden_states
    kept = given["attention_mask"].clamp(max=1)[..., None]
    return tuple(state * kept for state in states)


def gradients(model: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    states = run(model, given)
    weights = torch.linspace(-1, 1, states[-1].numel(), dtype=states[-1].dtype).view_as(states[-1])
    (states[-1] * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


def assert_rounded(found: Tensor, exact: Tensor) -> None:
    """Apart by roundings of the largest number only: those of sums over a layer's width, in every layer and back."""
    allowed = 64 * torch.finfo(torch.float32).eps * float(exact.detach().abs().max())
    assert float((found.double() - exact).detach().abs().max()) <= allowed


@pytest.mark.parametrize("lengths", [(16, 16), (37, 9, 20), (5, 3), (56, 1)])
@pytest.mark.parametrize("with_global", [True, False])
def test_answers_and_gradients_are_those_of_transformers(lengths: tuple[int, ...], with_global: bool) -> None:
    model, given = longformer(), texts(lengths)
    if with_global:
        given["global_attention_mask"] = global_tokens(given["attention_mask"])
    theirs, their_gradients = run(model, given), gradients(model, given)
    gs.compile.skip_unseen(model)
    twice = copy.deepcopy(model).double()  # by torch's own operator; transformers' gradients are NaN in float64
    exact, ours, our_gradients = run(twice, given), run(model, given), gradients(model, given)
    for at, one in enumerate(exact):
        assert_rounded(theirs[at], one)
        assert_rounded(ours[at], one)
    exact_gradients = gradients(twice, given)
    assert our_gradients.keys() == their_gradients.keys() == exact_gradients.keys()
    assert any("key_global" in name for name in our_gradients) == with_global
    for name, one in exact_gradients.items():
        if not name.endswith("key.bias") and not name.endswith("key_global.bias"):  # zero, but for rounding
            assert_rounded(their_gradients[name], one)
            assert_rounded(our_gradients[name], one)


def test_one_graph_serves_other_masks_and_trains() -> None:
    model, given = longformer(**ONE_LAYER), texts((37, 9, 20))
    given["global_attention_mask"] = global_tokens(given["attention_mask"])
    gs.compile.skip_unseen(model)
    fast = torch.compile(
        model, backend=functools.partial(compiled, options=Options(), compiler=aot_eager), fullgraph=True
    )

    def agrees() -> None:
        for name, expected in gradients(model, given).items():
            torch.testing.assert_close(found[f"_orig_mod.{name}"], expected)

    found = gradients(fast, given)
    agrees()
    given = {name: x.flip(0) for name, x in given.items()}
    with assert_no_recompile():
        found = gradients(fast, given)
    agrees()


def test_models_around_it_and_half_floats() -> None:
    config = longformer().config
    model = transformers.LongformerForSequenceClassification(config).eval()
    given = texts((30, 12))
    expected = model(**given).logits
    report = gs.compile.skip_unseen(model)
    torch.testing.assert_close(model(**given).logits, expected, atol=1e-5, rtol=1e-5)
    low = copy.deepcopy(model).bfloat16()
    assert float((low(**given).logits - expected).detach().abs().max()) < 0.05
    assert [found.node for found in report.findings] == [
        f"longformer.encoder.layer.{at}.attention.self" for at in range(2)
    ]


def test_everything_is_given_back(tmp_path: Any) -> None:
    model, given = longformer(), texts((21, 8))
    classes, names = [type(module) for module in model.modules()], list(model.state_dict())
    expected = run(model, given)
    report = gs.compile.skip_unseen(model)
    assert list(model.state_dict()) == names and isinstance(model, transformers.LongformerModel)
    with pytest.raises(ValueError, match="no LongformerSelfAttention"):
        gs.compile.skip_unseen(model)  # it is changed already
    model.save_pretrained(tmp_path)
    for again in (transformers.LongformerModel.from_pretrained(tmp_path).eval(), pickle.loads(pickle.dumps(model))):
        assert type(again.encoder) is classes[[type(m) for m in again.modules()].index(type(again.encoder))]
        assert all(torch.equal(a, b) for a, b in zip(run(again, given), expected, strict=True))
    report.undo()
    assert [type(module) for module in model.modules()] == classes
    assert all(torch.equal(a, b) for a, b in zip(run(model, given), expected, strict=True))


def test_what_it_cannot_do_is_refused() -> None:
    model, given = longformer(attention_probs_dropout_prob=0.1), texts((9, 9))
    gs.compile.skip_unseen(model)
    with pytest.raises(ValueError, match="output_attentions is True"):
        model(**given, output_attentions=True)
    model(**given)
    with pytest.raises(ValueError, match=r"attention_probs_dropout_prob is 0.1.*train with"):
        model.train()(**given)
    with pytest.raises(TypeError, match="attention_mask must come from the encoder"):
        model.encoder.layer[0](torch.randn(1, 8, 32), attention_mask=torch.zeros(1, 8))
    with pytest.raises(ValueError, match="no LongformerSelfAttention"):
        gs.compile.skip_unseen(torch.nn.Linear(2, 2))


def test_explain_says_what_to_do_first() -> None:
    """Where compilation fails, as it does for the whole model, and where it ends in pieces."""
    model, given = longformer(**ONE_LAYER), texts((37, 9))
    given["global_attention_mask"] = global_tokens(given["attention_mask"])
    with pytest.raises(RuntimeError, match=r"could not be compiled: .*gossamer\.compile\.skip_unseen\(model\)"):
        gs.compile.explain(model, {"nothing it takes": given})
    layer, mask = model.encoder.layer[0], torch.zeros(2, 16)
    more = {"is_index_masked": mask < 0, "is_index_global_attn": mask > 0, "is_global_attn": False}
    told = str(gs.compile.explain(layer, {"hidden_states": torch.randn(2, 16, 32), "attention_mask": mask, **more}))
    assert "gossamer.compile.skip_unseen(model)" in told
    torch._dynamo.reset()
    gs.compile.skip_unseen(model)
    found = gs.compile.explain(model, given)
    assert len(found.records) == 1 and not found.breaks and not found.advice
