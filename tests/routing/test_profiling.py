"""A profile is what a loop over tokens finds, however they come, and the model is left as it was."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stacks import NAMES, Residual, batch, stack_model
from torch import Tensor, nn
from torch.testing import assert_close

import gossamer as gs
from gossamer.routing.profiling.profiled import Profile
from gossamer.routing.profiling.values import Spread, Values
from gossamer.routing.stack import Stack

SHARES = {"low": 0.05, "q1": 0.25, "median": 0.5, "q3": 0.75, "high": 0.95, "most": 1.0}


def _by_hand(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[list[Spread], list[float], list[list[float]]]:
    """For layers with states (before, after) [tokens, width]: contributions, influence, contributions by token."""
    spreads, influence, every = [], [], []
    for before, after in pairs:
        ratios, cosines = [], []
        for h, s in zip(before, after, strict=True):
            ratios.append(np.linalg.norm(s - h) / np.linalg.norm(s))
            cosines.append(h @ s / np.linalg.norm(h) / np.linalg.norm(s))
        order = sorted(ratios)
        quantiles = {name: order[math.ceil(share * len(order)) - 1] for name, share in SHARES.items()}
        spreads.append(Spread(mean=sum(ratios) / len(ratios), **quantiles))
        influence.append(1 - sum(cosines) / len(cosines))
        every.append(ratios)
    return spreads, influence, every


def _close(found: Spread, expected: Spread, tolerance: float = 1e-9) -> None:
    for name in ("mean", *SHARES):
        assert math.isclose(getattr(found, name), getattr(expected, name), rel_tol=tolerance), name


def _equal(one: Profile, other: Profile, tolerance: float) -> None:
    assert (one.tokens, one.kinds) == (other.tokens, other.kinds)
    for kind in one.kinds:
        for found in ("contribution", "growth"):
            for a, b in zip(getattr(one, found)[kind], getattr(other, found)[kind], strict=True):
                _close(a, b, tolerance)
    assert one.influence == pytest.approx(other.influence, rel=tolerance)


def test_blocks_by_hand() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Residual(6), Residual(6), Residual(6)).double()
    x = torch.randn(37, 6, dtype=torch.float64)
    pairs, h = [], x.numpy()
    for layer in model:
        s = h + h @ layer.inner.weight.detach().numpy().T + layer.inner.bias.detach().numpy()
        pairs.append((h, s))
        h = s
    spreads, influence, every = _by_hand(pairs)
    found = gs.routing.profile(model, x)
    assert (found.tokens, found.layers, found.kinds, found.exact) == (37, 3, ("block",), True)
    for one, expected in zip(found.contribution["block"], spreads, strict=True):
        _close(one, expected)
    assert found.influence == pytest.approx(influence, rel=1e-9)
    grown = sorted(np.linalg.norm(pairs[1][1] - pairs[1][0], axis=1) / np.linalg.norm(pairs[1][0], axis=1))
    assert found.growth["block"][1].median == pytest.approx(grown[18])
    flat = np.array(every)
    for t in (0.0, 0.3, 0.5, 2.0):
        assert found.sparsity(t) == pytest.approx((flat <= t).mean())
        assert found.below(t) == pytest.approx((flat <= t).mean(1))
    assert found.order() == np.argsort(influence).tolist()
    assert found.order("contribution") == np.argsort([spread.median for spread in spreads]).tolist()


@pytest.mark.parametrize("name", NAMES)
def test_every_family_against_its_own_modules(name: str) -> None:
    """What attention and MLP return is what they add, where it is added as it is."""
    model, given = stack_model(name), batch(name)
    stack = Stack.of(model)
    layer = stack.parts[1]
    parts = [part for part in (layer.module, layer.attention, layer.mlp) if part is not None]
    seen: dict[nn.Module, tuple[np.ndarray, np.ndarray]] = {}

    def hook(module: nn.Module, args: Any, keywords: Any, out: Any) -> None:
        first = args[0] if args else keywords["hidden_states"]
        two = (first, out if isinstance(out, Tensor) else out[0])
        seen[module] = tuple(each.flatten(0, -2).double().numpy().copy() for each in two)

    handles = [part.register_forward_hook(hook, with_kwargs=True) for part in parts]
    with torch.no_grad():
        model(given)
    for handle in handles:
        handle.remove()
    found = gs.routing.profile(model, given)
    before, after = seen[layer.module]
    assert found.tokens == before.shape[0]
    assert found.kinds == (("block",) if layer.form == "closed" else ("block", "attention", "mlp"))
    spreads, influence, _ = _by_hand([(before, after)])
    _close(found.contribution["block"][1], spreads[0], 1e-4)
    assert found.influence[1] == pytest.approx(influence[0], rel=1e-3)
    if layer.added is None and layer.form != "closed" and name != "dinov2":
        between = before if layer.parallel else before + seen[layer.attention][1]
        attended = before + seen[layer.attention][1]
        for kind, h, s in (("attention", before, attended), ("mlp", between, between + seen[layer.mlp][1])):
            _close(found.contribution[kind][1], _by_hand([(h, s)])[0][0], 1e-4)


@pytest.mark.parametrize("name", ["opt, norms last", "torch, norms last"])
def test_where_norms_come_last_the_sum_is_what_they_read(name: str) -> None:
    model, given = stack_model(name), batch(name)
    layer = Stack.of(model).parts[2]
    inputs: dict[str, Tensor] = {}
    spots = {"h": layer.module, "s": layer.sums[0], "t": layer.sums[1]}
    handles = [
        module.register_forward_pre_hook(lambda _, args, at=at: inputs.update({at: args[0].flatten(0, -2).double()}))
        for at, module in spots.items()
    ]
    handles.append(layer.sums[0].register_forward_hook(lambda _, __, out: inputs.update(g=out.flatten(0, -2).double())))
    with torch.no_grad():
        model(given)
    for handle in handles:
        handle.remove()
    found = gs.routing.profile(model, given)
    for kind, h, s in (("attention", "h", "s"), ("mlp", "g", "t")):
        _close(found.contribution[kind][2], _by_hand([(inputs[h].numpy(), inputs[s].numpy())])[0][0], 1e-4)


@pytest.mark.parametrize("name", ["opt", "llama", "phi", "bert"])
def test_neither_padding_nor_the_cut_into_batches_matters(name: str) -> None:
    model = stack_model(name)
    torch.manual_seed(5)
    texts = [torch.randint(3, 200, (length,)) for length in (9, 4, 7)]
    alone = gs.routing.profile(model, [text[None] for text in texts])
    assert alone.tokens == 20
    for left in (False, True):
        if left and name in ("opt", "bert"):  # bert's positions are places in the batch
            continue
        ids, mask = torch.zeros(3, 9, dtype=torch.int64), torch.zeros(3, 9, dtype=torch.int64)
        for row, text in enumerate(texts):
            place = slice(9 - len(text), None) if left else slice(len(text))
            ids[row, place], mask[row, place] = text, 1
        given: dict[str, Tensor] = {"input_ids": ids, "attention_mask": mask}
        if left:
            given["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        _equal(gs.routing.profile(model, given), alone, 1e-3)


class _InPlace(Residual):
    def forward(self, h: Tensor) -> Tensor:
        h += self.inner(h)
        return h


def test_a_block_that_adds_in_place() -> None:
    one, other = (nn.Sequential(*(kind(5) for _ in range(3))) for kind in (Residual, _InPlace))
    other.load_state_dict(one.state_dict())
    x = torch.randn(2, 11, 5)
    _equal(gs.routing.profile(other, x.clone()), gs.routing.profile(one, x), 1e-6)


def test_pairs_of_pictures_and_labels_and_a_forward_of_ones_own() -> None:
    model, pictures = stack_model("vit"), batch("vit")
    plain = gs.routing.profile(model, [pictures])
    assert plain.tokens == 10  # four patches and one token of the class, twice
    _equal(gs.routing.profile(model, [(pictures, torch.tensor([1, 2]))]), plain, 1e-9)
    _equal(gs.routing.profile(model, ["x"], forward=lambda model, _: model(pixel_values=pictures)), plain, 1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_added_up_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(Residual(100), Residual(100))
    x = 9e3 * torch.randn(50, 100)  # no number is beyond float16, but the norm is
    exact = gs.routing.profile(model, x)
    _equal(gs.routing.profile(model.to(dtype), x.to(dtype)), exact, 0.03)


def test_states_of_zeros() -> None:
    class Fixed(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])

    x = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    found = gs.routing.profile(nn.Sequential(Fixed(), Fixed()), x)
    first = found.contribution["block"][0]
    assert (first.low, first.median, first.high, first.mean) == (0, 1, math.inf, math.inf)
    assert found.influence == pytest.approx((2 / 3, 0))
    assert found.to_dict()["contribution"]["block"][0]["high"] is None


@pytest.mark.parametrize("limit", [0, 7, 1000])
def test_more_numbers_than_are_kept(limit: int) -> None:
    torch.manual_seed(1)
    numbers = torch.rand(1001, dtype=torch.float64).exp() * 1e-3
    numbers[:3] = torch.tensor([0.0, math.inf, 1e30])
    seen = Values(limit)
    for some in numbers.split(13):
        seen.add(some)
    order = numbers.sort().values
    assert not seen.exact
    found = seen.spread()
    for name, share in SHARES.items():
        exact = float(order[math.ceil(share * 1001) - 1])
        assert exact <= getattr(found, name) <= 1.004 * exact
    assert seen.share(1.5e-3) == pytest.approx(float((numbers <= 1.5e-3).double().mean()), abs=0.01)
    everything = Values(limit)
    everything.add(torch.tensor([math.inf]).expand(1001))
    assert everything.spread().low == math.inf


def _state(model: nn.Module) -> list[Any]:
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    return [hooks, [m.training for m in model.modules()], [sorted(vars(m)) for m in model.modules()]]


class _Breaks(Residual):
    error: BaseException | None = None

    def forward(self, h: Tensor) -> Tensor:
        if self.error is not None:
            raise self.error
        return super().forward(h)


@pytest.mark.parametrize("error", [None, RuntimeError("broken"), KeyboardInterrupt()])
def test_the_model_is_left_as_it_was(error: BaseException | None) -> None:
    model = nn.Sequential(_Breaks(4), _Breaks(4)).train()
    model[0].eval()
    model[1].error = error
    before = _state(model)
    if error is None:
        gs.routing.profile(model, torch.randn(3, 4))
    else:
        expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else ValueError
        with pytest.raises(expected):
            gs.routing.profile(model, torch.randn(3, 4))
    assert _state(model) == before
    assert torch.is_grad_enabled()


def _of(change: Callable[[Tensor], Any]) -> nn.Module:
    class Block(nn.Module):
        def forward(self, h: Tensor) -> Any:
            return change(h)

    return nn.Sequential(Residual(4), Block(), Residual(4))


class _Runs(nn.Module):
    """Runs the blocks in this order."""

    def __init__(self, *order: int) -> None:
        super().__init__()
        self.blocks, self.order = nn.ModuleList(Residual(4) for _ in range(2)), order

    def forward(self, h: Tensor) -> Tensor:
        for at in self.order:
            h = self.blocks[at](h)
        return h


X = torch.ones(3, 4)


@pytest.mark.parametrize(
    ("model", "given", "said"),
    [
        (_of(lambda h: h), [], "batches is empty"),
        (_of(lambda h: h), [X[:0]], "batches is empty"),
        (_of(lambda h: h * float("nan")), [X], r"batch 0: 3 of 3 tokens have NaN or infinite states in layer 1 \("),
        (_of(lambda h: h[:, :3]), [X], r"batch 0: layer 1 \(Block\) has states \[3, 4\] and then \[3, 3\]"),
        (_of(lambda h: None), [X], "batch 0: layer 1 .* has no tensor of states"),
        (_of(lambda h: h), [X, torch.ones(2, 2, 2, 4)], r"batch 1: layer 0 .* has states \[2, 2, 2, 4\]"),
        (_of(lambda h: h), [X, torch.ones(3, 5)], r"does not take batch 1, a tensor \[3, 5\] of torch.float32"),
        (_of(lambda h: h), ["text"], "batch 0: a batch must be a tensor, a mapping or a tuple.*, got str"),
        (_Runs(0, 0, 1), [X], r"batch 0: layer 0 \(Residual\) ran 2 times in a pass, expected once"),
        (_Runs(0), [X], r"batch 0: layer 1 \(Residual\) ran 0 times in a pass, expected once"),
        (_of(lambda h: h), [{"h": X, "attention_mask": X[0]}], r"batch 0: attention_mask must be .*, got \[4\]"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(model: nn.Module, given: Any, said: str) -> None:
    layers = None if isinstance(model, _Runs) else ""
    with pytest.raises(ValueError, match=said):
        gs.routing.profile(model, given, layers=layers)


def test_a_mask_of_another_size_and_other_arguments() -> None:
    model = stack_model("llama")
    with pytest.raises(ValueError, match=r"does not take batch 0|attention_mask \[2, 6\]"):
        gs.routing.profile(model, {"input_ids": batch("llama"), "attention_mask": torch.ones(2, 6, dtype=torch.int64)})
    with pytest.raises(TypeError, match="batches must be an iterable of batches, or one batch, got str"):
        gs.routing.profile(model, "text")
    with pytest.raises(ValueError, match=r"exact must be .* got -1"):
        gs.routing.profile(model, batch("llama"), exact=-1)
    found = gs.routing.profile(model, batch("llama"))
    for call, said in (
        (lambda: found.order("depth"), "by must be influence or contribution, got 'depth'"),
        (lambda: found.sparsity(-0.1), "threshold must be .* got -0.1"),
        (lambda: found.sparsity(0.1, "norm"), "kind must be one of block, attention, mlp, got 'norm'"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_tables_and_files(tmp_path: Path) -> None:
    found = gs.routing.profile(stack_model("llama"), batch("llama"), exact=5)
    assert not found.exact
    lines = str(found).splitlines()
    assert lines[0].startswith("LlamaForCausalLM, 3 layers, 14 tokens")
    assert len(lines) == 7 and f"{found.influence[2]:.4f}" in lines[4]
    found.to_json(tmp_path / "p.json")
    read = json.loads((tmp_path / "p.json").read_text())
    assert read == found.to_dict()
    assert read["sparsity"]["threshold"][20] == 0.2
    assert read["sparsity"]["mlp"][20] == found.sparsity(0.2, "mlp")
    found.to_html(tmp_path / "p.html", source="Made <up>.")
    page = (tmp_path / "p.html").read_text()
    assert "Made &lt;up&gt;." in page and "up to 0.4 %" in page and page.count("<svg") >= 5 and "http" not in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.html", "p.json"]


def test_profiles_are_laid_over_each_other_by_depth(tmp_path: Path) -> None:
    """Three layers and two: both begin at the left of a plot and end at its right."""
    x = torch.randn(5, 4)
    three, two = gs.routing.profile(stack_model("llama"), batch("llama")), gs.routing.profile(_Runs(1, 0), x)
    gs.routing.overlay([three, two], tmp_path / "p.html", source="Made <up>.")
    page = (tmp_path / "p.html").read_text()
    assert "Made &lt;up&gt;." in page and "http" not in page
    curves = re.findall(r'd="M([\d.]+) [^"]*?L?([\d.]+) [\d.]+" class="curve (\w+)"', page)
    assert len({(start, end) for start, end, _ in curves[:2]}) == 1 and [kind for *_, kind in curves[:2]] == [
        "compact", "sparse",
    ]  # fmt: skip
    assert three.typical() == sorted(each.median for each in three.contribution["block"])[1]
    for few in ([three], [three] * 7):
        with pytest.raises(ValueError, match=f"profiles must be 2 to 6, .* got {len(few)}"):
            gs.routing.overlay(few, tmp_path / "q.html")


def test_layers_are_those_of_the_list_in_whatever_order_they_run() -> None:
    model, x = _Runs(1, 0), torch.randn(5, 4)
    found = gs.routing.profile(model, x)
    plain = gs.routing.profile(nn.Sequential(model.blocks[1], model.blocks[0]), x)
    assert found.influence == pytest.approx(plain.influence[::-1])
    assert found.contribution["block"] == plain.contribution["block"][::-1]


def test_a_compiled_model_is_seen_through() -> None:
    model, x = nn.Sequential(Residual(4), Residual(4)), torch.randn(5, 4)
    plain = gs.routing.profile(model, x)
    model.compile(backend="eager")
    _equal(gs.routing.profile(torch.compile(model, backend="eager"), x), plain, 1e-9)
    with torch.inference_mode():
        _equal(gs.routing.profile(model, x), plain, 1e-9)
    assert_close(model(x), model[1](model[0](x)))
