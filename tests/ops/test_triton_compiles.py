"""Law: every Triton kernel compiles ahead of time for Hopper, without a GPU, and spills no register."""

import itertools
import re

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed: pip install triton")
from gossamer.kernels.triton import detect, fan_in_mm, page_attention, rows  # noqa: E402

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


CLASSIFIER = {
    "gather_logits": "fan_in_gather", "spread": "fan_in_gather", "gather_update": "fan_in_gather",
    "densify": "fan_in_dense", "dense_logits": "fan_in_dense", "dense_spread": "fan_in_dense",
    "dense_sample": "fan_in_dense", "dense_update": "fan_in_dense", "best_of_labels": "fan_in_topk",
}  # fmt: skip


def classifiers():
    """(kernel, constexprs, pointer types) of the step of a classifier by both routes, and of its best labels."""
    rule = dict.fromkeys(("rate", "decay", "beta1", "gain1", "beta2", "gain2", "root", "eps", "scale"), "fp32")
    states = dict.fromkeys(("value_first", "value_second", "bias_first", "bias_second"), "*fp32")
    work = {
        **dict.fromkeys(("xt", "g", "partial", "tile", "bias"), "*fp32"), "losses": "*fp64", "mask": "*i8",
        "keys": "*i64", "broken": "*i32",
    }  # fmt: skip
    rules = ("*fp32", "bce", "adam", "ieee"), ("*bf16", "hinge", "sgd", "tf32")
    sizes = (1, "*i32", 128), (1, "*u16", 16), (64, "*u16", 128)
    for kernel, (kind, loss, optimizer, precision), (group, index, batch) in itertools.product(
        CLASSIFIER, rules, sizes
    ):
        constants = fan_in_blocks(kernel, batch, group)
        if constants is None:
            continue
        constants |= {"LOSS": loss, "OPTIMIZER": optimizer, "RESTS": optimizer == "sgd", "PRECISION": precision}
        constants |= dict.fromkeys(states) if optimizer == "sgd" else {}
        constants |= {"mask": None} if group > 1 else {}
        pointers = {**rule, **states, **work, "values": kind, "indices": index}
        marks = () if (kind, batch, group) == ("*bf16", 128, 1) else pytest.mark.slow
        yield pytest.param(kernel, constants, pointers, id=f"{kernel}-{kind}-{index}-{group}", marks=marks)


def fan_in_blocks(kernel, batch, group):
    """The blocks that a launch chooses; None where a kernel takes no groups."""
    if CLASSIFIER[kernel] == "fan_in_dense":
        dense = {"BM": 64, "BN": min(batch, 64), "BK": min(batch, 32)}
        some = {
            "densify": {"BR": 128}, "dense_spread": dense | {"BK": 16}, "dense_sample": dense | {"BN": 64},
            "dense_update": {"BR": 32, "BB": 32, "BK": 32},
        }  # fmt: skip
        return some.get(kernel, dense) if group == 1 else None
    if kernel == "spread":
        return {"BB": 32, "GROUP": group, "MEMBERS": min(group, 32)}
    bb = min(batch, 32 if group > 1 or kernel == "best_of_labels" else 128)
    return {
        "BR": 2048 // bb if group == 1 else group,
        "BB": bb,
        "BK": 16 if group > 1 else 8,
        "GROUP": group,
        "BEST": 5,
    }


def pages():
    """(module, kernel, constexprs, pointer types) of attention over pages: floats, codes of a byte and of four bits."""
    requests = {"offsets": "*i64", "lengths": "*i64", "table": "*i32", "heads": "*i64", "sources": "*i64"}
    summaries = {"extremes": "*bf16", "moments": "*bf16", "summaries": "*bf16", "scores": "*fp32", "form": "*fp32"}
    blocks = dict.fromkeys(("block_request", "block_number", "block_page", "list_pages"), "*i32")
    lists = {"list_offsets": "*i64", "list_rows": "*i64"}
    plain = dict.fromkeys(("q", "out", "lse", "sums", "new_keys", "new_values"), "*fp32")
    sizes = {"GROUP": 4, "W": 128, "WIDE": 128, "P": 64, "PRECISION": "tf32", "DIVIDED": True}
    kept = {"EXTREMES": 4, "MOMENTS": 1, "STRETCHES": 4, "BP": 16}
    codes = {"planes": "*u8", "scales": "*bf16", "chosen": "*i32"}
    numbers = {"window": "i64", "sink": "i64", "scale": "fp32", "cap": "fp32", "list_tokens": "i64"}
    for stored, kind in ((0, "*bf16"), (1, "*u8"), (2, "*u8")):
        scales = dict.fromkeys(("key_scales", "value_scales"), "*bf16")
        pointers = (
            requests | summaries | codes | blocks | lists | plain | numbers | scales | {"keys": kind, "values": kind}
        )
        rows = page_attention.rows_of(stored, "tf32")
        constants = {**sizes, **kept, "WAY": stored, "M": rows, "BT": rows // 4}
        yield "page_attention", "attend", constants, pointers
        yield "page_append", "append_pages", constants, pointers
        yield "page_append", "summarize_pages", {**constants, "BD": 32}, pointers
        if not stored:
            yield "page_scores", "score_pages", {**constants, "N": 256, "WIDE": 256}, pointers
            for planes in (1, 2):
                yield "page_append", "code_keys", {**constants, "E": 64, "PLANES": planes}, pointers
                yield "page_key_scores", "score_keys", {**constants, "E": 64, "PLANES": planes}, pointers
            for members in (1, 4):
                chosen = {"MEMBERS": members, "OF_HEAD": 4 // members, "BLOCK": 2048}
                yield "page_choose", "choose_pages", chosen, pointers
            yield "page_attention", "add_shares", constants, pointers


def rewirings():
    """(module, kernel, constexprs, pointer types) of rewiring rows of fixed fan-in."""
    pointers = {"first": "*fp32", "second": "*fp32", "ages": "*u8", "keys": "*i64", "counts": "*i64", "init": "fp32"}
    for kind, index, group, slots, avoid in (
        ("*fp32", "*u16", 1, 64, True), ("*bf16", "*i32", 16, 256, False), ("*fp32", "*i32", 1, 1024, False),
        ("*bf16", "*u16", 64, 128, True),
    ):  # fmt: skip
        constants = {"GROUP": group, "SLOTS": slots, "AVOID": avoid, "STARTS": not avoid}
        yield "fan_in_rewire", "rewire_rows", constants, pointers | {"values": kind, "indices": index}


EVERY = [*moves(), *finds(), *fan_in(), *rewirings(), *pages()]


# On every run 16-bit words and float32, of four kinds of tiles; others and whole sizes with the slow tests.
FAST_TILES = ((1, 1), (3, 5), (64, 64), (1, 4096))


def case_marks(constants, pointers, whole):
    fast = (
        (
            not {"*i16", "*fp32"}.isdisjoint((pointers.get("x"), pointers.get("values")))
            and ("BM" not in constants or (constants["BM"], constants["BN"]) in FAST_TILES)
        )
        or "starts" in pointers
        or "q" in pointers
    )
    return () if fast and not whole else pytest.mark.slow


@pytest.mark.parametrize(
    ("module", "kernel", "constants", "pointers", "whole"),
    [pytest.param(*each, whole, marks=case_marks(*each[2:], whole)) for each in EVERY for whole in (False, True)],
)
def test_compiles_for_hopper_without_spills(module, kernel, constants, pointers, whole, build, assert_no_spills):
    compiled = build(module, kernel, constants, pointers, SIZES if whole else ())
    assert compiled.asm["cubin"]
    assert_no_spills(compiled)


@pytest.mark.parametrize(("kernel", "constants", "pointers"), classifiers())
def test_classifiers_compile_for_hopper_without_spills(kernel, constants, pointers, build, assert_no_spills):
    """The products of dense tiles are of tensor cores, if float32 may be rounded to TF32."""
    warps = {"num_warps": 1} if kernel == "spread" else {}
    compiled = build(CLASSIFIER[kernel], kernel, constants, pointers, **warps)
    assert_no_spills(compiled)
    dense = kernel in ("dense_logits", "dense_spread", "dense_sample") or (
        constants.get("GROUP", 1) > 1 and kernel != "spread"
    )
    assert ("mma" in compiled.asm["ptx"]) == (dense and constants["PRECISION"] == "tf32")


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
