"""`gs.profile.find_sparsity`: shares that are known, models that stay as they are, lines that run, clear refusals."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sparse_models import CASES, Case, Mixture, decoder, encoder, ids, padded, relu_decoder
from torch import nn

import gossamer as gs
from gossamer.measure.interleave import Comparison, Row
from gossamer.profile.batches import batches_of
from gossamer.profile.findings import Finding, Findings, Gain, Place, combined, in_order, told
from gossamer.profile.page import page
from gossamer.profile.study import patterns
from gossamer.profile.times import timed

_HINTS = {"zeros": "skip_zeros", "decoding": "threshold", "padding": "backend=\"gossamer\"", "layers": "routing",
          "channels": "compact", "width": "Chase", "labels": "FusedHead"}  # fmt: skip


UNTRACED = [kind for kind in gs.profile.KINDS if kind not in ("channels", "width")]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_shares_are_those_that_are_known_and_lines_run(case: Case) -> None:
    """The share is exact; the verdict is a matter of time and only among those that fit; what is advised runs."""
    torch.manual_seed(0)
    model, batches = case.make()
    found = gs.profile.find_sparsity(model, batches, kinds=[case.kind])[case.kind]
    assert found.share == pytest.approx(case.share, abs=1e-6 if case.kind != "attention" else 1e-3)
    assert found.verdict in case.verdicts
    if case.first is not None:
        assert found.where[0].name == case.first
    if case.kind in ("zeros", "decoding"):  # what reads no zeros is none of the places
        assert found.where and all(place.share >= 0.05 for place in found.where)
    assert (found.gain is None) or found.gain.whole >= 1 or case.kind in ("attention", "layers")
    if found.to_try:
        assert _HINTS.get(case.kind, "") in found.to_try
        compile(found.to_try, case.name, "exec")
        if case.kind != "padding":  # which compiles: the slow test runs it
            given = batches if isinstance(batches, list) else [batches]
            given = [each[0] if isinstance(each, tuple) else each for each in given]
            lines = found.to_try.replace("steps=200", "steps=2")
            exec(lines, {"model": model, "batches": given})


@pytest.mark.slow
def test_lines_about_padding_run() -> None:
    model, batch = encoder(), padded(40, 10, 5, 5)
    found = gs.profile.find_sparsity(model, batch, kinds=["padding"])["padding"]
    exec(found.to_try, {"model": model, "batches": [batch]})


def test_lines_about_small_activations_and_keys_run() -> None:
    model, batches = decoder(), [ids(1, 96)]
    found = gs.profile.find_sparsity(model, batches, kinds=["small"], max_error=0.5)["small"]
    assert 0 < (found.share or 0) < 1 and found.where and all(place.alone is not None for place in found.where)
    exec(found.to_try, {"model": model, "batches": batches})
    none = gs.profile.find_sparsity(decoder(), batches, kinds=["small"], max_error=1e-6)["small"]
    assert none.verdict == "nothing here" and none.share == 0


def test_keys_in_few_pages_make_a_small_budget() -> None:
    """A head that looks at the first token only needs the least budget."""
    model = decoder(1, hidden_size=64, head_dim=32)
    attention = model.model.layers[0].self_attn
    text = ids(1, 640)
    biased = _with_bias(attention)
    found = gs.profile.find_sparsity(model, text, kinds=["attention"])["attention"]
    biased.remove()
    assert found.share is not None and found.share > 0.99
    assert "192 tokens in the best pages" in found.found and found.gain is not None
    assert "token_budget=192" in found.to_try
    exec(found.to_try, {"model": model, "batches": [text]})


def _with_bias(attention: nn.Module) -> Any:
    """Have each query see the first key by a mask that adds to its score."""

    def before(module: Any, args: Any, kwargs: Any) -> Any:
        tokens = kwargs["hidden_states"].shape[1]
        mask = torch.full((1, 1, tokens, tokens), -torch.inf).triu(1)
        mask[..., 1:, 0] = 30.0
        return args, {**kwargs, "attention_mask": mask} if tokens > 1 else kwargs

    return attention.register_forward_pre_hook(before, with_kwargs=True)


def test_each_kind_says_why_there_is_nothing() -> None:
    plain = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4))
    found = gs.profile.find_sparsity(plain, torch.randn(4, 8))
    assert {each.kind for each in found.findings} == set(gs.profile.KINDS)
    assert not found.pays and all(each.found for each in found.findings)
    assert "0.0%" in found["zeros"].found and found["zeros"].share == 0
    assert "no texts" in found["padding"].found and "no causal language model" in found["attention"].found
    assert found["channels"].share == 0 and "4,096 labels" in found["labels"].found
    few = gs.profile.find_sparsity(relu_decoder(), ids(1, 4), kinds=["zeros", "attention"])
    assert "4 rows, which wait for the weights" in few["zeros"].found
    assert "texts of 4 to 4 tokens" in few["attention"].found
    assert "no attention masks" in gs.profile.find_sparsity(encoder(), ids(2, 9), kinds=["padding"])["padding"].found


class Everything(nn.Module):
    """Modes, frozen weights, counters, hooks, random numbers: all that a pass could change."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 32)
        self.norm = nn.BatchNorm1d(32)
        self.dropout = nn.Dropout(0.5)
        self.last = nn.Linear(32, 16).requires_grad_(False)
        self.calls = 0
        self.register_buffer("seen", torch.zeros(()))
        self.train()
        self.dropout.eval()
        self.first.register_forward_hook(lambda module, args, out: out * 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.seen += 1
        noise = torch.rand(()) * 0
        return self.last(self.dropout(torch.relu(self.norm(self.first(x))))) + noise


def _state(model: nn.Module) -> Any:
    tensors = {
        name: (t, t.data_ptr(), t.stride(), t.requires_grad, t.grad is None, t._version, t.detach().clone())
        for name, t in (*model.named_parameters(), *model.named_buffers())
    }
    modules = {
        name: (m, type(m), m.training, list(m._forward_hooks), list(m._forward_pre_hooks), sorted(vars(m)))
        for name, m in model.named_modules()
    }
    return tensors, modules, torch.get_rng_state()


def _same(before: Any, after: Any, *, versions: bool) -> None:
    for name, (tensor, *rest, version, value) in before[0].items():
        other, *others, later, now = after[0][name]
        assert tensor is other and rest == others and torch.equal(value, now), name
        assert not versions or version == later, name
    assert before[1] == after[1] and torch.equal(before[2], after[2])


@pytest.mark.parametrize(
    ("make", "kinds"),
    [
        *((each, gs.profile.KINDS) for each in (Everything, decoder, encoder)),  # networks of others are not traced
        *((each, UNTRACED) for each in (lambda: CASES[6].make()[0], Mixture, relu_decoder)),
    ],
)  # fmt: skip
def test_the_model_stays_as_it_was(make: Any, kinds: list[str]) -> None:
    model = make()
    batch = torch.randn(12, 16)
    if hasattr(model, "config"):
        batch = padded(20, 9) if type(model).__name__ == "BertModel" else ids(2, 20)
    before, given = _state(model), copy.deepcopy(batch)
    gs.profile.find_sparsity(model, batch, kinds=kinds)
    # The buffers of a module that counts are put back, which torch counts as a change of them.
    _same(before, _state(model), versions=not isinstance(model, Everything))
    pairs = batch.items() if isinstance(batch, dict) else [("", batch)]
    assert all(torch.equal(value, given[name] if name else given) for name, value in pairs)
    assert not isinstance(model, Everything) or model.calls == 0


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"model": 3}, TypeError, "model must be a torch.nn.Module, got int"),
        ({"model": nn.LazyLinear(3)}, ValueError, "LazyLinear whose layers have no shape"),
        ({"batches": "text"}, TypeError, "batches must be an iterable"),
        ({"batches": []}, ValueError, "batches is empty"),
        ({"batches": [3]}, TypeError, "batch 0 must be a tensor"),
        ({"batches": [torch.ones(2, 8), {}]}, ValueError, "batch 1 must hold a tensor"),
        ({"batches": torch.ones(0, 8)}, ValueError, r"batch 0 must have examples, got a tensor of shape \[0, 8\]"),
        ({"batches": torch.full((2, 8), float("nan"))}, ValueError, "batch 0 must be finite"),
        ({"batches": {"input_ids": ids(2, 4), "attention_mask": ids(2, 3)}}, ValueError, "attention_mask of batch 0"),
        ({"batches": {"input_ids": ids(2, 4), "attention_mask": 0 * ids(2, 4)}}, ValueError, "is 0 everywhere"),
        ({"kinds": "zeros"}, TypeError, "kinds must be names"),
        ({"kinds": ["zeroes"]}, ValueError, "got zeroes"),
        ({"kinds": []}, ValueError, "got none"),
        ({"max_error": 1.0}, ValueError, "max_error must be a share of 1, got 1.0"),
        ({"idle": -1}, ValueError, "idle must be a share of 1, got -1"),
    ],
)
def test_refusals_name_what_is_wrong_before_anything_runs(change: Any, error: Any, said: str) -> None:
    ran: list[int] = []
    net = nn.Sequential(nn.Linear(8, 4))
    net.register_forward_pre_hook(lambda module, args: ran.append(1))
    given = {"model": net, "batches": torch.ones(2, 8)} | change
    with pytest.raises(error, match=said):
        gs.profile.find_sparsity(**given)
    assert not ran


def test_a_batch_that_does_not_fit_is_named_and_nothing_stays_behind() -> None:
    net = nn.Sequential(nn.Linear(8, 4)).train()
    with pytest.raises(ValueError, match=r"Sequential does not take batch 1 \(2 examples\): RuntimeError"):
        gs.profile.find_sparsity(net, [torch.ones(2, 8), torch.ones(2, 9)], kinds=["zeros"])
    assert net.training and not net[0]._forward_pre_hooks and not net[0]._forward_hooks


def test_gains_are_put_together_by_amdahls_law() -> None:
    parts = [Place("a", 0.5, time=0.4, alone=2.0), Place("b", 0.5, time=0.2, alone=1.0), Place("c", 0.5)]
    gain = combined(parts, "a pass", "")
    assert gain.whole == pytest.approx(1 / 0.8) and gain.share == pytest.approx(0.6)
    assert gain.alone == pytest.approx(0.6 / 0.4)
    none = Finding("padding", "nothing here", "none")
    small, large = (Finding("zeros", "pays", "some", gain=Gain(by, "a pass", "")) for by in (1.2, 3.0))
    little = Finding("labels", "too little to gain", "some", gain=Gain(1.01, "a pass", ""))
    unknown = Finding("width", "not measured because", "none")
    assert in_order([none, unknown, small, little, large]) == (large, small, little, none, unknown)


@pytest.mark.parametrize(
    ("mine", "control", "ratio", "noise"),
    [
        ([1.0, 1.0, 1.0], [2.0, 2.0, 2.0], 2.0, False),
        ([2.0, 2.0, 2.0], [2.0, 2.0, 2.0], 1.0, False),
        ([4.0, 4.0, 4.0], [2.0, 2.0, 2.0], 1.0, False),
        ([1.5, 1.5, 1.5], [1.0, 2.0, 1.0], 1.0, True),
    ],
)
def test_only_what_is_told_from_noise_is_a_gain(
    mine: list[float], control: list[float], ratio: float, noise: bool
) -> None:
    dense = [2.0, 2.0, 2.0]
    rows = tuple(Row.of(name, 1.0, times, dense) for name, times in (("dense", dense), ("mine", mine)))
    found, said = told(Comparison("dense", rows, Row.of("dense (control)", 1.0, control, dense)), "mine")
    assert found == ratio and ("not told from noise" in said) is noise


def test_time_is_all_of_a_pass() -> None:
    """Shares are of one whole: parts that do not hold one another never add up to more."""
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Sequential(nn.Linear(64, 64)))
    times = timed(net, ["0", "2.0"], lambda: net(torch.ones(64, 64)), holding=["2"])
    assert 0 < times.share["0"] + times.share["2.0"] <= 1 and times.attention == 0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_names_become_patterns_that_find_them_again() -> None:
    import fnmatch

    names = ["model.layers.0.fc2", "model.layers.11.fc2", "0", "3.1.proj", "conv2.weight1"]
    found = patterns(names)
    assert found[0] == "model.layers.*.fc2" and len(found) == 4
    assert all(any(fnmatch.fnmatchcase(name, each) for each in found) for name in names)


def test_batches_come_as_loaders_and_tokenizers_give_them() -> None:
    net = nn.Linear(8, 4)
    first, second = batches_of(net, [(torch.ones(3, 8), torch.ones(3)), torch.ones(2, 8)])
    assert (first.examples, second.examples, first.mask, first.ids) == (3, 2, None, None)
    text = batches_of(encoder(), padded(4, 2))[0]
    assert text.examples == 2 and text.ids is not None and str(text) == "2 texts of 4 tokens"


def test_findings_are_shown_as_text_data_and_a_page(tmp_path: Path) -> None:
    gain = Gain(1.5, "a pass", "timed", alone=2.0, share=0.6)
    findings = (
        Finding("zeros", "pays", "half are <zeros>", 0.5, gain, (Place("a & b", 0.5, 0.6, 2.0),), "import this"),
        Finding("width", "not measured because", "it was not asked for"),
    )
    found = Findings("Net", "one batch", findings, ("a note",), {"threads": 2})
    said = str(found)
    assert "expected 1.50x of a pass (these parts alone 2.00x, 60% of the time)" in said
    assert (
        "      import this" in said and "not measured because it was not asked for" in said and "Note: a note" in said
    )
    assert found.pays == findings[:1] and found["width"] is findings[1]
    with pytest.raises(KeyError, match="no finding 'labels'"):
        found["labels"]
    found.to_json(tmp_path / "found.json")
    data = json.loads((tmp_path / "found.json").read_text())
    assert data["findings"][0]["gain"]["whole"] == 1.5 and data["findings"][0]["where"][0]["name"] == "a & b"
    html = page(found, "gossamer profile net data")
    assert (
        "half are &lt;zeros&gt;" in html.lower()
        and "a &amp; b" in html
        and "1.50\N{MULTIPLICATION SIGN}" in html
        and "import this" in html
    )
    assert "<script" not in html and "gossamer profile net data" in html and 'id="width"' in html
