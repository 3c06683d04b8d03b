"""Self-speculation says what the whole model says, whatever the draft guesses."""

from __future__ import annotations

import pytest
import torch
from small_decoders import ids, made

from gossamer.routing.policies.fixed import EarlyExit, RandomSkip
from gossamer.routing.radial import Radial
from gossamer.routing.speculation import speculate


@pytest.mark.parametrize("exit_at", [1, 3, 4])
@pytest.mark.parametrize("ahead", [1, 3, 8])
def test_text_is_that_of_greedy_generation(exit_at: int, ahead: int) -> None:
    model, tokens = made(), ids(1, 9)
    expected = model.generate(tokens, max_new_tokens=21, do_sample=False)[0, 9:]
    found = speculate(
        Radial(model).eval(), tokens, draft=EarlyExit(4, 64, unit=exit_at), ahead=ahead, max_new_tokens=21
    )
    assert torch.equal(found.tokens, expected)
    assert found.guessed >= found.kept and found.passes + found.kept >= 21
    if exit_at == 4:  # the draft is the model: every guess stays
        assert found.rate == 1 and found.passes == 1 + -(-20 // (ahead + 1))


def test_a_routed_model_has_the_last_word() -> None:
    radial = Radial(made(), policy=RandomSkip(4, 64, rate=0.3, seed=5)).eval()
    expected = radial.generate(ids(1, 6), max_new_tokens=15, do_sample=False)[0, 6:]
    found = speculate(radial, ids(1, 6), draft=EarlyExit(4, 64, unit=2), max_new_tokens=15)
    assert torch.equal(found.tokens, expected)


def test_it_ends_at_an_end_token() -> None:
    model = made()
    whole = speculate(Radial(model).eval(), ids(1, 5), draft=EarlyExit(4, 64, unit=2), max_new_tokens=12).tokens
    stop = int(whole[7])
    found = speculate(Radial(model).eval(), ids(1, 5), draft=EarlyExit(4, 64, unit=2), max_new_tokens=12, end=[stop])
    assert torch.equal(found.tokens, whole[: whole.tolist().index(stop) + 1])


def test_refusals() -> None:
    radial = Radial(made()).eval()
    for arguments, said in (({"ahead": 0}, "ahead must be an integer of at least 1, got 0"),
                            ({"draft": EarlyExit(3, 64, unit=1)}, "policy decides about 3 units")):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            speculate(radial, ids(1, 4), **{"draft": EarlyExit(4, 64, unit=1), **arguments})
    with pytest.raises(ValueError, match=r"input_ids must be int64\[1, tokens\], got \[2, 4\]"):
        speculate(radial, ids(2, 4), draft=EarlyExit(4, 64, unit=1))
