"""Debian's packages as a data set: the description of a package -> its tags (debtags).

The texts come from the lists that apt keeps (`/var/lib/apt/lists/*_Packages`, plain or packed); long descriptions too
where apt has fetched the translations that hold them. Packages of one source package are in one part.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from gossamer import files
from gossamer.xmc.data.dataset import DataSet
from gossamer.xmc.data.formats.lines import refuse, shown
from gossamer.xmc.data.stdlib import Example, split_by_group

LISTS = "/var/lib/apt/lists"
_MOST = 1 << 31  # bytes that a list may unpack to; Debian's are 50 MB
_LZ4 = ("/usr/lib/apt/apt-helper", "cat-file"), ("lz4", "-dc")
_UNPACK: dict[str, Callable[..., object]] = {".gz": gzip.open, ".xz": lzma.LZMAFile, ".bz2": bz2.BZ2File}


def debtags(
    source: str | os.PathLike[str] | None = None,
    *,
    min_count: int = 1,
    test_fraction: float = 0.2,
    progress: Callable[[int, int], None] | None = None,
) -> DataSet:
    """Read the packages that have tags.

    Args:
        source: a folder of lists, or one list; None for apt's own folder.
        min_count: tags that fewer training examples have are left out.
        test_fraction: share of the source packages, chosen by a hash of their names, in the test part.
        progress: is told (lists read, lists).

    Returns:
        Texts (name and description) and label sets.

    Raises:
        FileNotFoundError: there are no lists; the message says how to get them.
        ValueError: a list is damaged or names no tag.
        RuntimeError: a list is packed with lz4, and no program here unpacks it.

    >>> import tempfile, pathlib
    >>> from gossamer import xmc
    >>> with tempfile.TemporaryDirectory() as place:
    ...     rest = "Description: a game\\nTag: use::gameplaying,\\n role::program\\n\\n"
    ...     text = "".join(f"Package: p{i}\\n{rest}" for i in range(9))
    ...     _ = (pathlib.Path(place) / "x_Packages").write_text(text)
    ...     data = xmc.data.debtags(place, test_fraction=0.5)
    >>> list(data.label_texts), data.train.texts[0]
    (['role::program', 'use::gameplaying'], 'p1 a game')
    """
    place = Path(LISTS if source is None else os.path.expanduser(source))
    lists, translations = _lists(place)
    total = len(lists) + len(translations)
    long: dict[str, str] = {}
    found: dict[str, Example] = {}
    for number, path in enumerate((*translations, *lists)):
        for stanza in _stanzas(path):
            if number < len(translations):
                long[stanza.get("description-md5", "")] = stanza.get("description-en", "")
            else:
                name = stanza.get("package")
                if name is None:
                    refuse(path, None, "it has a paragraph without 'Package'; expected a list of packages")
                example = _example(name, stanza, long)
                if example is not None:
                    found[name] = example  # of two versions the later list's
        if progress is not None:
            progress(number + 1, total)
    if not found:
        raise ValueError(f"debtags: {place} names no tags; expected lists of Debian with 'Tag:' fields")
    facts: dict[str, str | int | float] = {"lists": ", ".join(path.name for path in lists), "packages": len(found)}
    examples = [found[name] for name in sorted(found)]
    return split_by_group(
        examples, "debtags", facts, where=str(place), min_count=min_count, test_fraction=test_fraction
    )


def _lists(place: Path) -> tuple[list[Path], list[Path]]:
    """Lists of packages, and of long descriptions."""
    if place.exists() and not place.is_dir():
        return [place], []
    names = sorted(os.listdir(place)) if place.is_dir() else []
    lists = [place / name for name in names if _plain(name).endswith("Packages")]
    if not lists:
        raise FileNotFoundError(
            f"debtags: there are no package lists in {shown(place)}; on Debian and Ubuntu `apt-get update` fetches "
            "them, elsewhere give a folder or a Packages file of a Debian mirror"
        )
    return lists, [place / name for name in names if _plain(name).endswith("Translation-en")]


def _plain(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return stem if suffix in (*_UNPACK, ".lz4") else name


def _example(name: str, stanza: dict[str, str], long: dict[str, str]) -> Example | None:
    tags = frozenset(tag.strip() for tag in stanza.get("tag", "").split(",") if tag.strip())
    if not tags:
        return None
    description = long.get(stanza.get("description-md5", "")) or stanza.get("description", "")
    # "source (version)" where the versions differ, nothing where the source has the package's name
    source = stanza.get("source", name).split(" ", 1)[0]
    return Example(" ".join(f"{name} {description}".split()), tags, source)


def _stanzas(path: Path) -> Iterator[dict[str, str]]:
    """The paragraphs of a list: fields in small letters, lines that continue one joined with spaces."""
    fields: dict[str, str] = {}
    last = ""
    for number, line in enumerate(_content(path).split("\n"), 1):
        if not line.strip():
            if fields:
                yield fields
            fields, last = {}, ""
        elif line[0] in " \t":
            if not last:
                refuse(path, number, "it continues a field, and there is none before it")
            fields[last] += " " + line.strip()
        else:
            name, colon, value = line.partition(":")
            if not colon:
                refuse(path, number, f"it is {shown(line)!r}; expected `Field: value`")
            last = name.strip().lower()
            fields[last] = value.strip()
    if fields:
        yield fields


def _content(path: Path) -> str:
    try:
        if path.suffix == ".lz4":
            content = _unpacked_lz4(path)
        else:
            with files.open_file(path) as raw:
                file = _UNPACK[path.suffix](raw) if path.suffix in _UNPACK else raw
                content = file.read(_MOST + 1)  # type: ignore[attr-defined]
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        refuse(path, None, f"it cannot be read: {error}")
    if len(content) > _MOST:
        refuse(path, None, f"it unpacks to more than {_MOST} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        refuse(path, content.count(b"\n", 0, error.start) + 1, "it is not UTF-8")


def _unpacked_lz4(path: Path) -> bytes:
    """What the machine's own program makes of an lz4 file; Python has none for it."""
    with files.open_file(path):
        pass  # a program would wait for a pipe
    for program, flag in _LZ4:
        found = shutil.which(program)
        if found is not None:
            # The name as a path, so that none looks like a flag.
            done = subprocess.run([found, flag, os.path.abspath(path)], capture_output=True)
            if done.returncode:
                said = done.stderr.decode("utf-8", "replace").strip().splitlines()
                raise ValueError(f"{found} says: {said[-1] if said else done.returncode}")
            return done.stdout
    raise RuntimeError(f"{shown(path)} is packed with lz4; expected apt-helper or the program lz4 to unpack it")
