"""Law: every Triton kernel compiles ahead of time for Hopper, without a GPU, and spills no register."""

import itertools
import re

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed: pip install gossamer[triton]")
from gossamer.kernels.triton import detect, fan_in_mm, rows  # noqa: E402

TILES = [(1, 1), (1, 32), (32, 1), (8, 8), (3, 5), (64, 64), (1, 4096)]
WORDS = ["*u8", "*i16", "*i32", "*i64"]
INDICES = ["*u16", "*i32"]
SIZES = dict.fromkeys(("rows", "cols", "tile_rows", "tile_cols", "blocks", "capacity"), "i32")


def moves():
    """(module, kernel, constexprs, pointer types) of gather and scatter."""
    for (bm, bn), word, index in itertools.product(TILES, WORDS, INDICES):
        slots, elements = rows.cut(bm, bn)
        constants = {"BM": bm, "BN": bn, "SLOTS": slots, "ELEMENTS": elements, "STEPS": 12}
        yield "gather", "gather_tiles", constants, {"x": word, "values": word, "indices": index, "offsets": "*i64"}
        yield (
            "scatter",
            "scatter_tiles",
            constants,
            {"values": word, "dense": word, "indices": index, "offsets": "*i64"},
        )


def finds():
    """(module, kernel, constexprs, pointer types) of detect."""
    for (bm, bn), word, index, ordered in itertools.product(TILES, WORDS, INDICES, (True, False)):
        group, tiles, chunk = detect.cut(4096, 4096, bn)
        constants = {
            "BM": bm, "BN": bn, "ROWS": group, "TILES": tiles, "CHUNK": chunk, "SIGNED_ZERO": word != "*u8",
            "ORDERED": ordered,
        }  # fmt: skip
        yield "detect", "find_tiles", constants, {"x": word, "flags": "*i8", "counts": "*i32", "bucket": index}
    for index, tile_cols in itertools.product(INDICES, (5, 4096)):
        group, tiles, _ = detect.cut(4096, tile_cols, 1)
        constants = {"ROWS": group, "TILES": tiles}
        pointers = {"flags": "*i8", "starts": "*i64", "bucket": index, "offsets": "*i64", "indices": index}
        yield "detect", "place_flagged", constants, pointers
        yield "detect", "place_bucket", constants, pointers


def fan_in():
    """(module, kernel, constexprs, pointer types) of the fan-in product."""
    for kind, index, batch in itertools.product(("*fp32", "*bf16", "*fp64"), INDICES, (16, 128)):
        constants = {"BR": fan_in_mm.ELEMENTS // batch, "BB": batch}
        yield "fan_in_mm", "add_columns", constants, {"x": kind, "values": kind, "y": kind, "indices": index}


EVERY = [*moves(), *finds(), *fan_in()]


# 16-bit words and float32 on every run; other words and whole sizes with the slow tests.
def case_marks(pointers, whole):
    fast = not {"*i16", "*fp32"}.isdisjoint((pointers.get("x"), pointers.get("values"))) or "starts" in pointers
    return () if fast and not whole else pytest.mark.slow


@pytest.mark.parametrize(
    ("module", "kernel", "constants", "pointers", "whole"),
    [pytest.param(*each, whole, marks=case_marks(each[3], whole)) for each in EVERY for whole in (False, True)],
)
def test_compiles_for_hopper_without_spills(module, kernel, constants, pointers, whole, build, assert_no_spills):
    compiled = build(module, kernel, constants, pointers, SIZES if whole else ())
    assert compiled.asm["cubin"]
    assert_no_spills(compiled)


@pytest.mark.parametrize("kernel", ["gather_tiles", "scatter_tiles"])
def test_addresses_are_computed_in_64_bits(kernel, build):
    """A matrix of 2^31 elements and more: no 32-bit product of a row and a width reaches an address."""
    constants = {"BM": 64, "BN": 64, "SLOTS": 1, "ELEMENTS": rows.WORK, "STEPS": 12}
    pointers = {"x": "*i16", "values": "*i16", "dense": "*i16", "indices": "*u16", "offsets": "*i64"}
    ttir = build(kernel.split("_")[0], kernel, constants, pointers).asm["ttir"]
    products = re.findall(r"arith\.muli .* : (\S+)", ttir)
    wide = [kind for kind in products if "i64" in kind]
    # The one narrow product is program_id(1) * ELEMENTS, which numbers the elements of one tile.
    assert len(wide) >= 3 and len(products) - len(wide) <= 1, products


def test_the_interpreter_is_off_here():
    assert type(rows.row_of).__name__ == "JITFunction"
