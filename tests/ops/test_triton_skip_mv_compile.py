"""Law: the Triton kernels of skip_mv and gated_mv compile ahead of time for Hopper and spill no register.

Weights arrive through asynchronous copies, several blocks ahead, of 16 bytes where a thread has as many of a block.
"""

import itertools
import re

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: pip install triton")

from gossamer.kernels.triton import skip_mv as kernels

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}
SIZES = ("n", "inner", "columns", "rows")
slow = pytest.mark.slow


def cases():
    """(dtype of x, dtype of w, rows of x that share a list)"""
    for dtype, batch in itertools.product(NAMES, (1, 2, 4, 8)):
        fast = (dtype, batch) in ((torch.bfloat16, 1), (torch.float32, 8))
        yield pytest.param(dtype, dtype, batch, marks=() if fast else slow)
    yield pytest.param(torch.float32, torch.bfloat16, 1, marks=slow)


def pointers(x, w):
    kinds = {"x": x, "w": w, "bias": x, "gate": x, "y": x, "partials": kernels.wide(x)}
    listed = dict.fromkeys(("listed", "found", "used"), "*i32")
    return {name: f"*{NAMES[kind]}" for name, kind in kinds.items()} | listed | {"counts": "*i64", "threshold": "fp32"}


@pytest.mark.parametrize(("x", "w", "batch"), list(cases()))
def test_compiles_for_hopper(x, w, batch, build, assert_no_spills, monkeypatch):
    import triton.language as tl

    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    shared = {"BATCH": batch, "SEGMENT": kernels.SEGMENT}
    assert_no_spills(build("skip_mv", "list_rows", shared, pointers(x, w), SIZES, num_warps=8))
    constants = {"BATCH": batch, "BN": 256, "LISTS": 256}
    assert_no_spills(build("skip_mv", "add_segments", constants, pointers(x, w), SIZES, num_warps=4))

    kind = tl.float64 if x == torch.float64 else tl.float32
    for kernel, choice in (
        ("add_listed", next(kernels.of_columns(batch, 4096, x))),
        ("gate_listed", next(kernels.of_rows(batch, x))),
    ):
        warps = choice.pop("num_warps")
        constants = {**shared, "BM": kernels.ROWS, **choice, "WIDE": kind}
        compiled = build("skip_mv", kernel, constants, pointers(x, w), SIZES, num_warps=warps)
        assert_no_spills(compiled)
        block = choice["BK"] * choice.get("BN", kernels.ROWS) * w.itemsize
        size = min(block // (32 * warps), 16)
        assert re.search(rf"cp\.async\.c[ag]\.shared\.global.*, {size:#x},", compiled.asm["ptx"]), kernel
        assert compiled.metadata.shared >= 2 * block
