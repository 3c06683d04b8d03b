"""What a GGUF file says it holds, read with a look at every length before it is used.

The readers that turn its numbers into weights trust the file. This one is asked first: it allocates nothing of a size
that the file names, ends at the file's end, and refuses tensors that lie outside of it.

Source: the GGUF specification, versions 2 and 3, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gossamer import files
from gossamer.extras import needed

_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_KEPT = 4096  # numbers of an array that are kept; longer ones are a vocabulary's
_DIMENSIONS = 4  # the format's limit


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies in the file: its shape, rows first, its format, its first byte and its bytes."""

    shape: tuple[int, ...]
    format: str
    start: int
    bytes: int


@dataclass(frozen=True)
class Header:
    """The metadata (numbers, strings, short arrays of numbers; of other arrays their length), and the tensors."""

    metadata: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])

    def said(self, key: str) -> Any:
        """The value of a key of this architecture, or None."""
        return self.metadata.get(f"{self.architecture}.{key}")


def read(path: str | os.PathLike[str]) -> Header:
    """The header of a GGUF file.

    Raises:
        OSError: it cannot be read. ImportError: the package gguf is not installed.
        ValueError: it is no GGUF file, is cut off, is one of several parts, or contradicts itself.
    """
    formats = _formats()
    with files.open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise ValueError("it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                return _Reader(content, size, formats).header()
            except (struct.error, IndexError):
                raise ValueError(f"it is cut off after {size} bytes") from None


def _formats() -> dict[int, tuple[str, int, int]]:
    """number of a tensor's format -> its name, elements of a block, bytes of a block."""
    constants = needed("gguf", "GGUF files need gguf", "serving").constants
    return {int(kind): (kind.name, *sizes) for kind, sizes in constants.GGML_QUANT_SIZES.items()}


class _Reader:
    """Reads forwards; `struct.error` says that the file ended."""

    def __init__(self, content: mmap.mmap, size: int, formats: dict[int, tuple[str, int, int]]) -> None:
        self.content, self.size, self.place, self.formats = content, size, 0, formats

    def header(self) -> Header:
        if self.content[:4] != b"GGUF":
            raise ValueError("it is no GGUF file: it does not begin with GGUF")
        self.place = 4
        version = self.number("<I")
        if version not in (2, 3):
            order = (
                " (of the other byte order)" if int.from_bytes(version.to_bytes(4, "big"), "little") in (2, 3) else ""
            )
            raise ValueError(f"its version is {version}{order}, expected 2 or 3")
        tensors, pairs = self.number("<Q"), self.number("<Q")
        metadata = self.named(pairs, "key", self.value)
        if not isinstance(metadata.get("general.architecture"), str):
            raise ValueError("it names no general.architecture")
        if (parts := metadata.get("split.count", 1)) not in (0, 1):
            raise ValueError(f"it is one of {parts} parts; expected one file: join them with llama-gguf-split --merge")
        found = self.named(tensors, "tensor", self.tensor)
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"its general.alignment is {alignment!r}, expected a power of two")
        begin = -(-self.place // alignment) * alignment
        return Header(metadata, {name: self.placed(name, begin, *entry) for name, entry in found.items()})

    def number(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self.content, self.place)
        self.place += struct.calcsize(form)
        return value

    def skip(self, count: int) -> int:
        """Go on by `count` bytes; where they began."""
        begin = self.place
        if count > self.size - begin:
            raise struct.error
        self.place += count
        return begin

    def string(self) -> str:
        begin = self.skip(self.number("<Q"))
        try:
            return self.content[begin : self.place].decode()
        except UnicodeDecodeError:
            raise ValueError(f"the string at byte {begin} is no UTF-8") from None

    def named(self, count: int, what: str, read: Callable[[], Any]) -> dict[str, Any]:
        """`count` names, each with what `read` reads after it."""
        found: dict[str, Any] = {}
        for _ in range(count):
            name = self.string()
            if not name or name in found:
                raise ValueError(f"it has a {what} {'twice: ' + repr(name[:80]) if name else 'without a name'}")
            found[name] = read()
        return found

    def value(self) -> Any:
        kind = self.number("<I")
        if kind == _STRING:
            return self.string()
        return self.array() if kind == _ARRAY else self.number(self.form(kind))

    def form(self, kind: int) -> str:
        if kind not in _NUMBERS:
            raise ValueError(f"a value before byte {self.place} is of the unknown kind {kind}")
        return _NUMBERS[kind]

    def array(self) -> tuple[Any, ...] | int:
        """The numbers of a short array; the length of any other."""
        kind, count = self.number("<I"), self.number("<Q")
        if kind == _STRING:
            for _ in range(count):
                self.skip(self.number("<Q"))
            return int(count)
        form = self.form(kind)
        begin = self.skip(count * struct.calcsize(form))
        return struct.unpack_from(f"<{count}{form[1]}", self.content, begin) if count <= _KEPT else int(count)

    def tensor(self) -> tuple[tuple[int, ...], int, int]:
        dimensions = self.number("<I")
        if not 1 <= dimensions <= _DIMENSIONS:
            raise ValueError(
                f"a tensor before byte {self.place} has {dimensions} dimensions, expected 1 to {_DIMENSIONS}"
            )
        shape = tuple(self.number("<Q") for _ in range(dimensions))
        return shape[::-1], self.number("<I"), self.number("<Q")

    def placed(self, name: str, begin: int, shape: tuple[int, ...], kind: int, offset: int) -> Tensor:
        if kind not in self.formats:
            raise ValueError(f"its tensor {name!r} is of the unknown format {kind}")
        form, block, width = self.formats[kind]
        elements = math.prod(shape)
        if elements == 0 or shape[-1] % block:
            raise ValueError(f"its tensor {name!r} of shape {list(shape)} does not fit the blocks of {form} ({block})")
        start, count = begin + offset, elements // block * width
        if start + count > self.size:
            raise ValueError(f"it is cut off: its tensor {name!r} ends at byte {start + count} of {self.size}")
        return Tensor(shape, form, start, count)
