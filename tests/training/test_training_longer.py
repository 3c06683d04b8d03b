"""Law: a run that is made longer keeps what it has, and goes on by the plan of the longer run."""

from __future__ import annotations

import copy

import pytest
import torch
from training_cases import SETTINGS, build, images, run

from gossamer.nn import BlockSparseLinear
from gossamer.training import RigL

SHORT, LONG = 16, 24
PLANNED = ("drop_fraction", "mutation", "regenerate", "target", "phase")  # what events note of their schedules


@pytest.mark.parametrize("done", [7, SHORT])
@pytest.mark.parametrize("method", SETTINGS)
def test_a_longer_run(method: str, done: int) -> None:
    options = {"example_inputs": images()[0]} if method in ("chase", "srigl") else {}
    model, opt, sparse = build(method, network="conv", total_steps=SHORT, **options)
    run(model, opt, done)
    saved = copy.deepcopy([sparse.state_dict(), model.state_dict(), opt.state_dict()])
    channels, events = copy.deepcopy(sparse.channels()), len(sparse.history)

    fresh = build(method, network="conv", total_steps=LONG, **options)
    run(*fresh[:2], LONG)
    other, opt2, loaded = build(method, network="conv", total_steps=LONG, **options)
    for part, state in zip((loaded, other, opt2), saved, strict=True):
        part.load_state_dict(state)
    sparse.extend(LONG)
    for net, optimizer in ((model, opt), (other, opt2)):
        run(net, optimizer, LONG - done, first=done)

    # loading into a longer method and extending are one thing
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert sparse.history == loaded.history and sparse.step == loaded.step == LONG
    # what was done stays, the rest is planned as for a run that was long from the beginning
    assert sparse.history[:events] == saved[0]["history"]
    rest = [entry for entry in sparse.history if entry["step"] > done]
    planned = [entry for entry in fresh[2].history if entry["step"] > done]
    assert [(entry["step"], entry["kind"]) for entry in rest] == [(entry["step"], entry["kind"]) for entry in planned]
    for entry, plan in zip(rest, planned, strict=True):
        assert {k: entry.get(k) for k in PLANNED} == {k: plan.get(k) for k in PLANNED}
    assert bool(rest) or method == "static" or (method, done) in (("rigl", SHORT), ("srigl", SHORT))
    for name, alive in sparse.channels().items():
        assert bool((alive <= channels[name]).all())
    # and ends on the same budget
    if method != "srigl":
        assert sparse.nnz() == fresh[2].nnz() == round(0.3 * sum(sparse.sizes.values()))
        assert sum(int(a.sum()) for a in sparse.channels().values()) == sum(
            int(a.sum()) for a in fresh[2].channels().values()
        )


def test_what_has_gone_does_not_come_back() -> None:
    """The plan of 24 steps would have more weights at steps 12 to 18; the run has given them up by then."""
    model, opt, sparse = build("gradual", network="conv", total_steps=SHORT, update_every=2)
    run(model, opt, 12)
    least = sparse.nnz()
    sparse.extend(LONG)
    run(model, opt, 12, first=12)
    assert {entry["nnz"] for entry in sparse.history if entry["step"] > 12} == {least}
    assert [entry["step"] for entry in sparse.history][-4:] == [12, 14, 16, 18]


def test_no_run_is_shortened() -> None:
    _, _, sparse = build("rigl", total_steps=LONG)
    _, _, shorter = build("rigl", total_steps=SHORT)
    with pytest.raises(ValueError, match=r"saved with total_steps=24: .* expected total_steps=24 or more, got 16"):
        shorter.load_state_dict(sparse.state_dict())
    with pytest.raises(ValueError, match="total_steps must be at least 24, the length of the run, got 16"):
        sparse.extend(SHORT)
    with pytest.raises(TypeError, match=r"total_steps must be an integer >= 1, got 24\.5"):
        sparse.extend(24.5)  # type: ignore[arg-type]
    state = sparse.state_dict()
    state["config"]["total_steps"] = "24"
    with pytest.raises(ValueError, match="total_steps is '24', expected a whole number"):
        sparse.load_state_dict(state)
    assert sparse.total_steps == LONG and shorter.step == 0


def test_the_next_step_is_already_of_the_new_plan() -> None:
    """Tiles compute gradients of what is absent only in a step whose update reads them, which they are told before."""
    torch.manual_seed(0)
    layer = BlockSparseLinear(16, 16, block=4, density=0.5)
    opt = torch.optim.SGD(layer.parameters(), lr=0.1)
    rest = {"drop_schedule": "constant", "regrow_dropped": False}
    sparse = RigL(layer, opt, density=0.5, total_steps=20, update_every=4, **rest)
    x = torch.randn(8, 16)
    for step in range(1, 17):
        if step == 16:
            sparse.extend(LONG)  # updates ended before step 15, and now before step 18
        opt.zero_grad()
        layer(x).square().sum().backward()
        opt.step()
    assert sparse.history[-1]["step"] == 16 and sparse.history[-1]["grown"] > 0
