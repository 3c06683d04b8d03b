"""The callbacks: trained in pieces by a foreign trainer is trained whole, and the pattern moves in both."""

from __future__ import annotations

import copy
import importlib
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import gossamer as gs
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
    for module, package, extra in (("lightning", "lightning", "lightning"), ("trainer", "transformers", "hf")):
        sparsify = importlib.import_module(f"gossamer.integrations.{module}").sparsify
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            patch.setitem(sys.modules, f"{package}.pytorch", None)
            with pytest.raises(ImportError, match=rf"gossamer\[{extra}\]"):
                sparsify(_make)


def test_lightning(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
    from gossamer.integrations.lightning import sparsify

    class Net(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = _network()

        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    class Save(lightning.Callback):
        def on_train_epoch_end(self, trainer, module):
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    def fit(*more: object, resume: Path | None = None) -> tuple[nn.Module, object]:
        callback, net = sparsify(_make), Net()
        trainer = lightning.Trainer(
            max_epochs=4, accelerator="cpu", callbacks=[callback, *more], logger=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path, enable_checkpointing=False,
        )  # fmt: skip
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=16)
        trainer.fit(net, loader, ckpt_path=resume)
        return net, callback.method

    whole, method = fit(Save())
    resumed, again = fit(resume=tmp_path / "half.ckpt")
    assert method.step == again.step == 16 and method.history
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_transformers_trainer(tmp_path: Path) -> None:
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

    def fit(resume: str | None = None) -> tuple[nn.Module, object]:
        callback, net = sparsify(_make), Net()
        arguments = transformers.TrainingArguments(
            str(tmp_path), num_train_epochs=4, per_device_train_batch_size=16, save_strategy="epoch",
            use_cpu=True, report_to=[], disable_tqdm=True, learning_rate=0.05, logging_strategy="no", seed=3,
        )  # fmt: skip
        trainer = transformers.Trainer(net, arguments, train_dataset=rows, callbacks=[callback])
        trainer.train(resume_from_checkpoint=resume)
        return net, callback.method

    whole, method = fit()
    resumed, again = fit(str(tmp_path / "checkpoint-8"))
    assert method.step == again.step == 16 and method.history
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
