"""python wheels/look.py DIST: is the wheel for this Python what it should be, and do its kernels run without torch?"""

from __future__ import annotations

import array
import importlib.util
import re
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = re.compile(r"gossamer-[^-]+-cp3(?P<minor>\d+)-(?P<abi>abi3|cp3\d+)-(?P<platform>.+)\.whl")


def fits(wheel: Path) -> bool:
    found, minor = WHEEL.fullmatch(wheel.name), sys.version_info.minor
    if found is None:
        raise SystemExit(f"{wheel.name} is not named as expected: {WHEEL.pattern}")
    return int(found["minor"]) <= minor if found["abi"] == "abi3" else int(found["minor"]) == minor


def look(wheel: Path) -> str:
    """What was seen, in one line; SystemExit where it is wrong."""
    if sys.platform == "linux" and "manylinux" not in wheel.name:
        raise SystemExit(f"{wheel.name} is for this Linux only: it was not repaired")
    with tempfile.TemporaryDirectory() as place, zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        for licence in ("LICENSE", "NOTICE"):
            if not any(name.endswith(f".dist-info/licenses/{licence}") for name in names):
                raise SystemExit(f"{wheel.name} does not contain its {licence}")
        libraries = [name for name in names if re.search(r"\.(so|dylib|pyd)\b", name)]
        if len(libraries) != 1 or not libraries[0].startswith("gossamer/_native."):
            raise SystemExit(f"{wheel.name} should contain one library, gossamer/_native, and has {libraries}")
        native = load(Path(archive.extract(libraries[0], place)))
        for isa in native.available_isas():
            native.set_isa(isa)
            found = tiles(native)
            if found != ([0, 0, 0, 1, 1], [2]):
                raise SystemExit(f"{wheel.name}: the kernel of {isa} found the tiles {found}")
        ran = ", ".join(native.available_isas())
        return f"{wheel.name}: Python {sys.version.split()[0]} ran {ran}; OpenMP {native.openmp_library() or 'none'}"


def load(library: Path):
    spec = importlib.util.spec_from_file_location("gossamer._native", library)
    native = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(native)
    return native


def tiles(native) -> tuple[list[int], list[int]]:
    """Offsets and indices of the tiles of 16 x 32 that hold a nonzero, in a 64 x 96 matrix with one at (40, 70)."""
    x = array.array("f", bytes(4 * 64 * 96))
    x[40 * 96 + 70] = 1.0
    flags, offsets, indices = array.array("q", [0] * 4096), array.array("q", [0] * 5), array.array("i", [0])
    at = [each.buffer_info()[0] for each in (x, flags, offsets, indices)]
    native.detect(at[0], 64, 96, 4, True, 16, 32, 1, at[1], at[2], at[3], indices.itemsize, False, 2)
    return offsets.tolist(), indices.tolist()


if __name__ == "__main__":
    wheels = [wheel for wheel in sorted(Path(sys.argv[1]).glob("*.whl")) if fits(wheel)]
    if not wheels:
        raise SystemExit(f"{sys.argv[1]} has no wheel for Python {sys.version.split()[0]}")
    for wheel in wheels:
        print(look(wheel))
