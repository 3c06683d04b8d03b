"""What every test gets: poisoned uninitialised memory, fixed seeds, its own clock and costs, torch left as it was."""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

from gossamer.kernels.cpu import memory
from gossamer.measure import clock as measured
from gossamer.testing import Clock

sys.path.insert(0, str(Path(__file__).parent / "processes"))  # for all folders: how they begin a process

# The same examples in every run, and no time limit for one or for drawing them: machines that share cores are slow at
# random.
hypothesis.settings.register_profile(
    "gossamer", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("gossamer")


def pytest_collection_finish() -> None:
    """What was collected stays to the end: a million objects that no search for garbage has to walk over again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


_EMPTY = torch.empty
_EMPTY_LIKE = torch.empty_like
_NEW_EMPTY = torch.Tensor.new_empty
_LEASED = memory._leased
_CACHE = os.environ.get("GOSSAMER_CACHE")  # the user's: every test has an empty one of its own


def _poison(tensor: torch.Tensor) -> torch.Tensor:
    """Fill with the value most likely to be noticed: NaN for floats, the largest value for integers."""
    # The type first: a fake tensor of a size known only at run time cannot be asked how many elements it has.
    if type(tensor) is not torch.Tensor or tensor.device.type == "meta" or not tensor.is_leaf or tensor.numel() == 0:
        return tensor
    if torch.compiler.is_compiling():
        return tensor
    with torch.no_grad():
        if tensor.is_floating_point() or tensor.is_complex():
            tensor.fill_(float("nan"))
        elif tensor.dtype == torch.bool:
            tensor.fill_(True)
        else:
            tensor.fill_(torch.iinfo(tensor.dtype).max)
    return tensor


def _from_gossamer() -> bool:
    return sys._getframe(2).f_globals.get("__name__", "").startswith("gossamer.")


def poison_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the library takes as uninitialised memory holds NaN, so a kernel that leaves a hole cannot pass.

    That goes for `torch.empty` and for the blocks that `kernels/cpu/memory.py` keeps: what was in one last is often the
    right answer, of another instruction set. No block passes for a new one, which would be zero.
    """

    def empty(*args, **kwargs):
        out = _EMPTY(*args, **kwargs)
        return _poison(out) if _from_gossamer() else out

    def empty_like(*args, **kwargs):
        out = _EMPTY_LIKE(*args, **kwargs)
        return _poison(out) if _from_gossamer() else out

    def new_empty(self, *args, **kwargs):
        out = _NEW_EMPTY(self, *args, **kwargs)
        return _poison(out) if _from_gossamer() else out

    def leased(size, whole):
        out, block, _ = _LEASED(size, whole)
        return out.fill_(0xFF), block, False  # NaN in every float

    monkeypatch.setattr(memory, "_leased", leased)
    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch, "empty_like", empty_like)
    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)


@pytest.fixture(autouse=True, scope="session")
def always(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What no test changes: poisoned memory, and no costs that `gossamer tune` measured on this machine."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        poison_empty(monkeypatch)
        monkeypatch.setenv("GOSSAMER_CACHE", str(tmp_path_factory.getbasetemp() / "no costs"))
        yield


_VENDORS = (
    torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn,
    torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv, torch.backends.mkldnn.rnn,
)  # fmt: skip


_THEIRS = ("PYTEST_", "TORCH", "_TORCH", "PYTORCH_", "KMP_")  # what torch and accelerate set by themselves


def _process() -> dict[str, object]:
    """What a whole process is set to, and belongs to the user."""
    logger = logging.getLogger("gossamer")
    return {
        "environment": {name: value for name, value in os.environ.items() if not name.startswith(_THEIRS)},
        "folder": os.getcwd(),
        "signals": (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)),
        "logging": (logging.root.level, logger.level, logger.propagate, logger.disabled, logging.root.manager.disable),
        "gc": gc.isenabled(),
        "device": torch.get_default_device(),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "deterministic": (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic),
        "engines": (torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled(), torch.backends.cudnn.benchmark),
        "precisions": [each.fp32_precision for each in _VENDORS],
        "attention": torch.backends.mha.get_fastpath_enabled(),
        "modes": (torch._C._len_torch_dispatch_stack(), torch._C._is_torch_function_mode_enabled()),
    }  # fmt: skip


def _difference(before: object, after: object) -> object:
    if isinstance(before, dict) and isinstance(after, dict):
        return {
            name: (before.get(name), after.get(name))
            for name in {**before, **after}
            if before.get(name) != after.get(name)
        }
    return before, after


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    """Each test begins with the same random numbers, and nothing that it runs sets the process otherwise."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    threads, dtype, before = torch.get_num_threads(), torch.get_default_dtype(), _process()
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    after = _process()
    changed = {name: _difference(before[name], value) for name, value in after.items() if value != before[name]}
    assert not changed, f"the process is set otherwise than before: {changed}"


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Whatever the library times takes a 64th of a second: no decision in a test depends on the machine's load."""
    clock = Clock(step=1 / 64)  # exact in binary, and long enough for one sample of `measure.interleave`
    monkeypatch.setattr(measured, "now", clock)
    return clock


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of a real language model, which `make` fetches: SmolLM2-135M-Instruct as a GGUF file."""
    from gossamer.serving.checkpoints import models

    with pytest.MonkeyPatch.context() as patched:
        if _CACHE is None:
            patched.delenv("GOSSAMER_CACHE", raising=False)
        else:
            patched.setenv("GOSSAMER_CACHE", _CACHE)
        if not models.is_here("smollm2"):
            pytest.skip("SmolLM2 is not in the cache: gossamer model smollm2 fetches it, with a network")
        return models.found("smollm2").parent
