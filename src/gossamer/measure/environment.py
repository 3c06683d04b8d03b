"""What a result file must say about where it was measured."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from gossamer.measure.processor import processor

PACKAGES = ("gossamer", "torch", "numpy", "triton", "torch-pruning", "onnxruntime", "transformers")


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return ""


def _cpu_model(cpuinfo: str) -> str:
    for line in cpuinfo.splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _isa() -> str:
    try:
        from gossamer import _native
    except ImportError:
        return "none (gossamer._native is not built)"
    return str(_native.isa())


def _commit() -> str | None:
    """The commit of the checkout this package lies in, with `+` when files differ; None outside a checkout."""

    def git(*arguments: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment() -> dict[str, Any]:
    """Describe this machine and these versions as plain strings and numbers.

    >>> import gossamer as gs
    >>> sorted(gs.measure.environment())[:4]
    ['commit', 'cores', 'cpu', 'date']
    """
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    cpuinfo = _cpuinfo()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "cpu": _cpu_model(cpuinfo),
        **processor(cpuinfo),
        "cores": torch.multiprocessing.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": _isa(),
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "gpu": gpu,
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name)) is not None},
    }
