"""Law: with torch and numpy alone, whatever needs more says which extra has it, by a line that gets it."""

import ast
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from gossamer import extras

COMMANDS = {
    "tour": "tour", "profile m d": "run", "train": "run", "bench detect": "bench", "tune": "run",
    "xmc data stdlib": "xmc", "xmc train d": "xmc", "xmc evaluate r": "xmc", "model smollm2": "serving",
    "generate m": "serving", "calibrate m": "serving", "route profile m": "serving", "route distill m": "serving",
    "serve m": "server",
}  # fmt: skip
CALLS = {
    "gs.serving.LLM": "serving",
    "gs.serving.load('m')": "serving",
    "gs.serving.Engine": "serving",
    "gs.routing.RadialConfig(9).transformer()": "serving",
    "gs.server.application": "server",
    "gs.xmc.open_head": None,
    "gs.data.load('digits')": "run",
    "importlib.import_module('gossamer.integrations.tensorboard').Events(Path('e'))": "run",
    "importlib.import_module('gossamer.integrations.lightning').sparsify(None)": "lightning",
    "importlib.import_module('gossamer.integrations.trainer').sparsify(None)": "hf",
    "importlib.import_module('gossamer.bench.conv.images').photographs(1, 8)": "run",
    "importlib.import_module('gossamer.ops.registration').load_kernel('triton', 'detect', 'detect')": "triton",
}
BARE = """
import importlib, importlib.metadata, json, re, sys
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from pathlib import Path

core, open_ = {"gossamer", "pip"}, ["torch", "numpy"]
while open_:
    name = re.sub("[-_.]+", "-", open_.pop()).lower()
    if name not in core:
        core.add(name)
        try:
            open_ += [re.match(r"[\\w.-]+", each)[0] for each in requires(name) or () if "extra ==" not in each]
        except PackageNotFoundError:
            pass
others = {
    module for module, of in packages_distributions().items()
    if not {re.sub("[-_.]+", "-", each).lower() for each in of} & core
}

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        return None if fullname.partition(".")[0] in others else PathFinder.find_spec(fullname, path, target)

def version_of(name):
    if re.sub("[-_.]+", "-", name).lower() not in core:
        raise PackageNotFoundError(name)
    return version(name)

importlib.metadata.version = version_of
sys.meta_path[:] = [Bare if finder is PathFinder else finder for finder in sys.meta_path]
"""
PROGRAM = """
import contextlib, io, torch, gossamer as gs
from gossamer.cli.__main__ import main

said = {}
for command in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as err:
        assert main(command.split()) == 2, command
    said[command] = err.getvalue()
for call in json.loads(sys.argv[2]):
    try:
        eval(call)
        said[call] = ""
    except (ImportError, RuntimeError) as error:
        said[call] = str(error)
print(json.dumps(said))
"""


def test_the_bare_install_names_the_extra(tmp_path):
    program = [sys.executable, "-c", BARE + PROGRAM, json.dumps(list(COMMANDS)), json.dumps(list(CALLS))]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    for one, extra in (COMMANDS | CALLS).items():
        line = f": {extras.command(extra)} (gossamer[{extra}])" if extra else ""
        assert said[one].rstrip().endswith(line) and bool(said[one]) is bool(extra), said[one]
        assert said[one].count("\n") == (one in COMMANDS)


def test_what_an_extra_brings_is_what_pip_would_install():
    asked = [Requirement(each) for each in metadata.requires("gossamer") or ()]

    def packages(extra):
        found = {each for each in asked if each.marker and each.marker.evaluate({"extra": extra})}
        nested = [packages(inner) for each in found if each.name == "gossamer" for inner in each.extras]
        return {each.name for each in found if each.name != "gossamer"}.union(*nested)

    read = {extra: extras.packages(extra) for extra in extras.known()}
    assert set(read) == set(metadata.metadata("gossamer").get_all("Provides-Extra") or ())
    assert {extra: set(found) for extra, found in read.items()} == {extra: packages(extra) for extra in read}
    assert all(Requirement(wanted).name == name for found in read.values() for name, wanted in found.items())
    assert set(extras.COMMANDS.values()) <= set(read)


BROUGHT_BY = {"tokenizers": "transformers"}  # packages that come with another of the extra
PACKAGES = {"sklearn": "scikit-learn", "PIL": "pillow", "torch.utils.tensorboard": "tensorboard"}


def test_whoever_names_an_extra_names_one_that_brings_the_module():
    """Else the line that is to help gets everything but what is missing."""
    found = []
    for path in sorted(Path(extras.__file__).parent.rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if not isinstance(call, ast.Call) or ast.unparse(call.func) not in ("extras.needed", "extras.compared"):
                continue
            module, _, extra = (each.value if isinstance(each, ast.Constant) else None for each in call.args)
            if module is not None:
                name = PACKAGES.get(module) or PACKAGES.get(module.split(".")[0]) or module.split(".")[0]
                found.append((str(path), BROUGHT_BY.get(name, name).replace("_", "-"), extra))
    assert len(found) > 20
    assert [each for each in found if each[1] not in extras.packages(each[2])] == []


@pytest.mark.parametrize("module", ["tqdm", "mine", None])
def test_a_module_of_the_user_is_no_extra(module, monkeypatch):
    monkeypatch.setattr(extras, "version", lambda name: None if name == "tqdm" else "1")
    error = ModuleNotFoundError("no module", name=module)
    said = f'gossamer generate needs tqdm: pip install "{extras.packages("serving")["tqdm"]}" (gossamer[serving])'
    assert str(extras.explained(error, "gossamer generate", "serving")) == (said if module == "tqdm" else "no module")
