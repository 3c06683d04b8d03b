"""Data sets: shapes, stratified splits, normalisation, and batches that depend on (seed, epoch) alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import gossamer as gs

Image = pytest.importorskip("PIL.Image")


def _picture(path: Path, colour: int, size: tuple[int, int] = (6, 5)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((size[1], size[0], 3), colour, dtype=np.uint8)
    pixels[0, 0] = (colour, 0, 255 - colour)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(5):
        _picture(tmp_path / "flowers" / "tulip" / f"{i}.png", 40 * i)
        _picture(tmp_path / "flowers" / "rose" / f"{i}.bmp", 50 * i)
    return tmp_path / "flowers"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "arrays.npz"
    x = np.arange(20 * 2 * 3 * 3, dtype=np.uint8).reshape(20, 2, 3, 3)
    np.savez(path, x=x, y=np.arange(20) % 4)
    return path


def _source(kind: str, folder: Path, archive: Path) -> str:
    return {"digits": "digits", "imagefolder": f"imagefolder:{folder}", "npz": f"npz:{archive}"}[kind]


@pytest.mark.parametrize("kind", ["digits", "imagefolder", "npz"])
def test_normalised_stratified_and_repeatable(kind: str, folder: Path, archive: Path) -> None:
    source = _source(kind, folder, archive)
    data, again, other = (gs.data.load(source, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(data.train_x, again.train_x) and torch.equal(data.test_y, again.test_y)
    assert not torch.equal(data.train_x, other.train_x)
    assert data.train_x.dtype == torch.float32 and data.train_y.dtype == torch.int64
    assert len(data.train_x) == len(data.train_y) and len(data.names) == data.classes
    # float32 sums of a few thousand values of size 1: 1e-5 is ten times their rounding.
    axes = (0, 2, 3)
    assert data.train_x.double().mean(axes).abs().max() < 1e-5
    deviation = data.train_x.double().std(axes, correction=0)
    assert (deviation - 1).abs().max() < 1e-5
    for label in range(data.classes):
        of_train, of_test = int((data.train_y == label).sum()), int((data.test_y == label).sum())
        assert of_test == round(0.2 * (of_train + of_test))


def test_no_example_is_in_both_parts_and_none_is_lost(archive: Path) -> None:
    data = gs.data.load(f"npz:{archive}", seed=1)
    rows = torch.cat([data.train_x, data.test_x]).flatten(1)
    assert len(rows.unique(dim=0)) == len(rows) == 20


def test_a_class_of_one_example_stays_in_training() -> None:
    from gossamer.data.splits import split

    train, test = split(torch.tensor([0] * 10 + [1]), test_fraction=0.9, seed=0)
    assert 10 in train.tolist() and len(test) == 9


def test_a_split_on_disk_is_kept(tmp_path: Path) -> None:
    for i in range(3):
        for part in ("train", "val"):
            for name in ("a", "b"):
                _picture(tmp_path / part / name / f"{i}.png", 60 * i)
    data = gs.data.load(f"imagefolder:{tmp_path}")
    assert len(data.train_x) == len(data.test_x) == 6 and data.names == ("a", "b")


def test_given_test_arrays_are_normalised_by_the_training_part(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.array([[0.0], [2.0]]), y=[0, 1], x_test=np.array([[4.0]]), y_test=[1])
    data = gs.data.load(f"npz:{path}")
    assert data.train_x.tolist() == [[-1.0], [1.0]] and data.test_x.tolist() == [[3.0]]


def test_images_are_resized_and_grey_becomes_colour(folder: Path) -> None:
    Image.fromarray(np.zeros((9, 4), dtype=np.uint8)).save(folder / "rose" / "grey.png")
    data = gs.data.load(f"imagefolder:{folder}", image_size=8)
    assert data.train_x.shape[1:] == (3, 8, 8)


def test_a_channel_without_variation_stays_finite(tmp_path: Path) -> None:
    path = tmp_path / "flat.npz"
    np.savez(path, x=np.full((10, 1, 2, 2), 7.0), y=np.arange(10) % 2)
    data = gs.data.load(f"npz:{path}")
    assert data.train_x.count_nonzero() == 0 and data.test_x.count_nonzero() == 0


class TestBatches:
    x = torch.arange(23)

    def order(self, **options: int) -> list[list[int]]:
        given = {"batch_size": 4, "seed": 0, "epoch": 0, **options}
        return [b.tolist() for b, _ in gs.data.batches(self.x, self.x, **given)]

    def test_every_example_once_in_full_batches(self) -> None:
        order = self.order()
        assert [len(b) for b in order] == [4] * gs.data.steps_per_epoch(23, 4)
        assert len({i for b in order for i in b}) == 20

    def test_the_order_follows_seed_and_epoch(self) -> None:
        assert self.order() == self.order()
        assert len({str(self.order(seed=s, epoch=e)) for s in range(3) for e in range(3)}) == 9

    def test_start_leaves_out_the_batches_before(self) -> None:
        assert self.order(start=2) == self.order()[2:]

    def test_the_ranks_share_each_batch(self) -> None:
        whole, parts = self.order(), [self.order(rank=r, world=2) for r in range(2)]
        for batch, first, second in zip(whole, *parts, strict=True):
            assert sorted(first + second) == sorted(batch) and len(first) == len(second)

    def test_labels_stay_with_their_inputs(self) -> None:
        for x, y in gs.data.batches(self.x, 10 * self.x, batch_size=5, seed=1, epoch=2):
            assert torch.equal(10 * x, y)

    @pytest.mark.parametrize(
        ("options", "said"),
        [({"batch_size": 24}, "only 23 training"), ({"batch_size": 0}, "is 0"), ({"world": 3}, "multiple of the 3")],
    )
    def test_bad_sizes(self, options: dict[str, int], said: str) -> None:
        with pytest.raises(ValueError, match=said):
            self.order(**options)


@pytest.mark.parametrize("kind", ["imagefolder", "npz"])
def test_the_digest_is_of_what_was_read(kind: str, folder: Path, archive: Path) -> None:
    """Of the same data it is the same, however it is split; of a changed pixel, label or part it is another."""
    source = _source(kind, folder, archive)
    seen = {gs.data.load(source, seed=seed, test_fraction=share).digest for seed, share in ((3, 0.2), (4, 0.4))}
    assert len(seen) == 1 and "" not in seen
    if kind == "npz":
        x, y = (np.load(archive)[name] for name in "xy")
        for change in ({"x": x + (x == 7)}, {"y": y[::-1]}, {"x_test": x, "y_test": y}):
            np.savez(archive, **{"x": x, "y": y} | change)
            seen.add(gs.data.load(source).digest)
    else:
        _picture(folder / "rose" / "0.bmp", 1)
        seen.add(gs.data.load(source).digest)
        (folder / "rose" / "4.bmp").rename(folder / "tulip" / "00.bmp")
        seen.add(gs.data.load(source).digest)
        for part in ("train", "test"):
            shutil.copytree(folder, folder.parent / "parts" / part)
        seen.add(gs.data.load(f"imagefolder:{folder.parent / 'parts'}").digest)
    assert len(seen) == 4
