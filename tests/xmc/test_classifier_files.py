"""Law: a classifier on disk is whole, or is refused with the name of the file that is not."""

import json

import pytest
import torch

from gossamer import files
from gossamer.xmc import Classifier, load

WORDS = ["red", "green", "blue", "apple", "pear", "wine", "table", "chair"]
TEXTS = [f"{a} {b}" for a in WORDS for b in WORDS]
SETS = [sorted({WORDS.index(a), WORDS.index(b)}) for a in WORDS for b in WORDS]
KINDS = {"one head": {}, "composed": {"frequent": 0.25, "group": 16, "intermediate": 128}}


def fitted(**settings):
    sizes = {"width": 32, "features": 256}
    classifier = Classifier(encoder_settings=sizes, fan_in=8, epochs=1, batch_size=16, seed=1, **settings)
    classifier.names = WORDS
    return classifier.fit(TEXTS, SETS)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit(folder, change):
    record = json.loads((folder / "classifier.json").read_text())
    change(record)
    (folder / "classifier.json").write_text(json.dumps(files.sealed(record)))


@pytest.mark.parametrize("kind", KINDS)
def test_one_bit_of_any_file_is_found(kind, tmp_path, monkeypatch):
    fitted(**KINDS[kind]).save(tmp_path)
    every = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(every) > 5
    for path in every:
        whole = path.read_bytes()
        flip(path)
        with pytest.raises(ValueError, match=f"{path}.*(damaged|edited|not JSON)"):
            load(tmp_path)
        with monkeypatch.context() as large:  # the arrays of a large head are compared on request
            large.setattr("gossamer.xmc.checksums.SMALL", 0)
            if path.suffix == ".bin":
                load(tmp_path)
            with pytest.raises(ValueError, match=str(path)):
                load(tmp_path, verify=True)
        if path.suffix == ".bin" or path.name == "weights.safetensors":
            load(tmp_path, verify=False)
        path.write_bytes(whole)
    with pytest.raises(TypeError, match="verify must be True, False or None, got 1"):
        load(tmp_path, verify=1)


def test_a_save_of_before_there_were_checksums_is_read(tmp_path):
    """Its version says that it has none; the arrays of its head had them already."""
    classifier = fitted()
    classifier.save(tmp_path)
    edit(tmp_path, lambda record: record.pop("digests"))
    with pytest.raises(ValueError, match="'digests'"):
        load(tmp_path)
    edit(tmp_path, lambda record: record.update(version=1))
    assert torch.equal(load(tmp_path, verify=True).predict_topk(TEXTS)[0], classifier.predict_topk(TEXTS)[0])
    classifier.save(tmp_path)
    edit(tmp_path, lambda record: record.update(version=3))
    with pytest.raises(ValueError, match="its version is 3, expected 1 to 2"):
        load(tmp_path)
