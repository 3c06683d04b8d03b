"""Training of routes: what the loss is, what is moved and what not, and that a run goes on where it stopped."""

from __future__ import annotations

import copy
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from gossamer.routing import (
    EarlyExit,
    ExpertChoice,
    Hops,
    Jumps,
    Objective,
    PerText,
    PerUnit,
    Radial,
    RandomSkip,
    Recursions,
    StateError,
    distill,
    load_state,
    save_state,
    settle,
    train,
)  # fmt: skip
from gossamer.routing.learning.batches import Batches
from gossamer.routing.learning.objective import outputs
from gossamer.routing.learning.settling import measured

VOCABULARY, LAYERS, WIDTH, LENGTH = 40, 4, 32, 16


def model(seed: int = 0, **changed: Any) -> Any:
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": LAYERS,
        "num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.2,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **changed})).eval()


def texts(count: int = 8, seed: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(VOCABULARY, (4, LENGTH), generator=generator) for _ in range(count)]


def state(radial: Radial) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in radial.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Endless:
    """An iterable that begins anew each time, and never ends."""

    def __iter__(self) -> Iterator[Tensor]:
        data = texts(2)
        while True:
            yield from data


@pytest.mark.parametrize("units", ["block", pytest.param("branch", marks=pytest.mark.slow)])
def test_a_budget_is_met_and_nothing_else_is_moved(units: str) -> None:
    radial = Radial(model(), units=units, adapter=2)
    radial.train()
    radial.model.model.layers[1].eval()
    modes, before = [module.training for module in radial.modules()], state(radial)
    random = torch.get_rng_state()
    history = distill(radial, None, texts(), budget=0.6, steps=100, lr=1e-2)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in radial.modules()] == modes and radial.policy.phase == "hard"
    assert all(parameter.requires_grad and parameter.grad is None for parameter in radial.parameters())
    after = state(radial)
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert {name.split(".")[0] for name in moved} == {"policy", "adapters"}
    assert history.mean("cost", 20) == pytest.approx(0.6, abs=0.03)
    assert history["cost"][0] > 0.95 and history["entropy"][0] < 0 and history["temperature"][79] == pytest.approx(0.1)
    # What was promised is what decisions cost, here on the batches that it was settled by.
    assert history.settled == pytest.approx(0.6, abs=0.03)  # 500 tokens leave gaps
    assert measured(radial.eval(), [{"input_ids": batch} for batch in texts()]) == pytest.approx(history.settled)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Jumps(LAYERS, WIDTH), lambda: PerText(LAYERS, WIDTH), lambda: PerUnit(LAYERS, WIDTH, 0.5),
        lambda: ExpertChoice(LAYERS, WIDTH, 0.5, routed=range(LAYERS)), lambda: EarlyExit(LAYERS, WIDTH, threshold=0.9),
        lambda: Hops(LAYERS, LAYERS, WIDTH), lambda: Recursions(LAYERS, WIDTH, (0.9, 0.5)),
    ],
)  # fmt: skip
def test_a_policy_can_be_moved_to_another_budget(make: Any) -> None:
    policy = make()
    generator = torch.Generator().manual_seed(2)
    for name, parameter in policy.named_parameters():
        if "prior" not in name:  # a router that has learned something still begins with the next unit
            parameter.data = torch.randn(parameter.shape, generator=generator)
    for buffer in policy.buffers():
        buffer.zero_()
    hops = getattr(policy, "hops", None)
    radial = Radial(model(), "skip" if hops is None else "free", policy=policy, hops=hops)
    found = []
    for budget in (0.5, 0.7):
        share = settle(radial, texts(2), budget)
        assert share == pytest.approx(measured(radial.eval(), [{"input_ids": batch} for batch in texts(2)]))
        found.append(share)
    assert found == pytest.approx([0.5, 0.7], abs=0.04)


def test_what_is_fixed_cannot_be_moved() -> None:
    for policy in (RandomSkip(LAYERS, WIDTH, 0.5), Jumps(LAYERS, WIDTH, mode="sequential")):
        with pytest.raises(ValueError, match=f"what a {type(policy).__name__} skips is fixed"):
            settle(Radial(model(), policy=policy), texts(), 0.9)


@pytest.mark.parametrize(
    "make",
    [
        lambda: PerText(LAYERS, WIDTH), lambda: PerUnit(LAYERS, WIDTH, [1, 0.5, 0.5, 1]),
        lambda: ExpertChoice(LAYERS, WIDTH, 0.5), lambda: RandomSkip(LAYERS, WIDTH, 0.3),
        lambda: Jumps(LAYERS, WIDTH, mode="sequential"),
    ],
)  # fmt: skip
def test_every_policy_trains_with_the_model(make: Any) -> None:
    radial = Radial(model(), policy=make())
    before = state(radial)
    history = train(radial, texts(), budget=None, steps=32, lr=3e-3, model_lr=1e-2)
    after = state(radial)
    assert all(not torch.equal(before[name], after[name]) for name in after), "no parameter is left out"
    assert history.mean("text", 8) < history["text"][0] and len(history) == 32


@pytest.mark.parametrize(("trained", "endless"), [("router", False), ("all", True)])
def test_a_run_goes_on_bit_by_bit(trained: str, endless: bool, tmp_path: Path) -> None:
    def run(radial: Radial, **more: Any) -> Any:
        data = Endless() if endless else texts(2)
        return distill(
            radial, model(seed=1), data, budget=0.5, steps=12, train=trained, hard=0.3, seed=3, every=5, **more
        )

    whole = Radial(model(attention_dropout=0.1))
    straight = run(whole)
    file = tmp_path / "run.safetensors"

    def stop(history: Any) -> None:
        if len(history) == 7:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        run(Radial(model(attention_dropout=0.1)), checkpoint=file, on_step=stop)
    other = Radial(model(attention_dropout=0.1))
    resumed = run(other, checkpoint=file)
    assert resumed.records == straight.records and resumed.settled == straight.settled is not None
    assert same(state(other), state(whole)) and not same(state(other), state(Radial(model(attention_dropout=0.1))))
    # It is done: nothing happens any more. Another run does not take it for its own.
    assert run(Radial(model(attention_dropout=0.1)), checkpoint=file).records == straight.records
    with pytest.raises(StateError, match=r"is of a run with settings .*'seed': 3.*expected .*'seed': 4"):
        distill(other, model(seed=1), texts(2), budget=0.5, steps=12, train=trained, hard=0.3, seed=4, checkpoint=file)
    with pytest.raises(StateError, match="holds a run, expected a router"):
        load_state(other, file)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Python's own handler of Ctrl-C: a shell starts what runs in its background without one."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_comes_after_a_step(tmp_path: Path) -> None:
    file, steps = tmp_path / "run.safetensors", []

    def press(history: Any) -> None:
        steps.append(len(history))
        if len(history) == 3:
            signal.raise_signal(signal.SIGINT)
            steps.append("still here")

    with pytest.raises(KeyboardInterrupt):
        distill(Radial(model()), None, texts(1), budget=0.5, steps=9, checkpoint=file, on_step=press)
    assert steps == [1, 2, 3, "still here"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert len(distill(Radial(model()), None, texts(1), budget=0.5, steps=9, checkpoint=file)) == 9


def test_the_loss_is_what_it_says() -> None:
    radial, teacher = Radial(model()), model(seed=1)
    teacher.model.norm.weight.data *= 2  # else the mean square of its last states is 1
    mask = torch.ones(4, LENGTH, dtype=torch.int64)
    mask[1, 10:] = 0
    batch = {"input_ids": texts(1)[0], "attention_mask": mask}
    with torch.no_grad():
        aim = outputs(teacher, batch)
    ours = outputs(radial, batch)
    walk = radial.run.walk
    walk.losses = {"entropy": torch.tensor(0.7), "predictor": torch.tensor(0.2)}
    terms = Objective(text=2, teacher=3, temperature=1.5, hidden=4, entropy=0.1).terms(ours, aim, batch, walk, 0.25)
    said, kl, off, size, tokens = 0.0, 0.0, 0.0, 0.0, int(mask.sum())
    for text, length in enumerate(mask.sum(1).tolist()):
        target = batch["input_ids"][text, 1:length]
        said += float(cross_entropy(ours.logits[text, : length - 1], target, reduction="sum").detach())
        p = (aim.logits[text, :length] / 1.5).softmax(-1)
        q = (ours.logits[text, :length] / 1.5).softmax(-1)
        kl += float((p * (p.log() - q.log())).sum().detach())
        off += float((ours.hidden - aim.hidden)[text, :length].square().sum().detach())
        size += float(aim.hidden[text, :length].square().sum())
    expected = {
        "text": 2 * said / (tokens - 4), "teacher": 3 * 1.5**2 * kl / tokens, "hidden": 4 * off / size,
        "entropy": -0.1 * 0.75 * 0.7, "predictor": 0.2,
    }  # fmt: skip
    assert {name: float(term.detach()) for name, term in terms.items()} == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(radial.model.lm_head(ours.hidden), ours.logits)


def test_a_given_optimizer_is_used() -> None:
    radial = Radial(model())
    prior = radial.policy.router.prior
    before = state(radial)
    optimizer = torch.optim.SGD([prior], lr=0.5)
    distill(radial, None, texts(), budget=0.5, steps=4, optimizer=optimizer)
    moved = {name for name, value in state(radial).items() if not torch.equal(value, before[name])}
    assert moved == {"policy.router.prior"} and optimizer.param_groups[0]["initial_lr"] == 0.5


def test_a_loss_that_is_no_number_changes_nothing() -> None:
    radial = Radial(model())
    radial.policy.router.up.data[0, 0] = float("nan")
    before = state(radial)
    with pytest.raises(FloatingPointError, match="the loss is nan at step 1"):
        distill(radial, None, texts(), budget=0.5, steps=4)
    assert all(torch.equal(a.nan_to_num(), before[n].nan_to_num()) for n, a in state(radial).items())


def test_progress_is_silent_unless_asked(capsys: pytest.CaptureFixture[str]) -> None:
    distill(Radial(model()), None, texts(1), budget=0.5, steps=2)
    assert capsys.readouterr() == ("", "")
    distill(Radial(model()), None, texts(1), budget=0.5, steps=2, progress=True)
    assert "step 2/2" in capsys.readouterr().err


def bad(**changed: Any) -> Any:
    given = {"radial": Radial(model()), "teacher": None, "data": texts(1), "budget": 0.5, "steps": 2, **changed}
    return distill(given.pop("radial"), given.pop("teacher"), given.pop("data"), **given)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"budget": 0}, r"budget must be in \(0, 1\], got 0"),
        ({"budget": 1.5}, r"budget must be in \(0, 1\], got 1.5"),
        ({"data": []}, "data must have at least one batch, got none"),
        ({"data": iter(())}, "data must have at least one batch.*got none"),
        ({"data": iter(texts(1))}, "it ended after 1 of 2 steps"),
        ({"data": texts(1)[0]}, "data must be a sequence of batches or an iterator, got one Tensor"),
        ({"data": [torch.zeros(2, 1, dtype=torch.int64)]}, "texts of at least 2 tokens, got 1"),
        ({"data": [torch.full((1, 4), 40)]}, "tokens from 0 to 39, got 40 to 40"),
        ({"data": [torch.zeros(2, 4)]}, r"input_ids int64\[texts, tokens\], got torch.float32\[2, 4\]"),
        ({"data": [{"input_ids": texts(1)[0], "mask": texts(1)[0]}]}, "a batch has 'mask', expected input_ids"),
        ({"data": [{"input_ids": texts(1)[0], "labels": torch.zeros(1)}]}, "labels of a batch must have shape"),
        ({"steps": 0}, "steps must be an integer of at least 1, got 0"),
        ({"train": "some"}, 'train must be "router" or "all", got \'some\''),
        ({"lr": -1}, "lr must be a number above 0, got -1"),
        ({"hard": 2}, r"hard must be a share of the steps in \[0, 1\], got 2"),
        ({"every": 0}, "every must be an integer of at least 1, got 0"),
        ({"teacher": model(vocab_size=41)}, "teacher has a vocabulary of 41 tokens, expected that of the model, 40"),
        ({"teacher": "gpt"}, "teacher must be a decoder of transformers, got str"),
        ({"train": "all"}, 'teacher must be another model, or a copy, where train="all"'),
        ({"radial": model()}, "radial must be a gossamer.routing.Radial, got LlamaForCausalLM"),
        ({"radial": Radial(model(), mode="sequential")}, 'train="router" has nothing to train: the Jumps'),
        ({"radial": Radial(model(), policy=ExpertChoice(LAYERS, WIDTH))}, "what a ExpertChoice skips is fixed"),
        (
            {"optimizer": torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1)},
            'optimizer has none of the parameters that train="router" trains',
        ),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bad(**changed)


def test_widths_of_a_teacher_may_differ_where_states_are_not_compared() -> None:
    teacher = model(hidden_size=16)
    with pytest.raises(ValueError, match=r"objective.hidden is 0.1, but the teacher's states are 16 wide and not 32"):
        bad(teacher=teacher)
    assert len(bad(teacher=teacher, objective=Objective(hidden=0))) == 2


def test_states_belong_to_one_model(tmp_path: Path) -> None:
    radial, file = Radial(model(), adapter=2), tmp_path / "router.safetensors"
    distill(radial, None, texts(1), budget=0.5, steps=5)
    save_state(radial, file)
    other = Radial(model(seed=7), adapter=2)
    load_state(other, file)
    assert same(other.policy.state_dict(), radial.policy.state_dict())
    assert same(other.adapters.state_dict(), radial.adapters.state_dict())
    strangers = {
        "units=4.*expected.*units=5": Radial(model(num_hidden_layers=5), adapter=2),
        "config=": Radial(model(rms_norm_eps=1e-3), adapter=2),
        "kind=block.*expected.*kind=branch": Radial(model(), units="branch", adapter=2),
        "adapter=2, expected adapter=0": Radial(model()),
        "kv=sparse, expected kv=project": Radial(model(), kv="project", adapter=2),
        "policy=Jumps, expected policy=PerText": Radial(model(), policy=PerText(LAYERS, WIDTH), adapter=2),
    }
    for message, stranger in strangers.items():
        before = state(stranger)
        with pytest.raises(StateError, match=f"belongs to another model: it has .*{message}"):
            load_state(stranger, file)
        assert same(state(stranger), before)
    whole = file.read_bytes()
    for place in (20, len(whole) // 2, len(whole) - 3):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(StateError, match=r"router\.safetensors"):
            load_state(copy.deepcopy(other), file)
    file.write_bytes(whole[:-5])
    with pytest.raises(StateError, match="cannot be read"):
        load_state(other, file)
    with pytest.raises(StateError, match="cannot be read"):
        load_state(other, tmp_path / "none")


def test_autocast_around_a_whole_run_keeps_no_weights_of_its_first_step() -> None:
    """Autocast remembers weights that it has converted until it ends; routers decide in their own dtype within it."""
    found = []
    for cached in (True, False):
        radial = Radial(model(), adapter=4)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cached):
            history = distill(radial, None, texts(4), budget=0.7, train="router", lr=0.1, hard=0.5)
        found.append((state(radial), history["loss"]))
    assert found[0][1] == found[1][1] and same(found[0][0], found[1][0])
    router, h = Jumps(4, WIDTH).router, torch.randn(5, WIDTH)
    assert router is not None
    torch.nn.init.normal_(router.up)
    with torch.autocast("cpu", torch.bfloat16):
        within = router(h, 1, torch.tensor([0.25, 1.0, 1.5, 2.0, 0.0], dtype=torch.bfloat16), 1)
    assert torch.equal(within, router(h, 1, torch.tensor([0.25, 1.0, 1.5, 2.0, 0.0]), 1))


@pytest.mark.parametrize(("shape", "count"), [((1, 16), 40), ((1, 256), 16), ((4, 2048), 8)])
@pytest.mark.parametrize("lazy", [False, True])
def test_a_policy_is_settled_by_the_last_batches_that_hold_enough(shape: Any, count: int, lazy: bool) -> None:
    """Eight, or as many as have 4,096 tokens, or all."""
    data = [torch.full(shape, at) for at in range(40)]
    batches = Batches(iter(data) if lazy else data, 40, vocabulary=40)
    if lazy:
        for step in range(40):
            batches.take(step)
    assert [int(each["input_ids"][0, 0]) for each in batches.recent()] == list(range(40 - count, 40))


def test_fresh_texts_cost_what_was_settled_but_for_chance() -> None:
    """Shares of n texts and of m others of their kind differ by s * sqrt(1/n + 1/m), by chance thrice that at most."""
    radial = Radial(model()).eval()
    torch.nn.init.normal_(radial.policy.router.up, std=2.0)
    seen, fresh = texts(16, seed=1), texts(16, seed=2)
    reached = settle(radial, seen, 0.7)
    assert abs(reached - 0.7) <= 0.005
    each = torch.tensor([measured(radial, [{"input_ids": some}]) for some in fresh])
    assert abs(float(each.mean()) - reached) <= 3 * float(each.std()) * (2 / 16) ** 0.5
