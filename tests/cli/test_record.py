"""What is written down is what is so: removed channels in the map, whole files on disk, the right epochs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import gossamer as gs
from gossamer.cli.train import checkpoint, record, story


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
        "Trained from scratch by chase with 10 % of the weights, while 40 % of the channels were drained and removed."
    )
    assert "10 % of the weights (0.12 % in the end), while 99 %" in story.summary(config, 0.0012, 0.01)
    assert story.summary(config, None, None) == "Trained from scratch by chase with 10 % of the weights."
