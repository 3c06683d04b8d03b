"""Files of ours: written whole or not at all, read only if they are files, JSON with a checksum.

    with files.replacing(path) as file:      # a draft beside `path`, renamed over it at the end
        file.write(b"...")

A draft is called `.NAME.<random>.part`. Whoever dies while writing leaves the file of before, and a draft that
`draft_of` knows. Nothing here waits for a pipe, and nothing is allocated before the size of the file is known.
May import nothing of gossamer.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

_FULL = (errno.ENOSPC, errno.EDQUOT)
_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}  # fmt: skip


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A new binary file, to be written and read, that takes the place of `path` if the block ends without an error.

    A link is followed: what it points to is replaced. A folder that is not there is made.

    Raises:
        ValueError: `path` is a folder, a pipe or a device.
        OSError: the file cannot be written; `path` is named, and what is there now. A full disk is called that.

    >>> import tempfile, pathlib
    >>> from gossamer import files
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "a.txt"
    ...     with files.replacing(path) as file:
    ...         _ = file.write(b"whole")
    ...     files.read(path, limit=100)
    b'whole'
    """
    target = _target(path)
    draft = target.with_name(f".{target.name}.{secrets.token_hex(6)}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(draft, "x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, target)
        _sync_folder(target.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        # What a write raises names no file; the name of a draft tells nobody anything.
        if isinstance(error, OSError) and error.filename in (None, str(draft)):
            what = f"{path} cannot be written: {error.strerror or error}"
            if error.errno in _FULL:
                what = f"no space left on the disk for {path}"
            kept = "the file of before is kept" if target.exists() else "nothing was written"
            raise OSError(error.errno, f"{what}; {kept}") from error
        raise


class Writer:
    """What a package needs of a file to write to it; keeps the error of the file, which it may replace by its own."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


@contextlib.contextmanager
def honest(file: BinaryIO) -> Iterator[Writer]:
    """`file` for `torch.save`, which says of a write that failed that it did, and not why: here the file's error comes.

    >>> import io
    >>> with honest(io.BytesIO()) as writer:
    ...     writer.write(b"whole")
    5
    """
    writer = Writer(file)
    try:
        yield writer
    except RuntimeError as error:
        raise writer.error or error from error


def _target(path: str | os.PathLike[str]) -> Path:
    """Where a link leads to in the end; what is there and no file is not ours to replace."""
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise ValueError(f"{path} is {kind(target)}; expected a file or nothing there")
    return target


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where the file system knows how to."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def cache_folder() -> Path:
    """Where what can be made again is kept: `$GOSSAMER_CACHE`, or `gossamer` in the user's cache folder.

    Raises:
        FileNotFoundError: the user has no home, and no variable names a folder.
    """
    given = os.environ.get("GOSSAMER_CACHE")
    cache = os.environ.get("XDG_CACHE_HOME", "")
    home = Path(os.path.expanduser(given or (cache if os.path.isabs(cache) else "~/.cache")))
    if not given and (not home.is_absolute() or (not os.path.isabs(cache) and os.environ.get("HOME") == "")):
        raise FileNotFoundError("there is no home folder for what is kept; set GOSSAMER_CACHE to a folder")
    return home if given else home / "gossamer"


def draft_of(name: str) -> str | None:
    """The name of the file that `name` is a draft of (both without folders); None if it is no draft."""
    found = re.fullmatch(r"\.(.+)\.[0-9a-f]{12}\.part", name, re.DOTALL)
    return found[1] if found else None


def check_target(path: str | os.PathLike[str]) -> None:
    """See that a file could be written to `path`, so that no work is lost for it; nothing of that stays.

    Folders that are not there are tried under a name of their own: other processes may look at the same path just now.

    Raises:
        ValueError: `path` is a folder, a pipe or a device.
        OSError: its folder cannot be made or written; the message names it.
    """
    with _naming(path):
        target = _target(path)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(target)  # says of every name whether it is too long
    mark = secrets.token_hex(6)
    above = [folder for folder in target.parents if os.path.lexists(folder)]
    if above and not above[0].is_dir():
        raise NotADirectoryError(
            errno.ENOTDIR, f"{path} cannot be written: {above[0]} is {kind(above[0])}, not a folder"
        )
    missing = target.parent.relative_to(above[0]).parts if above else ()
    folders = [above[0] / f".{mark}.part"] if missing else []
    for name in missing[1:]:
        folders.append(folders[-1] / name)
    probe = (folders[-1] if folders else target.parent) / f".{target.name}.{mark}.part"
    try:
        with _naming(path):
            for folder in folders:
                folder.mkdir()
            with open(probe, "xb"):
                pass
    finally:
        if os.path.lexists(probe):
            probe.unlink()
        for folder in reversed(folders):
            if os.path.lexists(folder):
                folder.rmdir()


@contextlib.contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Errors say that `path` cannot be written."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{path} cannot be written: {error.strerror}") from error


def kind(path: str | os.PathLike[str]) -> str:
    """What lies at `path`, in words."""
    try:
        return _KINDS.get(stat.S_IFMT(os.stat(path).st_mode), "a file")
    except OSError:
        return "a link that leads nowhere" if os.path.islink(path) else "nothing"


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading; anything else is refused at once, where `open` would wait for a pipe's writer.

    Raises:
        OSError: there is nothing, or it cannot be read.
        ValueError: it is no file.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(handle).st_mode
        if not stat.S_ISREG(mode):
            raise ValueError(f"it is {_KINDS.get(stat.S_IFMT(mode), 'no file')}, expected a file")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def begins(path: str | os.PathLike[str], mark: bytes) -> bool:
    """Whether a file begins with these bytes; OSError or ValueError as in `open_file`."""
    with open_file(path) as file:
        return file.read(len(mark)) == mark


def read(path: str | os.PathLike[str], *, limit: int) -> bytes:
    """The content of a file of at most `limit` bytes.

    Raises:
        OSError: there is nothing, or it cannot be read.
        ValueError: it is no file, or a larger one.
    """
    with open_file(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it is larger than {limit} bytes")
    return content


def parse_json(content: bytes) -> Any:
    """JSON from bytes; every fault of the text is a ValueError, too deep a nesting as well."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """`record` with a checksum of everything in it."""
    return {**record, "sha256": _digest(record)}


def check_seal(record: dict[str, Any]) -> None:
    """Raise ValueError unless `record` holds what `sealed` gave."""
    if record.get("sha256") != _digest(record):
        raise ValueError("it is damaged or was edited: its checksum does not match its content")


def _digest(record: dict[str, Any]) -> str:
    rest = {key: value for key, value in record.items() if key != "sha256"}
    try:
        return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def write_json(path: str | os.PathLike[str], record: dict[str, Any]) -> None:
    """Write plain data as JSON in one step."""
    text = json.dumps(record, indent=1) + "\n"
    with replacing(path) as file:
        file.write(text.encode())
