"""Models in what users wrap around them, compiled ones too: whoever looks at a language model sees the one inside."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from serving_decoders import decoder, prompts
from torch import nn
from torch.optim.swa_utils import AveragedModel

import gossamer as gs
from gossamer.nn.skip.zeros import zeros_read
from gossamer.serving import Engine, Sampling
from gossamer.serving.calibrating.calibration import calibrate
from gossamer.wrappers import unwrap

pytestmark = pytest.mark.filterwarnings("ignore")
TOKENS = prompts(60)[0]
BATCH = torch.tensor([TOKENS])


def compiled(model: nn.Module) -> Any:
    """Whoever calls it as it is compiles it, which this one does not survive."""

    def fail(graph: Any, inputs: Any) -> Any:
        raise AssertionError("it was compiled")

    return torch.compile(model, backend=fail)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": compiled,
    "parallel": nn.DataParallel,
    "averaged": AveragedModel,
    "both": lambda model: compiled(nn.DataParallel(model)),
}


def _generated(model: Any) -> list[int]:
    return gs.serving.LLM(model.eval()).generate([TOKENS], Sampling(max_tokens=6))[0].tokens


def _stepped(model: Any) -> list[int]:
    engine = Engine(model.eval(), end=[])
    job = engine.add(TOKENS, Sampling(max_tokens=6))
    while engine.busy:
        engine.step()
    return job.tokens


def _calibrated(model: Any) -> list[list[float]]:
    labels = torch.arange(60) >= 40
    return calibrate(model, [(BATCH[0], labels)], sink=8, local=8, steps=2).gates.tolist()


def _thresholds(model: Any) -> dict[str, float]:
    """By the names of the model inside, which its config has too, for it is what is saved."""
    inside = unwrap(model)
    found = gs.nn.threshold(model, [BATCH], 0.4).thresholds
    assert found == {name: each["threshold"] for name, each in inside.config.quantization_config["layers"].items()}
    gs.nn.remove_thresholds(model)
    assert gs.nn.apply_thresholds(model, found).thresholds == found == gs.nn.restore_thresholds(model).thresholds
    return found


LOOKS: dict[str, Callable[[Any], Any]] = {
    "LLM": _generated,
    "Engine": _stepped,
    "calibrate": _calibrated,
    "profile": lambda model: gs.routing.profile(model, [BATCH]).order(),
    "drop": lambda model: type(gs.routing.drop(model, [0])),
    "Radial": lambda model: gs.routing.Radial(model)(BATCH).logits.tolist(),
    "threshold": _thresholds,
    "zeros": lambda model: sorted(zeros_read(model, BATCH).values()),
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_it_is_the_model_inside(wrap: Callable[[nn.Module], nn.Module], look: Callable[[Any], Any]) -> None:
    model = decoder("llama")
    assert look(wrap(copy.deepcopy(model))) == look(copy.deepcopy(model))


def test_a_model_without_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has no numbers in model\.embed_tokens\.weight, which is on the meta device"):
        Engine(copy.deepcopy(decoder("llama")).to("meta"))
