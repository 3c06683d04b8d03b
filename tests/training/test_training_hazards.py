"""Law: what cannot work is refused with an error that names it, before anything has changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from training_cases import NETWORKS, OPTIMIZERS, build, images, loss, run

from gossamer.training import MEST, METHODS, SET, Chase, GradualMagnitude, GraNet, RigL, SRigL, Static
from gossamer.training.discover import unwrap

OF_ANOTHER_TYPE = (
    "steps as float", "seed as text", "density as text", "density as flag", "start as text", "drop as text",
)  # fmt: skip
ARGUMENTS: dict[str, tuple[type, dict[str, Any], str]] = {
    "density 0": (RigL, {"density": 0.0}, r"density must be in \(0, 1\], got 0.0"),
    "density above 1": (RigL, {"density": 1.5}, r"density must be in \(0, 1\], got 1.5"),
    "density nan": (RigL, {"density": float("nan")}, r"density must be in \(0, 1\], got nan"),
    "nothing kept": (RigL, {"density": 1e-5}, "rounds to 0"),
    "steps": (RigL, {"total_steps": 0}, "total_steps must be an integer >= 1, got 0"),
    "steps as float": (RigL, {"total_steps": 10.0}, "total_steps must be an integer >= 1, got 10.0"),
    "period": (RigL, {"update_every": 0}, "update_every must be an integer >= 1, got 0"),
    "seed": (RigL, {"seed": -1}, "seed must be an integer >= 0, got -1"),
    "seed as text": (RigL, {"seed": "x"}, "seed must be an integer >= 0, got 'x'"),
    "density as text": (RigL, {"density": "a"}, "density must be a number, got 'a'"),
    "density as flag": (RigL, {"density": True}, "density must be a number, got True"),
    "start as text": (RigL, {"start": "now"}, "start must be a number, got 'now'"),
    "drop as text": (SET, {"drop_fraction": "half"}, "drop_fraction must be a number, got 'half'"),
    "tile as number": (RigL, {"tile": 4}, "tile must be two integers >= 1, got 4"),
    "stop before start": (RigL, {"start": 0.5, "stop": 0.2}, "start=0.5, stop=0.2"),
    "stop": (RigL, {"stop": 1.5}, "stop=1.5"),
    "init": (RigL, {"init": "zeros"}, "init must be one of .*, got 'zeros'"),
    "grow_init": (RigL, {"grow_init": "ones"}, "grow_init must be one of .*, got 'ones'"),
    "warmup": (RigL, {"grow_warmup": -1}, "grow_warmup must be an integer >= 0, got -1"),
    "window": (RigL, {"grad_window": 200}, "grad_window=200 is longer than update_every=100"),
    "tile": (RigL, {"tile": (0, 1)}, r"tile must be two integers >= 1, got \(0, 1\)"),
    "distribution": (RigL, {"distribution": "ERK"}, "distribution must be one of .*, got 'ERK'"),
    "table glob": (RigL, {"distribution": {"conv*": 0.1}}, r"distribution\['conv\*'\] matches no layer"),
    "table value": (RigL, {"distribution": {"1.*": 2.0}}, r"distribution\['1.\*'\] must be in \[0, 1\], got 2.0"),
    "table too much": (RigL, {"distribution": {"1.*": 1.0}}, "the table fixes 1536"),
    "table too little": (RigL, {"density": 0.9, "distribution": {"1.*": 0.0}}, "remaining layers hold 888"),
    "include": (RigL, {"include": ["head.*"]}, r"include glob 'head.\*' matches no parameter"),
    "exclude": (RigL, {"exclude": ["head.*"]}, r"exclude glob 'head.\*' matches no parameter"),
    "nothing left": (RigL, {"exclude": ["*"]}, "nothing to prune"),
    "bias": (RigL, {"include": ["1.bias"]}, r"1.bias has shape \(32,\): only weights with at least 2 axes"),
    "drop": (SET, {"drop_fraction": 1.2}, r"drop_fraction must be in \[0.0, 1.0\], got 1.2"),
    "drop rule": (SET, {"drop": "random"}, "drop must be one of .*, got 'random'"),
    "grow rule": (SET, {"grow": "momentum"}, "grow must be one of .*, got 'momentum'"),
    "schedule": (SET, {"drop_schedule": "step"}, "schedule must be one of .*, got 'step'"),
    "grow value": (SET, {"grow_init": "gradient"}, "grow_init='gradient' needs grow='gradient'"),
    "momentum": (METHODS["snfs"], {"momentum": 1.0}, "momentum must be below 1"),
    "redistribute": (METHODS["snfs"], {"redistribute": "all"}, "redistribute must be one of .*, got 'all'"),
    "mutation": (MEST, {"mutation": (1.2, 0.1, 0.0)}, r"mutation must be in \[0.0, 1.0\], got 1.2"),
    "soft mutation": (MEST, {"density": 0.9, "soft": True}, r"mutation must be in \[0.0, 0.11\d*\], got 0.2"),
    "mutation ends": (MEST, {"mutation": (0.1, 0.0)}, "mutation_ends must have one value fewer"),
    "mutation order": (MEST, {"mutation_ends": (0.7, 0.2)}, "mutation_ends must rise"),
    "sensitivity": (MEST, {"sensitivity": -1.0}, "sensitivity must be >= 0"),
    "initial": (GradualMagnitude, {"density": 0.5, "initial_density": 0.3}, r"initial_density must be in \[0.5, 1.0\]"),
    "scope": (GradualMagnitude, {"scope": "model"}, "scope must be one of"),
    "regenerate": (GraNet, {"regenerate": -0.1}, "regenerate must be in"),
    "salient": (SRigL, {"min_salient": -1}, "min_salient must be >= 0"),
    "salient tiles": (SRigL, {"tile": (1, 4)}, r"neurons can only be ablated with tile \(1, 1\)"),
    "fan-in below 1": (SRigL, {"density": 0.01}, r"1.weight keeps \d+ weights for 32 neurons, less than one each"),
    "channels": (Chase, {"channel_sparsity": 1.2}, r"channel_sparsity must be in \[0.0, 1.0\], got 1.2"),
    "all channels": (Chase, {"channel_sparsity": 1.0}, "channel_sparsity=1.0 removes 56 of 56 channels"),
    "density of chase": (Chase, {"density": 1.5}, r"^density must be in \(0, 1\], got 1.5"),
    "density of soft mest": (MEST, {"density": 1.5, "soft": True}, r"^density must be in \(0, 1\], got 1.5"),
    "density of gradual": (GradualMagnitude, {"density": -0.5}, r"^density must be in \(0, 1\], got -0.5"),
    "extra": (Chase, {"density": 0.99}, r"extra_density must be in \[0.0, 0.01\d*\], got 0.05"),
    "explore": (Chase, {"explore_every": 0}, "explore_every must be an integer >= 1"),
    "removal": (Chase, {"channel_every": 0}, "channel_every must be an integer >= 1"),
    "compact": (Chase, {"compact_every": 0}, "compact_every must be an integer >= 1"),
    "round": (Chase, {"round_to": 0}, "round_to must be an integer >= 1"),
    "final drop": (Chase, {"final_drop": (0.5,)}, "final_drop must be two fractions"),
    "chase scope": (Chase, {"scope": "outer"}, "scope must be one of"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_bad_arguments(case: str) -> None:
    cls, options, message = ARGUMENTS[case]
    torch.manual_seed(0)
    model = NETWORKS["mlp"]()
    opt = OPTIMIZERS["adamw"](model.parameters())
    before = [p.detach().clone() for p in model.parameters()]
    if cls in (Chase, SRigL):
        options = {"example_inputs": images()[0], **options}
    with pytest.raises(TypeError if case in OF_ANOTHER_TYPE else ValueError, match=message):
        cls(model, opt, **{"density": 0.1, "total_steps": 1000, **options})
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not opt._optimizer_step_pre_hooks and not opt._optimizer_step_post_hooks
    assert not model._forward_pre_hooks


def test_unknown_arguments_and_strings_for_lists() -> None:
    with pytest.raises(TypeError, match="drop_rate"):
        build("rigl", drop_rate=0.3)
    with pytest.raises(TypeError, match=r"exclude must be a list of globs, got the string '5\.\*'"):
        build("rigl", exclude="5.*")
    with pytest.raises(TypeError, match="update_every"):
        build("chase", update_every=3)


def parametrized() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))


def quantised() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1] = torch.ao.nn.quantized.Linear(4, 4)
    return model


def pruned() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    prune.random_unstructured(model[1], "weight", 0.5)
    return model


def sharing() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = nn.Parameter(model[0].weight.data)
    return model


class Tagged(torch.Tensor):
    """A stand-in for DTensor and for the weight classes of quantisation libraries."""


def subclassed() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = nn.Parameter(torch.randn(4, 4).as_subclass(Tagged))
    return model


MODELS: dict[str, tuple[Callable[[], nn.Module], type[Exception], str]] = {
    "parametrization": (parametrized, TypeError, "1.weight is not a plain parameter of ParametrizedLinear"),
    "torch prune": (pruned, TypeError, "1.weight is not a plain parameter of Linear"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(4)), RuntimeError, "0.weight is not initialised yet: run one forward"),
    "meta": (lambda: nn.Linear(4, 4, device="meta"), RuntimeError, "weight is on the meta device"),
    "DataParallel": (lambda: nn.DataParallel(nn.Linear(4, 4)), TypeError, "DataParallel .* is not supported"),
    "quantised": (quantised, TypeError, "quantised module Linear"),
    "tensor subclass": (subclassed, TypeError, r"1.weight is a Tagged \(sharded or quantised\)"),
    "shared memory": (sharing, ValueError, "0.weight and 1.weight share memory but are different Parameters"),
    "complex": (lambda: nn.Linear(4, 4, dtype=torch.complex64), TypeError, "weight has dtype torch.complex64"),
    "bias only": (lambda: nn.Sequential(nn.BatchNorm1d(4), nn.LayerNorm(4)), ValueError, "nothing to prune"),
}


@pytest.mark.parametrize("case", MODELS)
def test_models_that_cannot_be_masked(case: str) -> None:
    make, kind, message = MODELS[case]
    model = make()
    trainable = [p for p in model.parameters() if not isinstance(p, nn.parameter.UninitializedParameter)]
    opt = torch.optim.SGD(trainable or [nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(kind, match=message):
        RigL(model, opt, density=0.5, total_steps=9)
    assert not opt._optimizer_step_pre_hooks


def test_fully_sharded_is_refused_by_name() -> None:
    sharded = type("FullyShardedDataParallel", (nn.Module,), {})()
    with pytest.raises(TypeError, match=r"FullyShardedDataParallel .* is not supported"):
        unwrap(sharded)


@pytest.mark.parametrize("make", [parametrized, pruned, subclassed])
def test_what_is_excluded_is_not_looked_at(make: Callable[[], nn.Module]) -> None:
    model = make()
    sparse = Static(model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=9, exclude=["1.*"])
    assert list(sparse.masks) == ["0.weight"]


def test_lazy_modules_work_once_they_have_a_shape() -> None:
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(5))
    model(images()[0])
    sparse = Static(model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=9)
    assert sparse.nnz() == 24


OPTIMISERS: dict[str, tuple[Callable[[Any], torch.optim.Optimizer], str]] = {
    "LBFGS": (torch.optim.LBFGS, "flat copies"),
    "Adafactor": (torch.optim.Adafactor, "per row and column"),
    "Muon": (lambda p: torch.optim.Muon([x for x in p if x.ndim == 2]), "orthogonalises whole matrices"),
    "SparseAdam": (lambda p: torch.optim.SparseAdam(list(p)), "sparse gradients"),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_optimizers_without_state_per_weight(name: str) -> None:
    make, reason = OPTIMISERS[name]
    model = NETWORKS["mlp"]()
    with pytest.raises(TypeError, match=f"{name} is not supported: .*{reason}"):
        RigL(model, make(model.parameters()), total_steps=9)


class Factored(torch.optim.Optimizer):
    """Unknown to us, and with one number per row."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["rows"] = torch.zeros(p.shape[0])
                p -= 0.1 * p.grad


def test_grow_warmup_needs_an_optimizer_whose_step_is_about_its_learning_rate() -> None:
    with pytest.raises(ValueError, match=r"grow_warmup is for Adam, .*; SGD has no such step"):
        build("rigl", "momentum", grow_warmup=5)


def test_unknown_optimizers_are_checked_when_their_state_appears() -> None:
    model = NETWORKS["mlp"]()
    opt = Factored(model.parameters())
    Static(model, opt, total_steps=9)
    loss(model, *images()).backward()
    with pytest.raises(TypeError, match=r"state 'rows' of 1.weight has shape \(32,\), expected \(32, 48\)"):
        opt.step()


def test_parameters_of_another_optimizer_are_left_alone_unless_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    model = NETWORKS["mlp"]()
    opt = torch.optim.SGD(model[1].parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"3\.weight is trained but not in the optimizer"):
        RigL(model, opt, total_steps=9, include=["*.weight"])
    others = [model[3].weight.clone(), model[5].weight.clone()]
    sparse = RigL(model, opt, total_steps=9)
    assert list(sparse.masks) == ["1.weight"] and sparse.nnz() == round(0.1 * 32 * 48)
    assert torch.equal(model[3].weight, others[0]) and torch.equal(model[5].weight, others[1])
    assert "2 weights are trained, but not in the optimizer and stay as they are" in caplog.text


def test_two_methods_share_an_optimizer_but_no_weight() -> None:
    model = NETWORKS["mlp"]()
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    first = RigL(model, opt, total_steps=9, update_every=2, include=["1.weight"])
    with pytest.raises(ValueError, match=r"1\.weight is already masked by another method"):
        Static(model, opt, total_steps=9)
    second = Static(model, opt, density=0.5, total_steps=9, exclude=["1.weight"])
    run(model, opt, 5)
    assert first.step == second.step == 5 and len(first.history) == 2
    first.detach()
    Static(model, opt, total_steps=9, include=["1.weight"])


def test_tied_weights_have_one_mask() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 48), nn.Linear(48, 5))
    model[3].weight = model[1].weight
    opt = OPTIMIZERS["nesterov"](model.parameters())
    sparse = RigL(model, opt, density=0.2, total_steps=24, update_every=4)
    assert list(sparse.masks) == ["1.weight", "4.weight"] and sum(sparse.sizes.values()) == 48 * 48 + 240
    run(model, opt, 12)
    assert sparse.nnz() == round(0.2 * (48 * 48 + 240))
    assert bool((model[3].weight[~sparse.masks["1.weight"]] == 0).all())
    other = RigL(model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=9, exclude=["3.weight"])
    assert list(other.masks) == ["4.weight"]  # any of its names


def test_embeddings_are_dense_unless_asked_for() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(20, 8), "mix": nn.Linear(8, 8), "head": nn.Linear(8, 20, bias=False)})
    assert list(Static(model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=9).masks) == [
        "mix.weight", "head.weight",
    ]  # fmt: skip
    model["head"].weight = model["embed"].weight
    assert list(Static(model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=9).masks) == ["mix.weight"]
    asked = Static(model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=9, include=["embed.*"])
    assert list(asked.masks) == ["embed.weight"]


def test_sparse_gradients_are_refused() -> None:
    model = nn.Embedding(20, 8, sparse=True)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    RigL(model, opt, total_steps=9, update_every=1, include=["*"])
    model(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(TypeError, match="weight has a sparse gradient"):
        opt.step()


def test_plain_parameters_are_reached_by_include() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(6, 4))

    model = Own()
    assert list(Static(model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=9, include=["*"]).masks) == [
        "kernel"
    ]


def test_shared_modules_are_one_layer() -> None:
    inner = nn.Linear(8, 8)
    model = nn.Sequential(inner, nn.ReLU(), inner)
    sparse = Static(model, torch.optim.SGD(model.parameters(), lr=0.1), density=0.5, total_steps=9)
    assert list(sparse.masks) == ["0.weight"] and sparse.nnz() == 32


def test_transposed_convolutions_have_no_constant_fan_in() -> None:
    with pytest.raises(ValueError, match=r"9\.weight belongs to ConvTranspose2d"):
        build("srigl", network="mobile", exclude=[])


def test_empty_weights_are_passed_over() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(0, 4))
    assert list(Static(model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=9).masks) == ["0.weight"]


def test_unfreezing_during_training_joins_the_updates() -> None:
    torch.manual_seed(0)
    model = NETWORKS["mlp"]()
    model[3].weight.requires_grad_(False)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = RigL(model, opt, density=0.3, total_steps=40, update_every=4, include=["*.weight"])
    mask = sparse.masks["3.weight"].clone()
    run(model, opt, 8)
    assert torch.equal(mask, sparse.masks["3.weight"])
    model[3].weight.requires_grad_(True)
    run(model, opt, 8)
    assert not torch.equal(mask, sparse.masks["3.weight"])


def test_the_transposed_linear_layers_of_gpt2_are_sparse_by_default() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 8, "vocab_size": 32}
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
    opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
    sparse = RigL(model, opt, density=0.25, total_steps=12, update_every=2, stop=1.0)
    kinds = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert list(sparse.masks) == [f"transformer.h.0.{kind}.weight" for kind in kinds]
    assert sparse.first_mask == "random" and sparse.masks["transformer.h.0.mlp.c_fc.weight"].shape == (16, 64)
    first = {name: mask.clone() for name, mask in sparse.masks.items()}
    tokens = torch.randint(32, (4, 8))
    for _ in range(12):
        opt.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        opt.step()
    assert sparse.nnz() == round(0.25 * (16 * 48 + 16 * 16 + 2 * 16 * 64))
    for name, mask in sparse.masks.items():
        assert not torch.equal(mask, first[name]) and bool((model.get_parameter(name)[~mask] == 0).all())
    with pytest.raises(ValueError, match=r"c_attn\.weight belongs to Conv1D, the rows of whose weight are inputs"):
        SRigL(model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=9, include=["*c_attn.weight"])


def test_layers_that_are_only_called_conv1d_are_not_taken_for_it() -> None:
    own = type("Conv1D", (nn.Module,), {})()
    own.weight = nn.Parameter(torch.randn(4, 6))
    model = nn.ModuleList([own, nn.Linear(4, 4)])
    assert list(Static(model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=9).masks) == ["1.weight"]
