"""The router that comes along: whole, small, of its model, and better than the same layers out for all tokens."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest
import torch
from small_decoders import made
from torch.nn.functional import cross_entropy

from gossamer.routing import Radial, StateError, drop, profile
from gossamer.routing.learning.settling import measured
from gossamer.routing.saved import SHIPPED, load_routed, read, save_state


def test_it_is_whole_and_small_and_says_its_model() -> None:
    record, tensors = read(SHIPPED["smollm2"], "router")
    said = record["identity"]
    assert (said["units"], said["width"], said["kv"], said["adapter"]) == (30, 576, "propagate", 0)
    assert SHIPPED["smollm2"].stat().st_size < 1 << 18 and len(tensors) == 5


def test_another_model_is_refused_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made()
    with pytest.raises(StateError, match=r"belongs to another model: it has .*units=30.*, expected .*units=4"):
        load_routed(model, "smollm2")
    with pytest.raises(StateError, match=r"no router 'smolm2'.* or a name: smollm2; did you mean smollm2"):
        load_routed(model, "smolm2")
    save_state(Radial(model), tmp_path / "smollm2")
    monkeypatch.chdir(tmp_path)  # where a file has the name, it is meant
    assert len(load_routed(model, "smollm2").units) == 4


@pytest.mark.slow
def test_it_beats_the_least_layers_out_for_all_tokens(smollm2: Path) -> None:
    from gossamer.serving.checkpoints.loading import load

    loaded = load(str(smollm2), dtype="float32")
    text = (Path(sysconfig.get_path("stdlib")) / "argparse.py").read_text()[:12_000]
    ids = torch.tensor(loaded.tokenizer.encode(text, add_special_tokens=False)[:2048]).view(-1, 256)

    def loss(model: object) -> float:
        with torch.no_grad():
            return float(cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()))  # type: ignore[operator]

    routed = load_routed(loaded.model, "smollm2")
    assert measured(routed, [{"input_ids": ids}]) < 0.93
    smaller = drop(loaded.model, profile(loaded.model, [ids[:2]]).order()[:3])
    assert loss(loaded.model) < loss(routed) < loss(smaller) - 0.1
