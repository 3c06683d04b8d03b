"""Law: the doctor describes any machine, whatever is missing on it, and never raises."""

import importlib
import importlib.metadata
import json
import re
import sys
from pathlib import Path

import after_torch
import pytest
import torch

from gossamer import _native, doctor, extras

OPS = {"detect", "dsd", "fan_in_mm", "gather", "gather_mm", "grouped", "mask", "relu_bits", "scatter", "sdd", "select"}
OPS |= {"reorder", "skip_conv", "skip_conv_weight", "skip_mv", "transpose", "fan_in_mm_t", "fan_in_sdd", "fan_in_step"}
OPS |= {"fan_in_topk", "fan_in_rewire", "page_append", "page_attention", "page_scores", "open_mv", "few_rows"}
OPS |= {"masked_attention", "varlen_attention", "page_key_scores", "page_choose"}


def without(monkeypatch, *packages):
    """Make packages look never installed: neither importable nor known to the installer."""
    real_import, real_version = importlib.import_module, importlib.metadata.version

    def import_module(name, package=None):
        if name.split(".")[0] in packages or name in packages:
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real_import(name, package)

    def version(name):
        if name in packages:
            raise importlib.metadata.PackageNotFoundError(name)
        return real_version(name)

    monkeypatch.setattr(importlib, "import_module", import_module)
    monkeypatch.setattr(importlib.metadata, "version", version)


def test_this_machine():
    report = doctor.report()
    assert report["native"]["isa"] == _native.isa() in report["native"]["available"]
    assert report["native"]["compiler"] == _native.compiler()
    assert report["threads"]["torch"] == torch.get_num_threads()
    assert report["versions"]["torch"] == torch.__version__
    assert set(report["kernels"]) == OPS
    assert all(row["reference"] is None and row["cpu"] is None for row in report["kernels"].values())
    assert json.loads(json.dumps(report)) == report
    text = doctor.text(report)
    assert _native.isa() in text and torch.__version__ in text and all(op in text for op in OPS)
    table = [line for line in text.splitlines() if line.split() and line.split()[0] in OPS | {"kernels"}]
    assert len({line.rindex("cpu" if line.startswith("kernels") else "yes") + 3 for line in table}) == 1


def test_every_verb_said_to_be_there_is_there():
    for op, row in doctor.report()["kernels"].items():
        for backend in ("reference", "cpu"):
            if row[backend] is None:
                importlib.import_module(f"gossamer.kernels.{backend}.{op}")


def test_instruction_set_and_why_in_fresh_processes():
    """There only one OpenMP runtime is loaded: other libraries of a test session may bring their own."""
    program = """
from gossamer import doctor
report = doctor.report()
print(report["threads"]["shared"], len(report["threads"]["runtimes"] or ["not known"]))
print(doctor.text(report))
"""
    values = "scalar", "nonsense"
    ends = after_torch.run(program, {}, *({"GOSSAMER_ISA": value} for value in values))
    best, scalar, nonsense = (next(x for x in end.stdout.splitlines() if x.startswith("native")) for end in ends)
    assert f"{_native.best_isa()}, the fastest" in best
    assert "scalar, because GOSSAMER_ISA=scalar" in scalar
    assert "unavailable" in nonsense and "GOSSAMER_ISA='nonsense'" in nonsense
    assert re.search(r"detect +yes +no \[", ends[2].stdout)
    if sys.platform == "linux":  # which tells in /proc
        assert [end.stdout.splitlines()[0] for end in ends] == ["True 1", "True 1", "None 1"]


def test_two_openmp_runtimes_are_told(monkeypatch):
    home = Path(torch.__file__).parent
    monkeypatch.setattr(doctor, "_openmp_runtimes", lambda: [str(home / "lib/libgomp.so.1"), "/usr/lib/libgomp.so.1"])
    native = {"error": None, "openmp": "/usr/lib/libgomp.so.1"}
    threads = doctor._threads(native)
    assert threads["shared"] is False
    assert "TWO OpenMP pools" in threads["summary"] and "2 OpenMP runtimes" in threads["summary"]
    assert "runs on 1" in doctor._threads({"error": None, "openmp": None})["summary"]


def test_runtimes_of_every_vendor_are_seen(monkeypatch):
    maps = """7f00-7f01 r-xp 00000000 00:00 1  /a/torch.libs/libgomp-a34b3233.so.1.0.0
7f02-7f03 r--p 00000000 00:00 1  /a/torch.libs/libgomp-a34b3233.so.1.0.0
7f04-7f05 r-xp 00000000 00:00 2  /b/libiomp5.so
7f06-7f07 r-xp 00000000 00:00 3  /c/libomp.so.5
7f08-7f09 r-xp 00000000 00:00 4  /d/libcompress.so
"""
    monkeypatch.setattr(Path, "read_text", lambda self: maps)
    assert doctor._openmp_runtimes() == ["/a/torch.libs/libgomp-a34b3233.so.1.0.0", "/b/libiomp5.so", "/c/libomp.so.5"]


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        (["triton"], 'triton is not installed: pip install "triton>='),
        (["gossamer._native"], "the compiled extension is not importable (ModuleNotFoundError"),
        (["torch"], "torch is not importable (ModuleNotFoundError: No module named 'torch')"),
        (["onnx", "scikit-learn"], 'missing scikit-learn: pip install "scikit-learn>='),
        (["gossamer"], "unknown: gossamer itself is not installed"),
        (["torch", "triton", "numpy", "gossamer._native", "gossamer"], "unknown: torch is not importable"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else None,
)
def test_missing_packages(monkeypatch, missing, expected):
    without(monkeypatch, *missing)
    if "gossamer" in missing:
        monkeypatch.setattr(importlib.metadata, "requires", lambda name: importlib.metadata.version(name))
    report = doctor.report()
    assert expected in doctor.text(report)
    json.dumps(report)
    if "torch" in missing:
        assert all(reason is not None for row in report["kernels"].values() for reason in row.values())
    elif "gossamer._native" in missing:
        assert all(row["reference"] is None and row["cpu"] is not None for row in report["kernels"].values())


def test_extras_include_the_extras_they_name(monkeypatch):
    monkeypatch.setattr(
        importlib.metadata,
        "requires",
        lambda name: [
            "torch>=2.10",
            'one>=1; extra == "a"',
            'two>=2; sys_platform == "linux" and extra == "b"',
            'gossamer[a,b]; extra == "all"',
            "gossamer[all]; extra == 'loop'",
            'gossamer[loop]; extra == "all"',
            'three>=3; sys_platform == "amiga" and extra == "a"',
            "four (>=4,<5); (sys_platform == 'linux' or sys_platform == 'darwin') and extra == 'c'",
            'five>=5; python_version < "3.4" and extra == "c"',
        ],
    )
    without(monkeypatch, "one", "two", "three", "four", "five")
    monkeypatch.setattr(sys, "platform", "linux")
    extras = doctor._extras()
    assert {name: extra["missing"] for name, extra in extras.items()} == {
        "a": ["one"], "b": ["two"], "all": ["one", "two"], "loop": ["one", "two"], "c": ["four"],
    }  # fmt: skip
    assert extras["all"]["command"] == 'pip install "one>=1" "two>=2"'


def test_a_driver_that_raises(monkeypatch):
    def broken():
        raise RuntimeError("driver too old")

    monkeypatch.setattr(torch.cuda, "is_available", broken)
    report = doctor.report()
    assert report["gpu"]["name"] is None and "driver too old" in doctor.text(report)


def test_triton_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(extras, "version", lambda name: "9.9")
    monkeypatch.setattr(doctor, "_import", lambda name: (torch if name == "torch" else object(), None))
    gpu = doctor._gpu()
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    reason = doctor._kernels({"error": None}, gpu)["detect"]["triton"]
    assert "no CUDA device" in reason and "TRITON_INTERPRET=1" in reason
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert doctor._kernels({"error": None}, gpu)["detect"]["triton"] is None


def test_without_proc(monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(str(self))

    monkeypatch.setattr(Path, "read_text", refuse)
    report = doctor.report()
    assert report["threads"]["runtimes"] is None and report["cpu"]["model"]
    doctor.text(report)
