"""What is said about routes, against a count by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from gossamer.routing import Jumps, Radial, RandomSkip, Static, health
from gossamer.routing.learning.diagnosis import spearman

UNITS, WIDTH = 4, 32


def radial(policy: Any) -> Radial:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=UNITS, num_attention_heads=2,
        initializer_range=0.2,
    )  # fmt: skip
    return Radial(LlamaForCausalLM(config), policy=policy, sink=0)


def batches() -> list[dict[str, torch.Tensor]]:
    mask = torch.ones(3, 12, dtype=torch.int64)
    mask[1, 7:] = 0
    generator = torch.Generator().manual_seed(1)
    return [
        {"input_ids": torch.randint(40, (3, 12), generator=generator), "attention_mask": mask},
        {"input_ids": torch.randint(40, (2, 12), generator=generator)},
    ]


def test_routes_are_counted() -> None:
    model = radial(RandomSkip(UNITS, WIDTH, [0.0, 0.5, 0.2, 0.6]))
    model.train()
    model.policy.temperature = 0.3
    found = health(model, batches())
    assert model.training and model.model.training and (model.policy.phase, model.policy.temperature) == ("hard", 0.3)
    routes: dict[str, int] = {}
    depths, losses, at = [], [], 0
    model.eval()
    with torch.no_grad():
        for batch in batches():
            logits = model(**batch).logits
            at = 0
            for text, ids in enumerate(batch["input_ids"]):
                length = int(batch["attention_mask"][text].sum()) if "attention_mask" in batch else 12
                for place in range(length):
                    ran = [bool(rows[at]) for rows in model.run.rows]
                    name = "".join(str(int(each)) for each in ran)
                    routes[name] = routes.get(name, 0) + 1
                    if place < length - 1:
                        depths.append(sum(ran))
                        losses.append(float(cross_entropy(logits[text, place], ids[place + 1])))
                    at += 1
    total = sum(routes.values())
    assert found.tokens == total == 3 * 12 - 5 + 24
    assert found.routes == len(routes) > 3 and dict(found.common) == pytest.approx(
        {name: routes[name] / total for name, _ in found.common}
    )
    assert found.entropy == pytest.approx(-sum(n / total * math.log(n / total) for n in routes.values()))
    for unit in range(UNITS):
        assert found.usage[unit] == pytest.approx(sum(n for r, n in routes.items() if r[unit] == "1") / total)
    assert found.least == (min(found.usage), found.usage.index(min(found.usage)))
    assert found.depths == tuple(sum(n for r, n in routes.items() if r.count("1") == d) for d in range(UNITS + 1))
    assert found.loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert found.correlation == pytest.approx(spearman(np.array(depths), np.array(losses)), abs=1e-3)
    assert 0.4 < found.cost < 0.95 and math.isnan(found.certainty) and not found.warnings


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    whole = health(radial(Jumps(UNITS, WIDTH)), batches())
    assert whole.entropy == 0 and whole.warnings == [
        "all tokens run all units: nothing is saved; leaving units out for good would do as well"
    ]
    assert whole.certainty > 0.01 and math.isnan(whole.correlation)
    some = health(radial(Static(UNITS, WIDTH, [0, 2])), batches())
    assert some.warnings == [
        "units 1, 3 are run by fewer than 0.1% of the tokens",
        "all tokens run the same route; leaving units out for good would do as well",
    ]
    sure = Jumps(UNITS, WIDTH, bias=40)
    assert "the router is saturated" in health(radial(sure), batches()).warnings[-1]
    some.save(tmp_path / "health.json")
    record = json.loads((tmp_path / "health.json").read_text())
    assert record["correlation"] is None and record["warnings"] == some.warnings and record["usage"] == [1, 0, 1, 0]
    assert "unit 1 is used least, by 0.0%" in str(some) and str(some).count("warning: ") == 2


def test_ranks() -> None:
    a = np.array([3, 1, 2, 2, 5])
    assert spearman(a, a**3) == pytest.approx(1) and spearman(a, -a) == pytest.approx(-1)
    assert spearman(a, np.array([4, 1, 2, 3, 5])) == pytest.approx(0.9747, abs=1e-4)
    assert math.isnan(spearman(a, np.ones(5)))


def test_nothing_to_look_at() -> None:
    with pytest.raises(ValueError, match="data must have at least one batch, got none"):
        health(radial(None), [])
