"""Law: every Triton product compiles ahead of time for Hopper, spills no register, and multiplies where it should.

16-bit numbers in blocks of 64 rows and more: wgmma; in fewer rows: mma; float32 as IEEE has it: FMA, no tensor core.
Operands come in through 16-byte asynchronous copies, in as many buffers as the pipeline has (but where b is read across
its memory in pieces shorter than that, and in `dsd_joined`, which seldom multiplies).
"""

import itertools
import re

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: pip install triton")
from gossamer.kernels.triton.dsd import JOINED
from gossamer.kernels.triton.launch import blocks

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}
SIZES = ("rows", "inner", "cols", "n", "k", "per_matrix", "a_row", "a_col", "b_matrix", "b_row", "b_col", "c_row",
         "c_col", "x_row", "x_col", "dy_row", "dy_col", "w_group", "w_row", "w_col", "y_row")  # fmt: skip
SHORT, LONG = torch.bfloat16, torch.float32
TILES = [(1, 1), (1, 64), (32, 1), (4, 4), (16, 16), (3, 5), (64, 64), (128, 128)]
slow = pytest.mark.slow


def dsd(kernel, tile, dtype, *, index="*u16", order=None, scale=None, stored=None, columns=False, place=False):
    constants = {
        "TM": tile[0], "TK": tile[1], "TRANSPOSED": order is not None, "IN_PLACE": place, "PARTIALS": 2,
        "order": order, "scale": scale, "b_row" if columns else "b_col": 1, "c_row" if columns else "c_col": 1,
    }  # fmt: skip
    pointers = {
        "a": stored or f"*{NAMES[dtype]}", "offsets": "*i64", "indices": index, "order": order, "scale": scale,
        "work": "*i64", "ends": "*i32", "places": "*i32", "partials": "*fp64" if dtype == torch.float64 else "*fp32",
    }  # fmt: skip
    constants = {name: value for name, value in constants.items() if name not in ("order", "scale") or value is None}
    joined = kernel == "dsd_joined"
    deep, apart = order is not None or index == "*i32", columns and tile[1] * dtype.itemsize % 16 > 0
    size = (min(tile[0], JOINED), JOINED) if joined else (min(tile[0], 64), 64) if apart else (tile[0], 4096)
    return "dsd", kernel, size, dtype, constants, pointers, deep, apart or joined


def panels(module, kernel, rows, dtype, constants, deep=False):
    pointers = {"offsets": "*i64", "indices": "*u16", "source": "*i64", "target": "*i64"}
    apart = "b_col" in constants and constants.get("TN", 16) * dtype.itemsize % 16 > 0
    size = (min(rows, 64), 64) if apart else (rows, 4096)
    constants = {"STEPS": 9, "BATCH_STEPS": 2, **constants}
    return module, kernel, size, dtype, constants, pointers, deep, apart


def products():
    """(what, marks)"""
    for tile, dtype in itertools.product(TILES, (SHORT, LONG, torch.float16, torch.float64)):
        fast = (dtype == SHORT and tile in ((16, 16), (64, 64))) or (dtype == LONG and tile in ((1, 1), (16, 16)))
        yield dsd("dsd_rows", tile, dtype), () if fast else slow
        yield dsd("dsd_rows", tile, dtype, order="*i32", columns=True), () if fast and tile == (16, 16) else slow
        yield dsd("dsd_rows", tile, dtype, place=True), () if tile == (32, 1) and dtype == SHORT else slow
        yield dsd("dsd_rows", tile, dtype, index="*i32"), slow
        yield dsd("dsd_rows", tile, dtype, scale="*fp32", stored="*i8"), () if fast and dtype == LONG else slow
        for kernel in ("dsd_parts", "dsd_joined"):
            yield dsd(kernel, tile, dtype), () if fast and tile in ((1, 1), (64, 64)) else slow
        for a, b in (("a_col", "b_col"), ("a_col", "b_row"), ("a_row", "b_col")):
            ones = {"TM": tile[0], "TN": tile[1], a: 1, b: 1}
            yield panels("sdd", "sdd_blocks", tile[0], dtype, ones), () if fast and b == "b_row" else slow
    for rows, dtype in itertools.product((16, 64, 128), (SHORT, LONG, torch.float16, torch.float64)):
        mark = () if rows == 128 and dtype == SHORT else slow
        yield panels("gather_mm", "listed_rows", rows, dtype, {"b_col": 1, "c_col": 1}), mark
        for w in ("w_col", "w_row"):
            yield panels("grouped", "grouped_rows", rows, dtype, {"x_col": 1, w: 1}), mark
            yield (
                panels("grouped", "grouped_rows", rows, dtype, {"x_col": 1, w: 1, "source": None, "target": None}),
                slow,
            )
        yield panels("grouped", "grouped_squares", rows, dtype, {"x_col": 1, "dy_col": 1}, deep=True), mark


EVERY = [pytest.param(*what, marks=marks) for what, marks in products()]


@pytest.mark.parametrize(("module", "kernel", "size", "dtype", "constants", "pointers", "deep", "apart"), EVERY)
def test_compiles_for_hopper(
    module, kernel, size, dtype, constants, pointers, deep, apart, build, assert_no_spills, monkeypatch
):
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    choice = next(blocks(*size, torch.empty(0, dtype=dtype), deep=deep))
    options = {name: choice.pop(name) for name in ("num_warps", "num_stages")}
    floats = dict.fromkeys(("a", "b", "c", "x", "y", "dy", "dw", "values", "weights"), f"*{NAMES[dtype]}")
    constants = {"PRECISION": "ieee", **choice, **constants}
    compiled = build(module, kernel, constants, {**floats, **pointers}, SIZES, **options)
    assert_no_spills(compiled)

    ptx = compiled.asm["ptx"]
    has = {name: name in ptx for name in ("wgmma.mma_async", "mma.sync")}
    short = dtype.itemsize == 2 and choice["BM"] > 1
    assert has == {"wgmma.mma_async": short and choice["BM"] >= 64, "mma.sync": short and choice["BM"] < 64}
    if choice["BM"] > 1 and not apart:
        assert re.search(r"cp\.async\.cg\.shared\.global.*, 0x10", ptx), "operands do not arrive 16 bytes at a time"
        right = choice["BK"] * choice["BN"] * dtype.itemsize
        buffers = 3 if short else 1
        assert compiled.metadata.shared >= buffers * right, f"{compiled.metadata.shared} bytes for blocks of {right}"
