"""What this machine can run: instruction sets, threads, GPU, the kernels of each op and why not, extras.

    >>> import gossamer as gs
    >>> report = gs.doctor.report()
    >>> report["native"]["isa"] in ("scalar", "avx2", "avx512", "avx512_bf16", "avx512_amx")
    True
    >>> print(gs.doctor.text(report).splitlines()[0].split()[0])
    gossamer

Every part is looked at on its own and a part that is missing becomes a sentence in the report: nothing here raises.
"""

from __future__ import annotations

import importlib
import os
import platform
import re
from pathlib import Path
from typing import Any

from gossamer import extras

PACKAGES = ("gossamer", "torch", "numpy", "triton", "nanobind", "transformers", "onnxruntime", "torch-pruning")
BACKENDS = ("reference", "cpu", "triton")
_KERNELS = Path(__file__).parent / "kernels"


def report() -> dict[str, Any]:
    """Describe this machine as a dict of plain strings, numbers and lists (so that it can be written as JSON)."""
    native, gpu = _native(), _gpu()
    return {
        "cpu": {"model": _cpu_model(), "cores": os.cpu_count(), "architecture": platform.machine()},
        "native": native,
        "threads": _threads(native),
        "gpu": gpu,
        "versions": {name: extras.version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "kernels": _kernels(native, gpu),
        "extras": _extras(),
    }


def text(report: dict[str, Any]) -> str:
    """Lay out a report for a terminal."""
    native, threads, gpu = report["native"], report["threads"], report["gpu"]
    lines = [
        "  ".join(f"{name} {version}" for name, version in report["versions"].items() if version),
        "",
        f"CPU      {report['cpu']['model']}, {report['cpu']['cores']} cores",
    ]
    if native["error"]:
        lines.append(f"native   unavailable: {native['error']}")
    else:
        lines.append(f"native   {native['isa']}, {native['why']}; available: {', '.join(native['available'])}")
        others = [isa for isa in native["built"] if isa not in native["available"]]
        if others:
            lines.append(f"         not here, by this CPU or its operating system: {', '.join(others)}")
        lines.append(f"         compiled with {native['compiler']}")
    lines.append(f"threads  {threads['summary']}")
    lines.append(f"GPU      {gpu['name'] or gpu['error']}")
    wide = max(map(len, ("kernels", *report["kernels"]))) + 2
    lines += ["", f"{'kernels':<{wide}}" + "".join(f"{backend:>12}" for backend in BACKENDS)]
    reasons: dict[str, int] = {}
    for op, row in report["kernels"].items():
        line = f"  {op}".ljust(wide)
        for backend in BACKENDS:
            why = row[backend]
            line += f"{'yes' if why is None else f'no [{reasons.setdefault(why, len(reasons) + 1)}]':>12}"
        lines.append(line)
    lines += [f"  [{number}] {reason}" for reason, number in reasons.items()]
    lines += ["", "extras"]
    for name, extra in report["extras"].items():
        state = "installed" if not extra["missing"] else f"missing {', '.join(extra['missing'])}: {extra['command']}"
        lines.append(f"  {name:<10} {state}")
    if not report["extras"]:
        lines.append("  unknown: gossamer itself is not installed (pip install .)")
    return "\n".join(lines)


def _import(name: str) -> tuple[Any, str | None]:
    """The module, or why there is none; a broken installation raises all sorts of things when imported."""
    try:
        return importlib.import_module(name), None
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


def _cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine() or "unknown"


def _native() -> dict[str, Any]:
    """The compiled extension: the instruction set in use, why that one, and what else there is."""
    _import("torch")  # first, so that the extension finds torch's OpenMP runtime loaded
    native, error = _import("gossamer._native")
    forced = os.environ.get("GOSSAMER_ISA")
    if native is None:
        nothing = dict.fromkeys(("isa", "why", "compiler", "openmp"))
        return {"error": error, "available": [], "built": [], **nothing}
    active, available = native.isa(), native.available_isas()
    if active == forced:
        why = f"because GOSSAMER_ISA={forced}"
    elif active == native.best_isa():
        why = "the fastest that this CPU, its operating system and this build have"
    else:
        why = "set in this process"
    return {
        "error": None,
        "isa": active,
        "why": why,
        "available": available,
        "built": native.built_isas(),
        "compiler": native.compiler(),
        "openmp": native.openmp_library() or None,
    }


def _openmp_runtimes() -> list[str] | None:
    """The OpenMP runtimes loaded in this process; None where the system does not say."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    return sorted(set(re.findall(r"(/\S*lib(?:gomp|omp|iomp5)[-.]\S*)", maps)))


def _threads(native: dict[str, Any]) -> dict[str, Any]:
    torch, error = _import("torch")
    count = torch.get_num_threads() if torch else None
    runtimes = _openmp_runtimes()
    shared: bool | None = None
    if torch is None:
        summary = f"unknown: torch is not importable ({error})"
    elif native["error"]:
        summary = f"torch {count}"
    elif native["openmp"] is None:
        summary = f"torch {count}; the extension was built without OpenMP and runs on 1"
    else:
        home = str(Path(torch.__file__).parent)
        # torch's own copy lies in its package; a build against the system's runtime has none there and shares that one
        of_torch = [path for path in runtimes or [] if path.startswith(home)] or runtimes or []
        shared = os.path.realpath(native["openmp"]) in map(os.path.realpath, of_torch) if of_torch else None
        pool = {True: "one OpenMP pool", False: "TWO OpenMP pools, which compete", None: "OpenMP"}[shared]
        summary = f"{count}, torch and extension in {pool} ({native['openmp']})"
        if runtimes and len(runtimes) > 1:
            summary += f"; {len(runtimes)} OpenMP runtimes are loaded in this process"
    return {"torch": count, "runtimes": runtimes, "shared": shared, "summary": summary}


def _gpu() -> dict[str, Any]:
    torch, error = _import("torch")
    if torch is None:
        return {"name": None, "capability": None, "error": f"torch is not importable ({error})"}
    try:
        if torch.cuda.is_available():
            capability = list(torch.cuda.get_device_capability())
            return {"name": torch.cuda.get_device_name(), "capability": capability, "error": None}
        built = getattr(torch.version, "cuda", None) or getattr(torch.version, "hip", None)
        why = "no CUDA device" if built else "no CUDA device (and this torch is built for the CPU only)"
    except Exception as error:  # a driver that does not fit raises RuntimeError and more
        why = f"{type(error).__name__}: {error}"
    return {"name": None, "capability": None, "error": why}


def _kernels(native: dict[str, Any], gpu: dict[str, Any]) -> dict[str, dict[str, str | None]]:
    """{op: {backend: None where it can run here, else the reason}}; an op is a file of `kernels/reference`."""
    torch, error = _import("torch")
    _, triton_error = _import("triton")
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    reasons: dict[str, str | None] = {"reference": None, "cpu": None, "triton": None}
    if torch is None:
        reasons = dict.fromkeys(reasons, f"torch is not importable ({error})")
    else:
        if native["error"]:
            reasons["cpu"] = f"the compiled extension is not importable ({native['error']})"
        if extras.version("triton") is None:
            reasons["triton"] = f"triton is not installed: {extras.command('triton')}"
        elif triton_error:
            reasons["triton"] = f"triton is not importable ({triton_error})"
        elif gpu["name"] is None and not interpreted:
            reasons["triton"] = f"{gpu['error']}; TRITON_INTERPRET=1 runs it slowly on CPU tensors"
    files = {backend: {file.stem for file in (_KERNELS / backend).glob("[a-z]*.py")} for backend in BACKENDS}
    return {
        op: {
            backend: reasons[backend] if op in files[backend] else f"there is no {backend} kernel for {op}"
            for backend in BACKENDS
        }
        for op in sorted(files["reference"])
    }


def _extras() -> dict[str, dict[str, Any]]:
    """{extra: {packages: {name: version or None}, missing: [names], command}} from gossamer's own metadata."""
    return {
        extra: {
            "packages": {name: extras.version(name) for name in extras.packages(extra)},
            "missing": extras.missing(extra),
            "command": extras.command(extra),
        }
        for extra in extras.known()
    }
