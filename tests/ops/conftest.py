"""Every instruction set in turn; Triton kernels compiled ahead of time for Hopper, which needs no GPU."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gossamer import _native

sys.path.insert(0, str(Path(__file__).parent))  # modules beside the tests


@pytest.fixture(params=_native.available_isas())
def isa(request):
    before = _native.isa()
    _native.set_isa(request.param)
    yield request.param
    _native.set_isa(before)


@pytest.fixture
def build():
    """A kernel compiled for sm_90 as a launch would: aligned pointers, sizes i32; `whole` sizes divisible by 16."""
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    def build(module, kernel, constants, pointers, whole=(), **options):
        function = getattr(importlib.import_module(f"gossamer.kernels.triton.{module}"), kernel)
        names = function.arg_names
        types = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in names}
        aligned = [i for i, name in enumerate(names) if types[name].startswith("*") or name in whole]
        hints = {(i,): [["tt.divisibility", 16]] for i in aligned if types[names[i]] != "constexpr"}
        constants = {name: value for name, value in constants.items() if name in names}
        source = ASTSource(function, types, constants, hints)
        return compile(source, target=GPUTarget("cuda", 90, 32), options=options)

    return build


@pytest.fixture
def assert_no_spills(tmp_path):
    """ptxas, asked again for its report, kept every register."""
    from triton.backends.nvidia import compiler as nvidia

    def check(compiled):
        ptx = tmp_path / "kernel.ptx"
        ptx.write_text(compiled.asm["ptx"])
        command = [nvidia.get_ptxas(90).path, "-v", "--gpu-name=sm_90a", str(ptx), "-o", str(tmp_path / "kernel.cubin")]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        spilled = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
        assert spilled == [("0", "0", "0")], report

    return check
