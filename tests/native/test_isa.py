"""Law: the instruction set is chosen once, can be forced, is never chosen silently, and never leaks into another."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import after_torch
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


UNKNOWN = ("sse2", "AVX2", "")


def test_the_environment_chooses_at_import():
    """The fastest without a word, else the one that is named, and an error for a name that is not known here."""
    available = _native.available_isas()
    without, *named = after_torch.run(PROGRAM, {}, *({"GOSSAMER_ISA": isa} for isa in (*available, *UNKNOWN)))
    chosen = without.stdout.split()[0]
    assert chosen == _native.best_isa()
    assert available[available.index(chosen) + 1 :] in ([], ["avx512_bf16"])  # whose products are slow on some CPUs
    for isa, result in zip(available, named, strict=False):
        assert result.stdout.split(" ", 1) == [isa, "[23, 0, 0, 0]\n"], result.stderr
    for isa, result in zip(UNKNOWN, named[len(available) :], strict=True):
        assert result.returncode != 0 and result.stdout == ""
        message = result.stderr.splitlines()[-1]
        assert f"GOSSAMER_ISA='{isa}'" in message and ", ".join(available) in message


def test_set_isa_refuses_and_keeps():
    before = _native.isa()
    with pytest.raises(ValueError, match=r"'neon' is not a known instruction set; available here: scalar"):
        _native.set_isa("neon")
    assert _native.isa() == before


def test_lists_are_narrow_to_wide(isa):
    order = ["scalar", "avx2", "avx512", "avx512_bf16", "avx512_amx"]
    assert isa == _native.isa()
    for names in (_native.available_isas(), _native.built_isas()):
        assert names == [name for name in order if name in names] and names[0] == "scalar"


@pytest.mark.parametrize("isa", ["avx512_bf16", "avx512_amx"])
def test_what_multiplies_bfloat16_has_code_of_its_own_for_attention(isa):
    if isa not in _native.built_isas():
        pytest.skip("not of this processor family")
    assert _native.ops_of(isa) == ["page_attention_workspace", "page_attention"]
    assert set(_native.ops_of(isa)) < set(_native.ops_of("avx512"))
    assert _native.ops_of("neon") == []


SMALL_STACK = """
import ctypes
class Stack(ctypes.Structure):
    _fields_ = [("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
memory = ctypes.create_string_buffer(8000)
assert ctypes.CDLL(None).sigaltstack(ctypes.byref(Stack(ctypes.addressof(memory), 0, len(memory))), None) == 0
"""


@pytest.mark.skipif("avx512_amx" not in _native.available_isas(), reason="no tiles to refuse")
def test_tiles_are_not_chosen_where_the_operating_system_refuses_them():
    """As it does while a thread's stack for signals has no room for them."""
    environment = {name: value for name, value in os.environ.items() if name != "GOSSAMER_ISA"}
    for isa, expected in (("", "avx512 [23, 0, 0, 0]\n"), ("avx512_amx", "")):
        chosen = environment | ({"GOSSAMER_ISA": isa} if isa else {})
        program = [sys.executable, "-c", SMALL_STACK + PROGRAM]
        result = subprocess.run(program, env=chosen, capture_output=True, text=True)
        assert result.stdout == expected, result.stderr
        assert ("refused by its operating system" in result.stderr) == bool(isa)


def objects(isa):
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}-"
    found = [o for d in ROOT.glob(f"build/{tag}*") for o in (d / f"CMakeFiles/kernels_{isa}.dir/csrc").glob("*.o")]
    if not found or shutil.which("objdump") is None or shutil.which("nm") is None:
        pytest.skip("needs the build directory of an editable install, and binutils")
    return found


def output(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("isa", _native.built_isas())
def test_objects_define_only_their_own_names(isa):
    """A weak symbol compiled for AVX-512 could be the copy that the linker keeps for the scalar path."""
    for path in objects(isa):
        defined = [
            line for line in output("nm", "-C", "--defined-only", path).splitlines() if line.split()[1].isupper()
        ]
        assert defined, path
        for line in defined:
            assert line.split()[1] == "T" and f" gossamer::{isa}::" in line, line


@pytest.mark.parametrize("isa", _native.built_isas())
def test_objects_hold_only_their_own_registers(isa):
    """A wider register in narrower code is an illegal instruction somewhere; none of its own means scalar loops."""
    widest = {"scalar": "xmm", "avx2": "ymm"}.get(isa, "zmm")
    pairs = ("ps2bf16", "dpbf16ps", "%tmm")
    forbidden = {
        "scalar": ("%ymm", "%zmm", *pairs), "avx2": ("%zmm", *pairs), "avx512": pairs, "avx512_bf16": ("%tmm",),
        "avx512_amx": (),
    }[isa]  # fmt: skip
    for path in objects(isa):
        code = output("objdump", "-d", "--no-show-raw-insn", path)
        assert not any(register in code for register in forbidden), path
        if isa.startswith("avx512_"):
            assert "vdpbf16ps" in code and (isa == "avx512_bf16" or "tdpbf16ps" in code)
        if path.name.split(".")[0] in ("detect", "mask", "read", "select"):
            assert code.count(f"%{widest}") >= 10, path
