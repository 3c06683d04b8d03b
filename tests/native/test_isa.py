"""Law: the instruction set is chosen once, can be forced, is never chosen silently, and never leaks into another."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gossamer import _native

ROOT = Path(__file__).parents[2]
PROGRAM = """
import torch
from gossamer.kernels.cpu.detect import detect
from gossamer import _native
x = torch.zeros(9, 70); x[8, 69] = 1
print(_native.isa(), detect(x, 2, 3, 4, True)[1].tolist())
"""


def run(isa):
    environment = {**os.environ, "GOSSAMER_ISA": isa} if isa is not None else dict(os.environ)
    if isa is None:
        environment.pop("GOSSAMER_ISA", None)
    return subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("isa", _native.available_isas())
def test_environment_forces(isa):
    result = run(isa)
    assert result.stdout.split(" ", 1) == [isa, "[23, 0, 0, 0]\n"], result.stderr


def test_widest_is_the_default():
    assert run(None).stdout.split()[0] == _native.available_isas()[-1]


@pytest.mark.parametrize("isa", ["sse2", "AVX2", ""])
def test_unknown_value_is_an_error_at_import(isa):
    result = run(isa)
    assert result.returncode != 0 and result.stdout == ""
    message = result.stderr.splitlines()[-1]
    assert f"GOSSAMER_ISA='{isa}'" in message and ", ".join(_native.available_isas()) in message


def test_set_isa_refuses_and_keeps():
    before = _native.isa()
    with pytest.raises(ValueError, match=r"'neon' is not a known instruction set; available here: scalar"):
        _native.set_isa("neon")
    assert _native.isa() == before


def test_lists_are_narrow_to_wide(isa):
    order = ["scalar", "avx2", "avx512"]
    assert isa == _native.isa()
    for names in (_native.available_isas(), _native.built_isas()):
        assert names == [name for name in order if name in names] and names[0] == "scalar"


def objects(isa):
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}-"
    found = [o for d in ROOT.glob(f"build/{tag}*") for o in (d / f"CMakeFiles/kernels_{isa}.dir/csrc").glob("*.o")]
    if not found or shutil.which("objdump") is None or shutil.which("nm") is None:
        pytest.skip("needs the build directory of an editable install, and binutils")
    return found


def output(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_objects_define_only_their_own_names(isa):
    """A weak symbol compiled for AVX-512 could be the copy that the linker keeps for the scalar path."""
    for path in objects(isa):
        defined = [
            line for line in output("nm", "-C", "--defined-only", path).splitlines() if line.split()[1].isupper()
        ]
        assert defined, path
        for line in defined:
            assert line.split()[1] == "T" and f" gossamer::{isa}::" in line, line


def test_objects_hold_only_their_own_registers(isa):
    """A wider register in narrower code is an illegal instruction somewhere; none of its own means scalar loops."""
    widest = {"scalar": "xmm", "avx2": "ymm", "avx512": "zmm"}[isa]
    forbidden = {"scalar": ("%ymm", "%zmm"), "avx2": ("%zmm",), "avx512": ()}[isa]
    for path in objects(isa):
        code = output("objdump", "-d", "--no-show-raw-insn", path)
        assert not any(register in code for register in forbidden), path
        if path.name.split(".")[0] in ("detect", "mask", "read", "select"):
            assert code.count(f"%{widest}") >= 10, path
