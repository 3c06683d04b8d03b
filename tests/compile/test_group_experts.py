"""Law: group_experts changes how loops over experts compute, never what; what it leaves alone it gives a reason for."""

import copy
import io
import pickle

import pytest
import torch
from moe_cases import assert_as_exact
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

import gossamer as gs
from gossamer.compile import group_experts
from gossamer.compile.mixtures.group import FewRowsLinear
from gossamer.ops.few_rows import few_rows_linear


class FeedForward(nn.Module):
    def __init__(self, dim=8, hidden=16):
        super().__init__()
        self.up, self.down, self.seen = nn.Linear(dim, hidden), nn.Linear(hidden, dim), 0

    def forward(self, x):
        self.seen += x.numel() // x.shape[-1]
        return self.down(torch.relu(self.up(x)))


class OtherLinear(nn.Linear):
    """Whose forward is its own."""


class FeedForwardOfOthers(FeedForward):
    def __init__(self):
        super().__init__()
        self.up.__class__ = self.down.__class__ = OtherLinear


class Mixture(nn.Module):
    def __init__(self, sum_of, experts=4, make=FeedForward):
        super().__init__()
        self.router = nn.Linear(8, experts)
        self.experts = nn.ModuleList(make() for _ in range(experts))
        self.sum_of = sum_of

    def forward(self, x):
        gates, ids = self.router(x).softmax(-1).topk(2, -1)
        return self.sum_of(self.experts, x, gates, ids)


def mask_of(experts, x, gates, ids):
    return gates.new_zeros(*x.shape[:-1], len(experts)).scatter(-1, ids, gates)


def masked_left(experts, x, gates, ids):
    y, mask = torch.zeros_like(x), mask_of(experts, x, gates, ids)
    for e, expert in enumerate(experts):
        y = y + mask[..., e : e + 1] * expert(x)
    return y


def masked_right(experts, x, gates, ids):
    mask = mask_of(experts, x, gates, ids)
    return x + sum(torch.mul(expert(x), mask[..., e].unsqueeze(-1)) for e, expert in enumerate(experts))


def in_place(experts, x, gates, ids):
    y, mask = x.clone(), mask_of(experts, x, gates, ids)
    for e, expert in enumerate(experts):
        y += expert(x) * mask[..., e, None]
    return y


def stacked(experts, x, gates, ids):
    """Nothing waits here: each result is used at once."""
    return (torch.stack([expert(x) for expert in experts], -1) * mask_of(experts, x, gates, ids).unsqueeze(-2)).sum(-1)


def weighted_otherwise(experts, x, gates, ids):
    """A factor for each feature is no mask of rows; nor are other operations."""
    y = torch.zeros_like(x)
    for e, expert in enumerate(experts):
        y = y - (expert(x) * x.tanh() / 2 + 1 - expert.down.bias) * mask_of(experts, x, gates, ids)[..., e, None]
    return -y


def chosen_rows(experts, x, gates, ids):
    flat, ids, gates = x.reshape(-1, 8), ids.reshape(-1, 2), gates.reshape(-1, 2)
    y = torch.zeros_like(flat)
    for e, expert in enumerate(experts):
        rows, j = torch.where(ids == e)
        if len(rows):
            y.index_add_(0, rows, expert(flat[rows]) * gates[rows, j, None])
    return y.view(x.shape)


MASKED = [masked_left, masked_right, in_place, stacked, weighted_otherwise]


def results(model, x):
    for each in model.modules():
        each.seen = 0
    x = x.detach().requires_grad_()
    y = model(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *model.parameters()], materialize_grads=True)]


def seen(model):
    return sum(getattr(each, "seen", 0) for each in model.modules())


@pytest.mark.parametrize("shape", [(40, 8), (2, 20, 8)], ids=str)
@pytest.mark.parametrize("form", [*MASKED, chosen_rows])
def test_same_numbers_of_the_same_parameters(form, shape):
    torch.manual_seed(0)
    model, x = nn.Sequential(Mixture(form), Mixture(form)), torch.randn(shape)
    own, oracle = results(model, x), results(copy.deepcopy(model).double(), x.double())
    before, classes = dict(model.named_parameters()), [type(each) for each in model.modules()]
    report = group_experts(model, x, only_faster=False)
    assert [each.node for each in report.findings] == ["0", "1"]
    assert {each.choice for each in report.findings} == {"few rows" if form is chosen_rows else "rows chosen"}
    assert all(after is before[name] for name, after in model.named_parameters())
    with torch.inference_mode():
        model(x)
    for other in (model, copy.deepcopy(model)):
        assert_as_exact(results(other, x), own, oracle)
        if form in (masked_left, masked_right, in_place):
            assert seen(other) == 2 * 2 * 40  # two blocks, two experts for each of 40 rows, and not four
    report.undo()
    assert [type(each) for each in model.modules()] == classes
    for a, b in zip(results(model, x), own, strict=True):
        assert torch.equal(a, b)


def test_no_row_and_every_row():
    torch.manual_seed(0)
    model = Mixture(masked_left)
    group_experts(model, torch.randn(5, 8), only_faster=False)
    assert model(torch.zeros(0, 8)).shape == (0, 8)
    with torch.no_grad():
        model.sum_of = lambda experts, x, gates, ids: masked_left(experts, x, gates * 0, ids)
        assert not model(torch.randn(5, 8)).any()
        model.sum_of = lambda experts, x, gates, ids: masked_left(experts, x, gates * float("nan"), ids)
        assert model(torch.randn(5, 8)).isnan().all()


LOOPING = {
    "switch_transformers": {
        "d_ff": 32, "d_kv": 4, "num_heads": 2, "num_layers": 2, "num_decoder_layers": 2, "num_sparse_encoder_layers": 1,
        "num_sparse_decoder_layers": 1,
    },
    "nllb-moe": {
        "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_sparse_step": 1, "decoder_sparse_step": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize("family", LOOPING)
def test_models_of_transformers_that_loop(family):
    torch.manual_seed(0)
    sizes = {"d_model": 16, "num_experts": 4, "vocab_size": 50, "decoder_start_token_id": 0}
    config = AutoConfig.for_model(family, **sizes | LOOPING[family])
    model, ids = AutoModelForSeq2SeqLM.from_config(config).eval(), torch.randint(4, 50, (2, 7))
    inputs = {"input_ids": ids, "decoder_input_ids": ids}
    with torch.no_grad():
        own, oracle = model(**inputs).logits, copy.deepcopy(model).double()(**inputs).logits
        report = group_experts(model, inputs, only_faster=False)
        assert report.findings and {each.choice for each in report.findings} == {"few rows"}
        assert any(type(each) is FewRowsLinear for each in model.modules())
        assert_as_exact([model(**inputs).logits], [own], [oracle])


@pytest.mark.parametrize("form", [masked_left, chosen_rows])
def test_files_hold_the_model_as_it_was_written(form):
    model, x = Mixture(form), torch.randn(6, 8)
    names = list(model.state_dict())
    group_experts(model, x, only_faster=False)
    assert list(model.state_dict()) == names and isinstance(model, Mixture)
    loaded = pickle.loads(pickle.dumps(model))
    assert type(loaded) is Mixture and {type(e) for e in loaded.experts} == {FeedForward}
    torch.testing.assert_close(loaded(x), model(x))
    file = io.BytesIO()
    torch.save(model, file)


def test_graphs_hold_the_loop():
    model, x = Mixture(masked_left), torch.randn(6, 8)
    y = model(x)
    group_experts(model, x, only_faster=False)
    torch.testing.assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(x), y)


def llama4():
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama4_text", hidden_size=16, intermediate_size=24, intermediate_size_mlp=32, num_hidden_layers=2, head_dim=4,
        num_attention_heads=4, num_key_value_heads=2, vocab_size=50, num_local_experts=4, pad_token_id=0,
        interleave_moe_layer_step=1,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for name, parameter in model.named_parameters():
        if "experts" in name:
            nn.init.normal_(parameter, std=0.2)
    return model


def test_experts_as_one_batched_product():
    model, ids = llama4(), torch.randint(1, 50, (2, 9))
    moe, x = model.model.layers[0].feed_forward, torch.randn(30, 16)

    def run(moe, x):
        x = x.detach().requires_grad_()
        y = moe(x)[0]
        return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *moe.parameters()])]

    own, oracle, logits = run(moe, x), run(copy.deepcopy(moe).double(), x.double()), model(ids).logits
    report = group_experts(model, ids, only_faster=False)
    assert [each.choice for each in report.findings] == ["rows that are not zero"] * 2
    torch.testing.assert_close(model(ids).logits, logits)
    compiled = torch.compile(moe, backend="aot_eager", fullgraph=True)
    for each in (moe, copy.deepcopy(moe), compiled):
        assert_as_exact(run(each, x), own, oracle)
    with gs.testing.assert_no_recompile():
        for _ in range(20):
            compiled(torch.randn(30, 16).requires_grad_())
    assert moe.experts(torch.zeros(8, 16)).shape == (8, 16) and moe.experts(torch.zeros(0, 16)).shape == (0, 16)
    report.undo()
    assert torch.equal(model(ids).logits, logits)


def test_rows_of_zeros_are_not_multiplied():
    moe = llama4().model.layers[0].feed_forward
    report, x = group_experts(moe, torch.randn(10, 16), only_faster=False), torch.zeros(40, 16)
    x[[3, 11, 12]] = 1.0
    with torch.no_grad():
        moe.experts.down_proj[2:] = torch.nan  # experts 2 and 3 have rows 20 to 39
    y = moe.experts(x)
    assert report.findings and y.isfinite().all() and y[[3, 11, 12]].any(1).all() and y.any(1).sum() == 3


class Softmax(FeedForward):
    """No function of its rows one by one."""

    def forward(self, x):
        return super().forward(x).softmax(0)


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers, self.head = nn.ModuleList(FeedForward() for _ in range(4)), nn.Linear(8, 4)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@pytest.mark.parametrize("model, why", [
    (lambda: Mixture(masked_left, make=Softmax), "it differs from the loop by"),
    (Layers, "they feed one another"),
    (lambda: Mixture(lambda experts, x, gates, ids: x), "it was not called on the example"),
    (lambda: Mixture(lambda experts, x, gates, ids: experts[0](x) + experts[0](-x)), "called more than once"),
    (lambda: Mixture(chosen_rows, make=FeedForwardOfOthers), "no plain linear layer"),
])  # fmt: skip
def test_what_is_left_alone_and_why(model, why):
    torch.manual_seed(0)
    model = model()
    x = torch.randn(9, 8, dtype=next(model.parameters()).dtype)
    y, classes = model(x), [type(each) for each in model.modules()]
    report = group_experts(model, x, only_faster=False)
    assert [each.choice for each in report.findings] == ["dense"] and why in report.findings[0].why
    assert [type(each) for each in model.modules()] == classes and torch.equal(model(x), y)


def test_lists_without_a_router_are_no_experts():
    unlike = Mixture(masked_left)
    unlike.experts[1] = FeedForward(hidden=17)
    for model in (nn.Sequential(*(FeedForward() for _ in range(3))), unlike):
        assert group_experts(model, torch.randn(4, 8)).findings == ()


@pytest.mark.parametrize("ratio, choice", [(1.5, "rows chosen"), (1.01, "dense")])
def test_only_what_is_faster(ratio, choice, monkeypatch):
    class Measured(dict):
        control = gs.measure.Row("loop", 1, 1, 1, 1, 1, 1.0, 0.95, 1.05, 7)

    def measured(calls, **settings):
        for call in calls.values():
            call()
        return Measured(now=gs.measure.Row("now", 1, 1, 1, 1, 1, ratio, ratio - 0.05, ratio + 0.05, 7))

    monkeypatch.setattr("gossamer.compile.mixtures.group.interleave", measured)
    finding = group_experts(Mixture(masked_left), torch.randn(6, 8)).findings[0]
    assert finding.choice == choice
    if choice == "dense":
        assert finding.why == "the loop is as fast on the example (1.01x)"
    else:
        assert finding.gain() == "1.50x on the example"


def test_few_rows_linear():
    x, weight = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((5, 7), (3, 7)))
    torch.testing.assert_close(few_rows_linear(x, weight), x @ weight.t())
    assert torch.autograd.gradcheck(few_rows_linear, (x, weight), fast_mode=True)
    assert torch.autograd.gradgradcheck(few_rows_linear, (x, weight), fast_mode=True)
    with pytest.raises(TypeError, match="floats of one dtype"):
        few_rows_linear(x, weight.float())
    with pytest.raises(ValueError, match=r"weight must have shape \[n, 7\] for x's columns, got \(7, 3\)"):
        few_rows_linear(x, weight.t())


def test_few_rows_layers_leave_to_torch_what_they_cannot_take():
    layer = FewRowsLinear(6, 4)
    for x in (torch.randn(2, 3, 6), torch.randn(40, 6), torch.randn(6)):
        assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    x = torch.randn(5, 6)
    assert torch.func.vmap(layer)(x.unsqueeze(1)).shape == (5, 1, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_an_expert_without_rows_has_gradients_of_zero():
    """As in the loop; an optimizer treats a parameter without any otherwise."""
    model, x = Mixture(masked_left), torch.randn(6, 8)
    with torch.no_grad():
        model.router.bias.copy_(torch.tensor([9.0, 9.0, -9.0, -9.0]))
    group_experts(model, x, only_faster=False)
    model(x).sum().backward()
    assert not any(p.grad.any() for p in model.experts[3].parameters())
    assert all(p.grad.any() for p in model.experts[0].parameters())


def test_hooks_of_experts_see_what_the_loop_gives_them():
    model, x, shapes = Mixture(masked_left), torch.randn(6, 8), []
    group_experts(model, x, only_faster=False)
    y = model(x)
    model.experts[2].register_forward_hook(lambda module, args, out: shapes.append(out.shape))
    torch.testing.assert_close(model(x), y)
    assert shapes == [(6, 8)]


def test_where_nothing_may_be_looked_at_the_loop_runs():
    """Traced, exported, transformed by torch.func, on a device without numbers: one graph for every routing."""
    torch.manual_seed(0)
    model, x = Mixture(masked_left).requires_grad_(False), torch.randn(6, 8)
    group_experts(model, x, only_faster=False)
    other = torch.randn(6, 8)
    y = model(other)
    torch.testing.assert_close(torch.jit.trace(model, x)(other), y)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(other), y)
    torch.testing.assert_close(torch.func.vmap(model)(other.unsqueeze(1)).squeeze(1), y)
    assert copy.deepcopy(model).to("meta")(x.to("meta")).shape == (6, 8)


def test_written_in_place_while_a_result_waits():
    def writes(experts, x, gates, ids):
        x = x.clone()
        waiting = [expert(x) for expert in experts]
        if gates.sum() > 100:  # not on the example
            x.zero_()
        return sum(each * mask_of(experts, x, gates, ids)[..., e, None] for e, each in enumerate(waiting))

    model = Mixture(writes)
    group_experts(model, torch.randn(6, 8), only_faster=False)
    with pytest.raises(RuntimeError, match="was written in place before the result was used"):
        model(torch.randn(200, 8))
