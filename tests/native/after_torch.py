"""What processes say that import gossamer with variables of their own: torch, which takes seconds, is imported once."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

PROGRAM = """
import json, os, sys
import torch
assert "gossamer" not in sys.modules
for number, environment in enumerate(json.loads(sys.argv[2])):
    child = os.fork()
    if child == 0:
        os.environ.pop("GOSSAMER_ISA", None)
        os.environ.update(environment)
        for end, name in enumerate(("out", "err"), 1):
            os.dup2(os.open(f"{name}{number}", os.O_WRONLY | os.O_CREAT), end)
        exec(sys.argv[1])
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Ended(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def run(program: str, *environments: dict[str, str]) -> list[Ended]:
    """The program in a process for each environment; GOSSAMER_ISA is unset where none is given."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", PROGRAM, program, json.dumps(environments)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        return [
            Ended(int(code), *(Path(folder, f"{name}{number}").read_text() for name in ("out", "err")))
            for number, code in enumerate(done.stdout.split())
        ]
