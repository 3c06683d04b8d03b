"""Training for early exits: beside the plain loss, layer by layer by hand, dropped texts, and a stop in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_decoders import ids, made
from torch.nn.functional import cross_entropy

from gossamer.routing import EarlyExit, Jumps, LayerSkip, Radial, speculate, train
from gossamer.routing.learning.layer_skip import terms
from gossamer.routing.learning.objective import outputs

PLAIN = LayerSkip(dropout=0.0, exits=0.0)


def routed(model: Any = None, **how: Any) -> Radial:
    model = made() if model is None else model
    return Radial(model, policy=EarlyExit(8 if how.get("units") == "branch" else 4, 64), **how).train()


def state_after(how: LayerSkip | None, steps: int = 3) -> tuple[dict[str, torch.Tensor], list[float]]:
    radial = routed()
    history = train(radial, [ids(3, 9, seed) for seed in range(steps)], budget=None, layer_skip=how)
    return {name: value.clone() for name, value in radial.state_dict().items()}, history["loss"]


def test_at_rate_0_it_is_the_plain_loss_bit_for_bit() -> None:
    (plain, losses), (same, others), (_, more) = (state_after(how) for how in (None, PLAIN, LayerSkip(0.0, 0.5, 2)))
    assert losses == others and losses != more
    assert all(torch.equal(value, same[name]) for name, value in plain.items())


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt"])
@pytest.mark.parametrize("step", [0, 1])
def test_an_exit_is_the_model_without_its_later_layers(family: str, step: int) -> None:
    """The loss is the weighed sum of those of models that end early; padding counts nowhere."""
    kv = "project" if family == "gemma2" else "sparse"
    model, how = made(family), LayerSkip(dropout=0.0, exits=0.7, every=2)
    radial = routed(model, kv=kv).eval()  # OPT has dropout of its own
    mask = torch.ones(3, 9, dtype=torch.int64)
    mask[1, :4] = 0
    batch = {"input_ids": ids(3, 9), "attention_mask": mask}
    labels = batch["input_ids"].masked_fill(mask == 0, -100)[:, 1:].flatten()

    def loss(out: Any) -> torch.Tensor:
        return cross_entropy(out.logits[:, :-1].float().flatten(0, 1), labels)

    out, parts = terms(radial, batch, how, step, 10)
    found = sum(parts(loss(out)).values())
    layers = {0: (0, 2), 1: (1,)}[step]
    e = {layer: 0.7 * sum(range(layer + 1)) for layer in layers} | {3: 3 + 0.7 * (0 + 1 + 2)}
    expected = torch.zeros(())
    for layer, weight in e.items():
        early = Radial(model, kv=kv, policy=EarlyExit(4, 64, unit=layer + 1), sink=0).eval()
        expected = expected + weight / sum(e.values()) * loss(outputs(early, batch))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("units", ["block", "branch"])
def test_a_text_skips_a_layer_whole_and_late_layers_more_often(units: Any) -> None:
    radial, how, skipped = routed(units=units, sink=0), LayerSkip(dropout=1.0, exits=0.0), torch.zeros(4)
    torch.manual_seed(0)
    for _ in range(20):
        terms(radial, {"input_ids": ids(8, 5)}, how, 0, 1)
        assert radial.run is not None
        rows = [torch.ones(40).bool() if each is None else each for each in radial.run.rows]
        for layer, each in enumerate(rows[:: 2 if units == "branch" else 1]):
            of_texts = each.view(8, 5)
            assert bool((of_texts == of_texts[:, :1]).all())
            skipped[layer] += float((~of_texts[:, 0]).sum()) / 160
        if units == "branch":
            assert all(torch.equal(a, b) for a, b in zip(rows[::2], rows[1::2], strict=True))
    assert skipped[0] == 0 and skipped[3] > 0.999  # 2^(l / 3) - 1
    assert abs(skipped[1] - 0.26) < 0.1 and abs(skipped[2] - 0.587) < 0.1
    assert isinstance(radial.policy, EarlyExit)


def test_dropout_may_rise_and_exits_take_turns() -> None:
    how = LayerSkip(dropout=0.4, exits=1.0, every=3, rising=True)
    assert how.rate(3, 4, 0.0) == 0 and how.rate(3, 4, 1.0) == 0.4 and 0 < how.rate(3, 4, 0.5) < 0.2
    assert [sorted(how.weights(step, 7)) for step in range(4)] == [[3, 6], [1, 4, 6], [2, 5, 6], [3, 6]]
    for step in range(4):
        assert sum(how.weights(step, 7).values()) == pytest.approx(1)


def test_what_speculates_after_it_says_what_the_whole_model_says() -> None:
    radial = routed()
    train(radial, [ids(3, 9, seed) for seed in range(2)], budget=None, layer_skip=LayerSkip(0.3, 1.0, 1))
    radial.eval()
    expected = radial.generate(ids(1, 6), max_new_tokens=12, do_sample=False)[0, 6:]
    found = speculate(radial, ids(1, 6), draft=EarlyExit(4, 64, unit=2), max_new_tokens=12)
    assert torch.equal(found.tokens, expected)


def test_a_run_that_stopped_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    class Stop(Exception): ...

    def stop(history: Any) -> None:
        if len(history) == 2:
            raise Stop

    def run(radial: Radial, **how: Any) -> list[float]:
        data = [ids(3, 9, seed) for seed in range(4)]
        how = {"layer_skip": LayerSkip(0.5, 0.5, 2, rising=True), **how}
        return train(radial, data, budget=None, **how)["loss"]

    whole = routed()
    losses = run(whole)
    with pytest.raises(Stop):
        run(routed(), checkpoint=tmp_path / "run", on_step=stop)
    again = routed()
    assert run(again, checkpoint=tmp_path / "run") == losses
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_refusals() -> None:
    radial = Radial(made(), policy=Jumps(4, 64))
    with pytest.raises(ValueError, match="layer_skip is for the policy EarlyExit, whose exits it trains, got Jumps"):
        train(radial, [ids(2, 5)], budget=None, layer_skip=PLAIN)
    with pytest.raises(ValueError, match=r"budget must be None with layer_skip, .*, got 0.5"):
        train(routed(), [ids(2, 5)], budget=0.5, layer_skip=PLAIN)
    for how, said in (({"dropout": 1.5}, r"dropout must be a rate in \[0, 1\], got 1.5"),
                      ({"exits": -1.0}, "exits must be a number of at least 0, got -1.0"),
                      ({"every": 0}, "every must be an integer of at least 1, got 0")):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            LayerSkip(**how)
