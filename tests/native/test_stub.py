"""`_native.pyi` is what the extension says of itself (`make stub` writes it)."""

import subprocess
import sys
from pathlib import Path

import gossamer

STUB = Path(gossamer.__file__).with_name("_native.pyi")


def test_the_stub_is_current(tmp_path):
    stub = tmp_path / "_native.pyi"
    for command in (
        ("nanobind.stubgen", "-q", "-m", "gossamer._native", "-o"),
        ("ruff", "format", "--line-length=120"),
    ):
        done = subprocess.run([sys.executable, "-m", *command, str(stub)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert stub.read_text() == STUB.read_text(), "run `make stub`"
