"""Law: a saved compact model comes back bit by bit from safetensors and JSON, and every damage is one clear error."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from compaction_nets import NETS, MiniViT, Residual, Sequence
from torch import Tensor, nn

import gossamer as gs
from gossamer import files
from gossamer.compaction import ChannelGraph, Compact, StoreError, load_compact, shrink_, zero_channels_
from gossamer.compaction.store import save


def small(model: nn.Module, x: Tensor) -> Compact:
    graph = ChannelGraph.build(model, x)
    zero_channels_(model, graph, {g.name: torch.arange(g.channels) % 3 != 1 for g in graph.removable})
    return gs.compact(model.eval(), x, round_to=None, check_latency=False)


def image(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 3, 8, 8, dtype=dtype)


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    small(Sequence(), image()).save(folder)
    return folder


@pytest.fixture
def saved(saved_once: Path, tmp_path: Path) -> Path:
    """The folder of a compact `Sequence`, which a test may damage."""
    return shutil.copytree(saved_once, tmp_path / "saved")


@pytest.mark.parametrize("name", ["residual", "grouped 4", "vit", "tied", "renormed", "prelu", "transposed"])
def test_round_trip(name: str, tmp_path: Path) -> None:
    net, x = NETS[name], NETS[name].inputs()
    result = small(net.build().double(), x)
    result.save(tmp_path)
    again = load_compact(lambda: net.build().eval(), tmp_path)  # a float32 factory: the file's dtype decides
    assert torch.equal(again(x), result.model(x))
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors"]
    for (key, value), (other, expected) in zip(
        again.state_dict().items(), result.model.state_dict().items(), strict=True
    ):
        assert key == other and value.dtype == expected.dtype and torch.equal(value, expected)


def test_the_memory_format_is_that_of_the_factory(tmp_path: Path) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3)).to(memory_format=torch.channels_last)

    x = image().to(memory_format=torch.channels_last)
    result = small(build(), x)
    result.save(tmp_path)
    again = load_compact(build, tmp_path)
    assert [value.stride() for value in again.parameters()] == [value.stride() for value in result.model.parameters()]
    assert again[2].weight.is_contiguous(memory_format=torch.channels_last) and again[2].weight.is_leaf
    assert torch.equal(again(x), result.model(x))


def test_a_fresh_process_reads_it(tmp_path: Path) -> None:
    x = image()
    result = small(Residual(), x)
    result.save(tmp_path)
    torch.save({"x": x, "y": result.model(x).detach()}, tmp_path / "io.pt")
    code = f"""
import sys, torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
from compaction_nets import Residual
import gossamer as gs
torch.set_num_threads({torch.get_num_threads()})
io = torch.load({str(tmp_path / "io.pt")!r}, weights_only=True)
model = gs.load_compact(lambda: Residual().eval(), {str(tmp_path)!r})
assert torch.equal(model(io["x"]), io["y"])
assert model.a.out_channels == 4 and model.b.weight.shape[1] == 4
state = model.state_dict()
torch.save(state, {str(tmp_path / "state.pt")!r})
model.load_state_dict(torch.load({str(tmp_path / "state.pt")!r}, weights_only=True))
print("same")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "same", run.stderr


def test_repeated_shrinking_refers_to_the_factory(tmp_path: Path) -> None:
    """Compaction during training, then again at the end: one load from the original architecture."""
    x = image()
    net = Residual().eval()
    shrink_(net, ChannelGraph.build(net, x), {"stem": torch.arange(8) != 2})
    shrink_(net, ChannelGraph.build(net, x), {"stem": torch.arange(7) != 2, "a": torch.arange(6) < 4})
    result = small(net, x)
    result.save(tmp_path)
    again = load_compact(lambda: Residual().eval(), tmp_path)
    assert torch.equal(again(x), result.model(x))
    kept = json.loads((tmp_path / "compact.json").read_text())["kept"]["stem.weight"]["0"]
    assert kept["of"] == 8 and kept["positions"] == [0, 4, 5, 7]


def test_a_copy_remembers_and_the_original_does_not(tmp_path: Path) -> None:
    net, x = Sequence().eval(), image()
    result = small(net, x)
    save(copy.deepcopy(result.model), tmp_path / "copy")
    save(net, tmp_path / "original")
    assert torch.equal(load_compact(lambda: Sequence().eval(), tmp_path / "copy")(x), result.model(x))
    assert load_compact(Sequence, tmp_path / "original").conv1.out_channels == 8


def test_saving_again_replaces_and_an_interrupted_save_keeps_the_old(tmp_path: Path, monkeypatch) -> None:
    x = image()
    first, second = small(Sequence(), x), small(Sequence((8, 16)), x)
    first.save(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_json", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            second.save(tmp_path)
    assert torch.equal(load_compact(lambda: Sequence().eval(), tmp_path)(x), first.model(x))
    second.save(tmp_path)
    assert torch.equal(load_compact(lambda: Sequence((8, 16)).eval(), tmp_path)(x), second.model(x))
    assert len(list(tmp_path.iterdir())) == 2


def test_weights_of_others_stay(tmp_path: Path) -> None:
    """A save replaces the weights of the save before, which are named by their hash, and no others."""
    x = image()
    (tmp_path / "weights-mine.safetensors").write_text("mine")
    small(Sequence(), x).save(tmp_path)
    small(Sequence((8, 16)), x).save(tmp_path)
    assert (tmp_path / "weights-mine.safetensors").read_text() == "mine" and len(list(tmp_path.iterdir())) == 3


def damaged(folder: Path, how: str) -> None:
    shapes = folder / "compact.json"
    (weights,) = folder.glob("weights-*.safetensors")
    record = json.loads(shapes.read_text())
    if how == "no json":
        shapes.unlink()
    elif how == "no weights":
        weights.unlink()
    elif how == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:-7])
    elif how == "flipped bit":
        data = bytearray(weights.read_bytes())
        data[len(data) // 2] ^= 1
        weights.write_bytes(data)
    elif how == "not json":
        shapes.write_text("{")
    elif how == "other json":
        shapes.write_text("[1]")
    elif how == "nested":
        shapes.write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    elif how == "pipe":
        shapes.unlink()
        os.mkfifo(shapes)
    elif how == "pipe for weights":
        weights.unlink()
        os.mkfifo(weights)
    elif how == "one digit":
        shapes.write_text(shapes.read_text().replace('"out_channels": 5', '"out_channels": 6'))
    else:
        changes = {
            "newer": {"version": 99},
            "positions": {"kept": {"conv1.weight": {"0": {"of": 8, "positions": [0, 9]}}}},
            "unordered": {"kept": {"conv1.weight": {"0": {"of": 8, "positions": [2, 1]}}}},
            "other width": {"kept": {"conv1.weight": {"0": {"of": 9, "positions": [0, 1]}}}},
            "missing axis": {"kept": {}},
            "unknown module": {"attributes": {"nowhere": {"x": 1}}},
            "wrong attribute": {"attributes": {"conv1": {"out_channels": "many"}}},
            "outside": {"weights": {"file": "../x.safetensors", "sha256": ""}},
            "nameless": {"weights": {}},
            "no name of a file": {"weights": {"file": "weights-\0.safetensors", "sha256": ""}},
            "old": {"version": True},
            "list for an object": {"kept": []},
            "odd axis": {"kept": {"conv1.weight": {"-4": {"of": 8, "positions": [0]}}}},
            "fractions": {"kept": {"conv1.weight": {"0": {"of": 8, "positions": [0.5, 1.5]}}}},
            "truth": {"kept": {"conv1.weight": {"0": {"of": True, "positions": [0]}}}},
            "beyond 64 bits": {"kept": {"conv1.weight": {"0": {"of": 1 << 80, "positions": [1 << 70]}}}},
            "huge width": {"attributes": {"conv1": {"out_channels": 1 << 60}}},
            "negative width": {"attributes": {"conv1": {"out_channels": -5}}},
            "other kind": {"attributes": {"conv1": {"training": 1}}},
            "unset width": {"attributes": {}},
        }
        record |= changes[how]
        shapes.write_text(json.dumps(files.sealed(record)))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no json", "does not exist"), ("no weights", "cannot be read"), ("truncated weights", "truncated or altered"),
        ("flipped bit", "truncated or altered"), ("not json", "not readable JSON"), ("other json", "no format"),
        ("one digit", "altered"), ("newer", "update gossamer"), ("positions", "out of range"),
        ("unordered", "do not increase"), ("other width", "expected 9 on axis 0"), ("missing axis", "another model"),
        ("unknown module", "no module 'nowhere'"), ("wrong attribute", "out_channels"), ("outside", "outside"),
        ("nameless", "does not name its weights"), ("nested", "not readable JSON"), ("pipe", "a pipe"),
        ("pipe for weights", "a pipe"), ("no name of a file", "outside its folder"), ("old", "version True"),
        ("list for an object", "kept is .*expected an object"), ("odd axis", "no number of an axis"),
        ("fractions", "expected its size and a list"), ("truth", "expected its size"), ("beyond 64 bits", "increase"),
        ("huge width", "the file has more"), ("negative width", "expected a size"), ("other kind", "the file has 1"),
        ("unset width", "its tensors have 5"),
    ],
)  # fmt: skip
def test_every_damage_is_one_clear_error(how: str, message: str, saved: Path) -> None:
    damaged(saved, how)
    with pytest.raises(StoreError, match=message):
        load_compact(Sequence, saved)


@pytest.mark.parametrize(
    "content", ['{"compilerOptions": {}}', "[1]", "{", None], ids=["json", "list", "no json", "new"]
)
def test_what_others_wrote_is_not_replaced(content: str | None, saved: Path, tmp_path: Path) -> None:
    """A compact.json of something else, or of a newer version; a file in place of the folder."""
    result, shapes = small(Sequence(), image()), saved / "compact.json"
    result.save(saved)  # a save of ours is replaced
    if content is None:
        damaged(saved, "newer")
    else:
        shapes.write_text(content)
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(FileExistsError, match=r"compact\.json .*so it is not replaced; choose another folder"):
        result.save(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    with pytest.raises(NotADirectoryError, match=r"compact\.json is a file; expected a folder, or nothing there"):
        result.save(shapes)


@pytest.mark.parametrize("other", [Residual, MiniViT, lambda: Sequence((8, 13)), lambda: Sequence((6, 12))])
def test_another_model_is_refused(other, saved: Path) -> None:
    with pytest.raises(StoreError, match="another model"):
        load_compact(other, saved)
    with pytest.raises(TypeError, match="factory must return"):
        load_compact(lambda: 3, saved)


def test_weights_of_another_kind_are_refused(tmp_path: Path) -> None:
    small(Sequence(), image()).save(tmp_path)
    (path,) = tmp_path.glob("weights-*.safetensors")
    tensors = safetensors.torch.load_file(path)
    net = Sequence()
    whole = {name: value.long() if name == "fc.bias" else value for name, value in tensors.items()}
    data = safetensors.torch.save(whole)
    record = json.loads((tmp_path / "compact.json").read_text())
    record["weights"]["sha256"] = hashlib.sha256(data).hexdigest()
    path.write_bytes(data)
    (tmp_path / "compact.json").write_text(json.dumps(files.sealed(record)))
    with pytest.raises(StoreError, match=r"fc.bias is torch.int64 in the file, torch.float32 in the model"):
        load_compact(lambda: net, tmp_path)
    assert net.conv1.out_channels == 8  # nothing was half done


def test_random_bytes_never_crash_otherwise(tmp_path: Path) -> None:
    """Damage anywhere in either file: the model still loads unchanged, or one StoreError."""
    x = image()
    result = small(Sequence(), x)
    result.save(tmp_path)
    files = list(tmp_path.iterdir())
    generator = random.Random(0)
    refused = 0
    for _ in range(60):
        path = generator.choice(files)
        data = bytearray(path.read_bytes())
        original = bytes(data)
        for _ in range(generator.randint(1, 4)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        path.write_bytes(data[: generator.choice([len(data), generator.randrange(len(data))])])
        try:
            again = load_compact(lambda: Sequence().eval(), tmp_path)
        except StoreError:
            refused += 1
        else:
            assert torch.equal(again(x), result.model(x))  # the damage fell into white space
        path.write_bytes(original)
    assert refused > 30
    assert torch.equal(load_compact(lambda: Sequence().eval(), tmp_path)(x), result.model(x))
