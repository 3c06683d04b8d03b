"""The callbacks: trained in pieces by a foreign trainer is trained whole, and the pattern moves in both."""

from __future__ import annotations

import copy
import errno
import importlib
import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import gossamer as gs
from gossamer import files
from gossamer.integrations.rebuild import rebuild

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
Y = torch.arange(64) % 3


def _make(model: nn.Module, optimizer: torch.optim.Optimizer, total_steps: int) -> gs.training.RigL:
    return gs.training.RigL(model, optimizer, density=0.3, total_steps=total_steps, update_every=2, seed=5)


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def _steps(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for i in range(first, last):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X[i::8]), Y[i::8]).backward()
        optimizer.step()


def test_rebuild_keeps_loaded_weights_and_momentum() -> None:
    whole = _network()
    optimizer = torch.optim.Adam(whole.parameters(), lr=0.05)
    method = _make(whole, optimizer, 8)
    _steps(whole, optimizer, 0, 4)
    saved = copy.deepcopy([whole.state_dict(), optimizer.state_dict(), method.state_dict()])
    _steps(whole, optimizer, 4, 8)

    again = _network()
    other = torch.optim.Adam(again.parameters(), lr=0.05)
    again.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    resumed = rebuild(_make, again, other, 8, saved[2])
    _steps(again, other, 4, 8)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(method.masks[name], resumed.masks[name]) for name in method.masks)


def test_a_missing_package_is_named() -> None:
    for module, package in (("lightning", "lightning"), ("trainer", "transformers")):
        sparsify = importlib.import_module(f"gossamer.integrations.{module}").sparsify
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            patch.setitem(sys.modules, f"{package}.pytorch", None)
            with pytest.raises(ImportError, match=f'pip install "{package}>='):
                sparsify(_make)


def _prune(model: nn.Module, optimizer: torch.optim.Optimizer, total_steps: int) -> gs.training.Chase:
    every = {"explore_every": 2, "channel_every": 2}
    return gs.training.Chase(model, optimizer, density=0.3, channel_sparsity=0.5, total_steps=total_steps, **every)


@pytest.fixture
def lightning() -> Any:
    return pytest.importorskip("lightning.pytorch", reason="lightning is not installed")


def _modules(lightning: Any) -> dict[str, type]:
    """LightningModules that call their network, or themselves, in a training step."""

    class Parts(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.loss = _network(), nn.CrossEntropyLoss()

        def training_step(self, batch, index):
            return self.loss(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    class Both(Parts):
        def forward(self, x):
            return self.net(x).softmax(-1)

    class Itself(Both):
        def training_step(self, batch, index):
            return -self(batch[0])[range(len(batch[0])), batch[1]].log().mean()

    class Two(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.a, self.b = _network(), _network()

        def training_step(self, batch, index):
            for net, optimizer in zip((self.a, self.b), self.optimizers(), strict=True):
                optimizer.zero_grad()
                self.manual_backward(nn.functional.cross_entropy(net(batch[0]), batch[1]))
                optimizer.step()

        def configure_optimizers(self):
            return [torch.optim.SGD(net.parameters(), lr=0.1) for net in (self.a, self.b)]

    return {"parts": Parts, "both": Both, "itself": Itself, "two": Two}


def _fit(lightning: Any, net: nn.Module, callbacks: list, folder: Path, resume: Path | None = None, **options) -> Any:
    trainer = lightning.Trainer(
        **{"max_epochs": 4, **options}, accelerator="cpu", devices=1, callbacks=callbacks, logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, default_root_dir=folder,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=16)
    trainer.fit(net, loader, ckpt_path=resume)
    return trainer


def _save_at(lightning: Any, epoch: int, path: Path) -> Any:
    class Save(lightning.Callback):
        def on_train_epoch_end(self, trainer, module):
            if trainer.current_epoch == epoch:
                trainer.save_checkpoint(path)

    return Save()


@pytest.mark.parametrize(
    ("kind", "precision"),
    [("parts", "32-true"), ("parts", "bf16-mixed"), ("both", "bf16-mixed"), ("itself", "bf16-mixed")],
)
def test_lightning(lightning: Any, tmp_path: Path, kind: str, precision: str) -> None:
    from gossamer.integrations.lightning import sparsify

    half = tmp_path / "half.ckpt"
    options = {"precision": precision, "gradient_clip_val": 1.0}

    def fit(*more: Any, resume: Path | None = None, epochs: int = 4) -> tuple[nn.Module, Any]:
        callback, net = sparsify(_prune), _modules(lightning)[kind]()
        _fit(lightning, net, [callback, *more], tmp_path, resume, max_epochs=epochs, **options)
        return net, callback.method

    whole, method = fit(_save_at(lightning, 1, half))
    resumed, again = fit(resume=half)
    assert method.step == again.step == 16 and method.nnz() == round(0.3 * sum(method.sizes.values()))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    _, longer = fit(resume=half, epochs=6)
    assert longer.step == longer.total_steps == 24

    # the module itself can be compacted, and the network inside
    for model in (whole, whole.net):
        small = gs.compact(model, X, check_latency=False, round_to=1)
        left = [int(alive.sum()) for alive in method.channels().values()]
        assert [counts["after"] for counts in small.report["channels"].values()] == left == [8]
        # one without a forward is a place for its network
        assert type(small.model) is (type(whole) if model is whole and kind != "parts" else nn.Sequential)


def test_lightning_with_several_optimizers(lightning: Any, tmp_path: Path) -> None:
    from gossamer.integrations.lightning import sparsify

    def callbacks() -> list:
        make = {"a": lambda m, o, n: _prune(m.a, o, n), "b": lambda m, o, n: _make(m.b, o, n)}
        return [sparsify(make["a"], optimizer=0), sparsify(make["b"], optimizer=1)]

    two, path = _modules(lightning)["two"], tmp_path / "half.ckpt"
    whole, resumed = two(), two()
    first, again = callbacks(), callbacks()
    _fit(lightning, whole, [*first, _save_at(lightning, 1, path)], tmp_path)
    _fit(lightning, resumed, again, tmp_path, path)
    assert [c.method.step for c in (*first, *again)] == [16] * 4 and first[0].method.name == "chase"
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    for callback, options, said in (
        (sparsify(_make), {}, "has 2 optimizers, got optimizer=None: say which"),
        (sparsify(_make, optimizer=2), {}, "has 2 optimizers, got optimizer=2: say which"),
        (callbacks()[0], {"max_epochs": -1}, "the Trainer knows no end"),
    ):
        with pytest.raises(ValueError, match=said):
            _fit(lightning, two(), [callback], tmp_path, **options)
    with pytest.raises(TypeError, match=r"Two has no forward to trace: pass a network inside it, of \['a', 'b'\]"):
        gs.compact(whole, X)


def test_transformers_trainer(tmp_path: Path) -> None:
    """In mixed precision, which asks more of a callback: it may not leave its own passes outside."""
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")
    transformers = pytest.importorskip("transformers")
    from gossamer.integrations.trainer import sparsify

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = _network()

        def forward(self, x, labels):
            logits = self.net(x)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    rows = [{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)]

    def fit(folder: str, start: Path | None = None, epochs: int = 4, **options: Any) -> tuple[nn.Module, Any, Any]:
        callback, net = sparsify(_prune, **options), Net()
        arguments = transformers.TrainingArguments(
            str(tmp_path / folder), num_train_epochs=epochs, per_device_train_batch_size=16, save_strategy="epoch",
            use_cpu=True, report_to=[], disable_tqdm=True, learning_rate=0.05, logging_strategy="no", seed=3, bf16=True,
        )  # fmt: skip
        trainer = transformers.Trainer(net, arguments, train_dataset=rows, callbacks=[callback])
        trainer.train(resume_from_checkpoint=None if start is None else str(start))
        return net, callback.method, trainer

    whole, method, trainer = fit("run")
    half = tmp_path / "run" / "checkpoint-8"
    with pytest.raises(FileNotFoundError, match=r"checkpoint-8 holds no gossamer\.pt, .* resume=FOLDER"):
        fit("other", half)
    resumed, again, _ = fit("other", half, resume=half)
    assert method.step == again.step == 16 and method.nnz() == round(0.3 * sum(method.sizes.values()))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    _, longer, _ = fit("run", half, epochs=6)
    assert longer.step == longer.total_steps == 24

    batch = {"x": X, "labels": Y}
    small = gs.compact(trainer.model, batch, optimizer=trainer.optimizer, check_latency=False, round_to=1)
    assert [counts["after"] <= 8 for counts in small.report["channels"].values()] == [True]  # one is dead besides
    assert type(small.optimizer) is type(method.optimizer)
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "model.safetensors").is_file()


def test_a_state_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch says of a write that failed that it did; the file says why."""
    pytest.importorskip("transformers")
    from gossamer.integrations.trainer import sparsify

    class Full(io.BufferedRandom):
        def write(self, data: Any) -> int:
            if len(data) > 1000:
                raise OSError(errno.EFBIG, "File too large")
            return super().write(data)

    def opened(path: Path, mode: str) -> Any:
        path.touch()
        return Full(io.FileIO(path, "r+"))

    callback = sparsify(_make)
    callback.method = SimpleNamespace(state_dict=lambda: {"x": torch.zeros(5000)})
    monkeypatch.setattr(files, "open", opened, raising=False)
    args, state = SimpleNamespace(should_save=True, output_dir=str(tmp_path)), SimpleNamespace(global_step=3)
    with pytest.raises(OSError, match=r"gossamer\.pt cannot be written: File too large; nothing was written"):
        callback.on_save(args, state, None)


def test_cutting_channels_out_inside_a_trainer_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    net = _network()
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)

    def make(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> gs.training.Chase:
        return gs.training.Chase(model, optimizer, total_steps=steps, compact_every=1, example_inputs=X)

    rebuild(make, net, sgd, 8, None).detach()
    assert "compact_every=1: a trainer cannot resume this run" in caplog.text
