"""Law: a run that is saved and loaded goes on bit for bit; a state that does not fit is refused and changes nothing."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from training_cases import NETWORKS, OPTIMIZERS, SETTINGS, build, images, loss, run

from gossamer.training import METHODS, Chase, RigL
from gossamer.training.fields import is_finite


def through_a_file(state: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def snapshot(model, opt, sparse) -> dict[str, Any]:
    return through_a_file({"model": model.state_dict(), "opt": opt.state_dict(), "sparse": sparse.state_dict()})


def same(a: Any, b: Any) -> bool:
    """Bitwise equality of nested states."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def differences(a: dict, b: dict, path: str = "") -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [d for k in a for d in differences(a[k], b[k], f"{path}/{k}")]
    return [] if same(a, b) else [path]


CASES = [
    *((method, "momentum", "conv", {}) for method in SETTINGS),
    *((method, "adamw", "residual", {}) for method in ("rigl", "snfs", "srigl")),
    ("rigl", "amsgrad", "attention", {"grow_init": "random"}),
    ("rigl", "momentum", "mlp", {"grad_window": 3}),
    (
        "mest",
        "momentum",
        "mlp",
        {"grad_window": 3, "sensitivity": 10.0},
    ),  # scores |w| + |mean gradient|: the mean must be the same
    ("rigl", "adamw", "mlp", {"grow_warmup": 3}),
    ("rigl", "momentum", "mlp", {"replace_step": True, "grow_init": "gradient"}),
    ("set", "momentum", "mlp", {"grow": "random_unfired"}),
    ("set", "momentum", "mlp", {"tile": (4, 5)}),
    ("chase", "adamw", "residual", {"scope": "all", "example_inputs": images()[0], "compact_every": 2}),
    ("chase", "momentum", "conv", {"compact_every": 2, "example_inputs": images()[0], "grad_window": 3}),
]


@pytest.mark.parametrize(("method", "optimizer", "network", "options"), CASES)
def test_twelve_and_twelve_are_twenty_four(method: str, optimizer: str, network: str, options: dict) -> None:
    options = {"total_steps": 24, **options}
    straight = build(method, optimizer, network, **options)
    run(*straight[:2], 24)
    # interrupted in the middle of a period, then right after an update, each time into fresh objects
    parts = build(method, optimizer, network, **options)
    done = 0
    for stop in (7, 12, 24):
        run(*parts[:2], stop - done, first=done)
        saved = snapshot(*parts)
        parts = build(method, optimizer, network, **options)
        run(*parts[:2], 2)  # what the new objects did before does not matter
        parts[2].load_state_dict(saved["sparse"])
        parts[0].load_state_dict(saved["model"])
        parts[1].load_state_dict(saved["opt"])
        done = stop
    assert differences(snapshot(*straight), snapshot(*parts)) == []
    assert method == "static" or len(straight[2].history) >= 4
    assert straight[2].step == 24


def test_grown_weights_that_are_exactly_zero_survive() -> None:
    """A mask re-read from w != 0 would lose every weight that has just grown."""
    model, opt, sparse = build("rigl", update_every=4)
    run(model, opt, 4)
    mask = sparse.masks["1.weight"]
    assert bool((mask & (model[1].weight == 0)).any())
    saved = through_a_file(sparse.state_dict())
    _, _, other = build("rigl", update_every=4)
    other.load_state_dict(saved)
    assert torch.equal(other.masks["1.weight"], mask)


def test_loading_an_older_state_goes_back() -> None:
    """The same objects, back to before channels died."""
    model, opt, sparse = build("chase", network="conv", example_inputs=images()[0])
    run(model, opt, 4)
    saved = snapshot(model, opt, sparse)
    run(model, opt, 10, first=4)
    later = snapshot(model, opt, sparse)
    sparse.load_state_dict(saved["sparse"])
    model.load_state_dict(saved["model"])
    opt.load_state_dict(saved["opt"])
    run(model, opt, 10, first=4)
    assert differences(later, snapshot(model, opt, sparse)) == []


def test_states_are_small() -> None:
    """One bit per weight and mask, one for ever_active."""
    _, _, sparse = build("rigl", network="conv")
    state = sparse.state_dict()
    n = sum(sparse.sizes.values())
    assert sum(entry["bits"].numel() for entry in state["masks"].values()) <= n // 8 + len(sparse.masks)
    assert sum(bits.numel() for bits in state["ever_active"]["bits"].values()) <= n // 8 + len(sparse.masks)


WRONG = {
    "another method": (("set", "momentum", "mlp", {}), "belongs to method 'rigl', expected 'set'"),
    "another network": (("rigl", "momentum", "conv", {}), r"another network: \[.*'0.weight'.*\] differ"),
    "another density": (("rigl", "momentum", "mlp", {"density": 0.2}), "saved with density=0.3, expected 0.2"),
    "another seed": (("rigl", "momentum", "mlp", {"seed": 1}), "saved with seed=0, expected 1"),
    "another tile": (("rigl", "momentum", "mlp", {"tile": (2, 2)}), r"saved with tile=\[1, 1\], expected \[2, 2\]"),
    "another length": (
        ("rigl", "momentum", "mlp", {"total_steps": 23}),
        "saved with total_steps=24: a run can",
    ),
    "another schedule": (("rigl", "momentum", "mlp", {"drop_schedule": "linear"}), "saved with drop_schedule='cosine'"),
    "other layers": (("rigl", "momentum", "mlp", {"exclude": ["5.weight"]}), r"another network: \['5.weight'\] differ"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_state_that_does_not_fit_changes_nothing(case: str) -> None:
    model, opt, sparse = build("rigl")
    run(model, opt, 9)
    saved = through_a_file(sparse.state_dict())
    other = build(*WRONG[case][0][:3], **WRONG[case][0][3])
    run(*other[:2], 5)
    before = snapshot(*other)
    with pytest.raises(ValueError, match=WRONG[case][1]):
        other[2].load_state_dict(saved)
    assert differences(before, snapshot(*other)) == []


def test_broken_states_change_nothing() -> None:
    model, opt, sparse = build("rigl")
    run(model, opt, 5)
    before = snapshot(model, opt, sparse)
    for broken in (
        {},
        {"format": 99},
        {**sparse.state_dict(), "masks": {"1.weight": {"shape": [32, 48], "bits": torch.zeros(3).byte(), "axes": {}}}},
    ):
        with pytest.raises(ValueError, match=r"not the state|expected 192 bytes"):
            sparse.load_state_dict(broken)
    assert differences(before, snapshot(model, opt, sparse)) == []


def test_a_transposed_network_is_another_network() -> None:
    """Equal sizes are not enough."""

    def make(shape: tuple[int, int]) -> RigL:
        model = torch.nn.Linear(*shape)
        return RigL(model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=9)

    with pytest.raises(ValueError, match="weight"):
        make((6, 8)).load_state_dict(make((8, 6)).state_dict())


def test_a_compacted_state_needs_example_inputs_and_a_fresh_network() -> None:
    example = images()[0]
    model, opt, sparse = build("chase", network="conv", compact_every=3, example_inputs=example)
    run(model, opt, 6)
    early = through_a_file(sparse.state_dict())
    run(model, opt, 12, first=6)
    late = through_a_file(sparse.state_dict())
    assert model[0].out_channels + model[3].out_channels < 40
    other = build("chase", network="conv", compact_every=3)
    before = snapshot(*other)
    with pytest.raises(ValueError, match="pass example_inputs"):
        other[2].load_state_dict(late)
    assert differences(before, snapshot(*other)) == []
    before = snapshot(model, opt, sparse)
    with pytest.raises(ValueError, match="use a fresh network"):
        sparse.load_state_dict(early)
    assert differences(before, snapshot(model, opt, sparse)) == []


def test_channels_are_restored_at_the_first_forward() -> None:
    """Without example inputs the graph of a resumed run is traced only then; nothing dies or revives meanwhile."""
    model, opt, sparse = build("chase", network="conv")
    run(model, opt, 12)
    saved = snapshot(model, opt, sparse)
    other = build("chase", network="conv")
    other[2].load_state_dict(saved["sparse"])
    assert same(through_a_file(other[2].state_dict()), saved["sparse"])
    other[0].load_state_dict(saved["model"])
    loss(other[0], *images())
    assert same(other[2].channels(), sparse.channels())


@pytest.mark.parametrize("method", ["rigl", "chase"])
def test_copies_and_pickles_of_the_model_carry_no_hooks(method: str) -> None:
    options = {"normalize": "none"} if method == "chase" else {}  # a removed channel has no gradient: none of layer 0
    model, opt, sparse = build(method, network="conv", **options)
    for stage in range(2):
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert all(torch.equal(a, b) for a, b in zip(copied.parameters(), model.parameters(), strict=True))
            dense = OPTIMIZERS["momentum"](copied.parameters())
            traced = sparse.removed
            run(copied, dense, 2)
            assert bool((copied[0].weight != 0).all())  # nothing masks the copy, and its forward traced nothing
            assert sparse.removed is traced and sparse.step == stage * 4
        assert not copy.deepcopy(opt)._optimizer_step_pre_hooks
        run(model, opt, 4)
    assert method == "rigl" or sparse.removed is not None


def test_every_method_is_in_the_table() -> None:
    assert set(METHODS) == set(SETTINGS) and len(NETWORKS) == 6
    assert Chase.name == "chase" and all(cls.name == name for name, cls in METHODS.items())


@pytest.mark.parametrize(
    ("value", "fits"),
    [
        (0, True),
        (-1.5, True),
        (float("nan"), False),
        (float("inf"), False),
        (True, False),
        (10**400, False),
        ("1", False),
    ],
    ids=["zero", "float", "nan", "infinity", "bool", "a thousand bits", "text"],
)
def test_a_number_of_a_state_is_one_that_a_float_holds(value, fits):
    """An int beyond that is one clear error too, where math.isfinite would raise another."""
    assert is_finite(value) is fits
