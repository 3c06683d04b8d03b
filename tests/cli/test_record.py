"""What is written down is what is so: removed channels in the map, whole files on disk, the right epochs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import gossamer as gs
from gossamer.cli.train import checkpoint, record, story
from gossamer.report.quantity import times


def _trained(scope: str, compact_every: int | None = None) -> gs.training.Chase:
    torch.manual_seed(0)
    model = gs.models.resnet20((1, 8, 8), 10, width=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(8, 1, 8, 8)
    method = gs.training.Chase(model, optimizer, density=0.2, channel_sparsity=0.4, total_steps=10, explore_every=2,
                               channel_every=2, scope=scope, example_inputs=x,
                               compact_every=compact_every, round_to=2)  # fmt: skip
    for _ in range(10):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), torch.arange(8)).backward()
        optimizer.step()
    return method


@pytest.mark.parametrize("scope", ["inner", "all"])
def test_the_map_marks_removed_channels(scope: str) -> None:
    method = _trained(scope)
    drawn = record.channel_densities(method)
    assert list(drawn) == [name.removesuffix(".weight") for name in method.masks]
    for name, mask in method.masks.items():
        for share, row in zip(drawn[name.removesuffix(".weight")], mask.flatten(1), strict=True):
            assert not row.any() if share is None else abs(share - row.float().mean()) < 1e-4  # four digits are kept
    # A residual channel is made by several layers and marked in each of them.
    makers = {g.name: sum(m.role == "writer" and m.tensor in method.masks for m in g.members)
              for g in method.graph.groups}  # fmt: skip
    marked = sum(share is None for cells in drawn.values() for share in cells)
    assert marked == sum(makers[name] * int((~alive).sum()) for name, alive in method.channels().items()) > 0


def test_the_map_of_a_network_that_shrinks_has_all_its_rows() -> None:
    masked, compacted = (record.channel_densities(_trained("all", every)) for every in (None, 2))
    assert [[share is None for share in cells] for cells in compacted.values()] == [
        [share is None for share in cells] for cells in masked.values()
    ]


@pytest.mark.parametrize(("epochs", "channels", "count"), [(20, 448, 7), (3, 448, 3), (1, 448, 1), (90, 26_560, 1)])
def test_snapshots_are_few_and_include_the_last(epochs: int, channels: int, count: int) -> None:
    due = record.snapshot_epochs(epochs, channels)
    assert len(due) == count and max(due) == epochs and min(due) >= 1


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"identity": {}, "step": 1})

    def full(content: object, file) -> None:
        file.write(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="no space"):
        checkpoint.save(path, {"identity": {}, "step": 2})
    assert checkpoint.load(path, {})["step"] == 1


def test_the_summary_tells_when_removed_channels_took_weights_along() -> None:
    """Where so many channels go that the rest cannot hold the weights asked for."""
    config = story.Train(method="chase", density=0.1)
    assert story.summary(config, 0.1, 0.6) == (
        "Trained from scratch by chase with 10 % of the weights, while 40 % of the channels were removed."
    )
    assert "10 % of the weights (0.12 % in the end), while 99 %" in story.summary(config, 0.0012, 0.01)
    assert story.summary(config, None, None) == "Trained from scratch by chase with 10 % of the weights."


@pytest.mark.parametrize(
    ("verdict", "value", "label", "note"),
    [
        ("faster", None, "the throughput of dense (dense", None),
        ("slower", None, "slower than dense (dense", "the compact network is slower than the dense one."),
        (
            "inconclusive",
            "no faster",
            "that could be told: 1.21",
            "is by no more than the noise faster than the",
        ),
    ],
)
def test_the_report_claims_no_speed_that_was_not_told(verdict: str, value: str, label: str, note: str | None) -> None:
    control = {"ratio": 1.0, "ratio_q1": 0.9, "ratio_q3": 1.3}
    page = {
        "table": {name: {"accuracy": 0.9, "parameters": 10} for name in ("dense", "sparse", "compact")},
        "throughput": {"rows": [{"name": "compact", "ratio": 1.21, "verdict": verdict}], "control": control},
    }
    config = story.Train(method="chase", density=0.1)
    (fact,) = [fact for fact in story.facts(page, None) if "dense against itself" in fact["label"]]
    assert fact["value"] == (value or times(1.21)) and label in fact["label"]
    said = " ".join(story.notes(page, config, None))
    assert (note or "") in said and ("On this machine" in said) == (note is not None)
    assert "removed in the end" not in said
    assert "Nothing was removed in the end, compact is the sparse network itself: none is dead." in " ".join(
        story.notes(page, config, "none is dead")
    )
