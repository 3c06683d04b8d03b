"""Law: a bad argument of a product raises an error that names it, quotes it and says what was expected."""

import pytest
import torch

import gossamer as gs

S = torch.eye(4)
P = gs.Pattern.from_mask(S.bool(), (2, 2))
V, B = P.pack(S), torch.ones(4, 3)
META = P.to("meta")
T = gs.ops.transpose(P)
WIDE = gs.Pattern.full((4, 6), (2, 2))
IDS = torch.tensor([0, 1, -1, 1])
W = torch.ones(2, 4, 3)
SCALE = torch.ones(2)
PLAN = gs.planner.plan(S, B)
dsd, dds, sdd, matmul, grouped = gs.ops.dsd, gs.ops.dds, gs.ops.sdd, gs.ops.matmul, gs.ops.grouped_matmul

CALLS = {
    "pattern": (lambda: dsd(V, S, B), TypeError, "pattern must be a gossamer.Pattern, got Tensor"),
    "values type": (lambda: dsd([1.0], P, B), TypeError, "values must be a tensor, got list"),
    "values shape": (lambda: dsd(V[:1], P, B), ValueError, r"values .* = \(2, 2, 2\), got \(1, 2, 2\)"),
    "values tile": (lambda: dsd(V.view(2, 1, 4), P, B), ValueError, r"values .* got \(2, 1, 4\)"),
    "values dtype": (lambda: dsd(V.double(), P, B), TypeError, "values .* dtype torch.float32.*got torch.float64"),
    "values half": (lambda: dsd(V.half(), P, B), TypeError, "values .* dtype torch.float32.*got torch.float16"),
    "values device": (lambda: dsd(V.to("meta"), P, B), ValueError, "values must be on .* cpu, got meta"),
    "int8 alone": (lambda: dsd(V.to(torch.int8), P, B), TypeError, "scale must be given with int8 values"),
    "scale dtype": (lambda: dsd(V, P, B, scale=SCALE.double()), TypeError, "scale must be a float32 .* torch.float64"),
    "scale shape": (lambda: dsd(V, P, B, scale=SCALE[:1]), ValueError, r"scale .* = \(2,\), got \(1,\)"),
    "scale gradient": (lambda: dsd(V, P, B, scale=SCALE.clone().requires_grad_()), ValueError, "scale has no gradient"),
    "b type": (lambda: dsd(V, P, 3), TypeError, "b must be a tensor, got int"),
    "b dim": (lambda: dsd(V, P, B[0]), ValueError, r"b must have 2 dimensions .* got shape \(3,\)"),
    "b rows": (lambda: dsd(V, P, B[:3]), ValueError, r"b must have 4 rows.* got shape \(3, 3\)"),
    "b dtype": (lambda: dsd(V, P, B.int()), TypeError, "b must be float64.* got torch.int32"),
    "b device": (lambda: dsd(V, P, B.to("meta")), ValueError, "b must be on the pattern's device cpu, got meta"),
    "b layout": (lambda: dsd(V, P, B.to_sparse()), TypeError, "b must be a strided"),
    "transposed type": (
        lambda: dsd(V, P, B, transposed=P),
        TypeError,
        "transposed must come from gossamer.ops.transpose",
    ),
    "transposed of another": (
        lambda: dsd(V, P, B, transposed=gs.ops.transpose(WIDE)),
        ValueError,
        r"transposed must belong to the pattern: .*\(4, 4\).*\(6, 4\)",
    ),
    "work dtype": (lambda: dsd(V, P, B, work=torch.zeros(1, 1, 3)), TypeError, "work must be an int64 .*float32"),
    "work shape": (lambda: dsd(V, P, B, work=torch.zeros(1, 3).long()), ValueError, r"work .* got \(1, 3\)"),
    "dsd backend": (lambda: dsd(V, P, B, backend="gpu"), ValueError, "backend must be .* got 'gpu'"),
    "dsd triton": (lambda: dsd(V, P, B, backend="triton"), ValueError, "needs b on cuda, got b on cpu"),
    "dds columns": (lambda: dds(B.t()[:, :3], V, P), ValueError, r"a must have 4 columns.* got shape \(3, 3\)"),
    "dds values": (lambda: dds(B.t(), V.double(), P), TypeError, "values must have a's dtype"),
    "dds triton": (lambda: dds(B.t(), V, P, backend="triton"), ValueError, "needs a on cuda, got a on cpu"),
    "sdd inner": (lambda: sdd(S, B[:3], P), ValueError, r"b must have 4 rows, a's columns, got shape \(3, 3\)"),
    "sdd shape": (lambda: sdd(S, S, WIDE), ValueError, r"pattern must have the product's shape \(4, 4\), got \(4, 6\)"),
    "sdd dtype": (lambda: sdd(S, S.double(), P), TypeError, "b must have a's dtype torch.float32, got torch.float64"),
    "sdd a": (lambda: sdd(S.long(), S, P), TypeError, "a must be float64.* got torch.int64"),
    "sdd triton": (lambda: sdd(S, S, P, backend="triton"), ValueError, "needs a on cuda"),
    "transpose": (lambda: gs.ops.transpose(S), TypeError, "pattern must be a gossamer.Pattern, got Tensor"),
    "transpose triton": (lambda: gs.ops.transpose(P, backend="triton"), ValueError, "needs pattern on cuda"),
    "matmul type": (lambda: matmul(S, [1]), TypeError, "b must be a tensor, got list"),
    "matmul dim": (lambda: matmul(S[0], B), ValueError, r"a must have 2 or 3 dimensions, got shape \(4,\)"),
    "matmul inner": (lambda: matmul(S, B[:3]), ValueError, r"b must have 4 rows, a's columns, got shape \(3, 3\)"),
    "matmul dtype": (lambda: matmul(S, B.half()), TypeError, "b must have a's dtype torch.float32, got torch.float16"),
    "matmul int": (lambda: matmul(S.int(), B), TypeError, "a must be a strided float64.* got torch.int32"),
    "matmul layout": (lambda: matmul(S.to_sparse(), B), TypeError, "a must be a strided .*torch.sparse_coo"),
    "matmul device": (lambda: matmul(S, B.to("meta")), ValueError, "b must be on a's device cpu, got meta"),
    "matmul batch": (
        lambda: matmul(S.expand(2, 4, 4), B.expand(3, 4, 3)),
        ValueError,
        r"b must be one matrix or match the batch of a \(2, 4, 4\), got shape \(3, 4, 3\)",
    ),
    "matmul b's batch": (lambda: matmul(S, B.expand(3, 4, 3)), ValueError, "b must be one matrix or match"),
    "sparse": (lambda: matmul(S, B, sparse="c"), ValueError, "sparse must be 'a' or 'b', got 'c'"),
    "axis": (lambda: matmul(S, B, axis="x"), ValueError, "axis must be 'auto', 'm' or 'k' with sparse='a', got 'x'"),
    "axis n of a": (lambda: matmul(S, B, axis="n"), ValueError, "axis must be .* with sparse='a', got 'n'"),
    "axis m of b": (
        lambda: matmul(S, B, sparse="b", axis="m"),
        ValueError,
        "axis must be 'auto', 'k' or 'n' with sparse='b', got 'm'",
    ),
    "tile": (lambda: matmul(S, B, tile=(0, 1)), ValueError, r"tile must be .* at least 1, got \(0, 1\)"),
    "tile type": (lambda: matmul(S, B, tile=4), TypeError, "tile must be a pair of ints, got 4"),
    "tile and axis": (
        lambda: matmul(S, B, tile=(4, 2), axis="k"),
        ValueError,
        r"tile must have extent 1 along axis 'k'.*\(4, 2\)",
    ),
    "tile and batch": (
        lambda: matmul(S.expand(2, 4, 4), B.expand(2, 4, 3), tile=(3, 1)),
        ValueError,
        "tile must not straddle two matrices .* along m must divide 4, got 3",
    ),
    "index type": (lambda: matmul(S, B, index=S), TypeError, "index must be a gossamer.Pattern, got Tensor"),
    "index shape": (
        lambda: matmul(S, B, index=WIDE),
        ValueError,
        r"index must have the shape \(4, 4\) .* got \(4, 6\)",
    ),
    "index of b": (
        lambda: matmul(S, B, sparse="b", index=P),
        ValueError,
        r"index must have the shape \(4, 3\) .* b, got",
    ),
    "index device": (lambda: matmul(S, B, index=META), ValueError, "index must be on a's device cpu, got meta"),
    "index and tile": (lambda: matmul(S, B, index=P, tile=(1, 1)), ValueError, r"tile must be the index's \(2, 2\)"),
    "index and axis": (lambda: matmul(S, B, index=P, axis="m"), ValueError, r"tile must have extent 1 along axis 'm'"),
    "plan type": (lambda: matmul(S, B, plan="dense"), TypeError, "plan must come from gossamer.planner, got str"),
    "plan and tile": (lambda: matmul(S, B, tile=(1, 1), plan=PLAN), ValueError, "plan must be None beside tile, axis"),
    "matmul triton": (lambda: matmul(S, B, backend="triton"), ValueError, "needs a on cuda, got a on cpu"),
    "grouped x": (lambda: grouped(S[0], W, IDS), ValueError, "x must have 2 dimensions"),
    "grouped x dtype": (lambda: grouped(S.long(), W.long(), IDS), TypeError, "x must be float64.* got torch.int64"),
    "weights type": (lambda: grouped(S, None, IDS), TypeError, "weights must be a tensor, got NoneType"),
    "weights transposed": (
        lambda: grouped(S, W, IDS, transposed=True),
        ValueError,
        r"weights must have shape \[experts, n, 4\]",
    ),
    "weights dim": (lambda: grouped(S, W[0], IDS), ValueError, r"weights must have shape \[experts, 4, n\].*\(4, 3\)"),
    "weights inner": (lambda: grouped(S, W[:, :3], IDS), ValueError, r"weights .*\[experts, 4, n\].* got \(2, 3, 3\)"),
    "weights dtype": (lambda: grouped(S, W.double(), IDS), TypeError, "weights must have x's dtype"),
    "weights device": (
        lambda: grouped(S, W.to("meta"), IDS),
        ValueError,
        "weights must be on x's device cpu, got meta",
    ),
    "ids type": (lambda: grouped(S, W, [0, 1]), TypeError, "expert_ids must be a tensor, got list"),
    "ids dtype": (lambda: grouped(S, W, IDS.float()), TypeError, "expert_ids must be int64.* got torch.float32"),
    "ids shape": (lambda: grouped(S, W, IDS[:3]), ValueError, r"expert_ids must have shape \[4\] or .* got \(3,\)"),
    "ids too large": (lambda: grouped(S, W, IDS + 1), ValueError, "expert_ids must be below n=2, got 2"),
    "ids device": (lambda: grouped(S, W, IDS.to("meta")), ValueError, "expert_ids must be on x's device cpu, got meta"),
    "routing": (
        lambda: grouped(S, W, IDS, index=P),
        ValueError,
        r"index must be Pattern.from_ids\(expert_ids.flatten\(\), 2\)",
    ),
    "routing type": (lambda: grouped(S, W, IDS, index=IDS), TypeError, "index must be a gossamer.Pattern, got Tensor"),
    "grouped triton": (lambda: grouped(S, W, IDS, backend="triton"), ValueError, "needs x on cuda, got x on cpu"),
}


@pytest.mark.parametrize("name", CALLS)
def test_errors_name_the_argument(name):
    call, error, message = CALLS[name]
    with pytest.raises(error, match=message):
        call()


def test_keywords_stay_keywords():
    for call in (
        lambda: dsd(V, P, B, T),
        lambda: sdd(S, S, P, T),
        lambda: matmul(S, B, "a"),
        lambda: grouped(S, W, IDS, P),
    ):
        with pytest.raises(TypeError, match="positional"):
            call()


OUTSIDE = {  # offsets, indices, what is said
    "just past the end": (P.offsets, [2, 0], r"indices\[0\] is 2, expected 0 <= index < 2"),
    "far": (P.offsets, [0, 30000], r"indices\[1\] is 30000, expected 0 <= index < 2"),
    "negative": (P.offsets, [0, -1], r"indices\[1\] is -1, expected 0 <= index < 2"),
    "start": (torch.tensor([-5, 1, 2]), [0, 1], r"offsets must start at 0 .* got \[-5, 1, 2\]"),
    "late start": (torch.tensor([1, 1, 2]), [0, 1], r"offsets must start at 0 .* got \[1, 1, 2\]"),
    "fall": (torch.tensor([0, 2, 1]), [0, 1], r"offsets must .* never decrease, got \[0, 2, 1\]"),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_indices_out_of_range_are_never_addresses(name):
    offsets, indices, said = OUTSIDE[name]
    bad = gs.Pattern(offsets, torch.tensor(indices, dtype=torch.int32), P.shape, P.tile)
    for call in (
        lambda: dsd(V, bad, B),
        lambda: dds(B.t(), V, bad),
        lambda: sdd(S, S, bad),
        lambda: matmul(S, B, index=bad),
        lambda: gs.ops.gather(S, bad),
        lambda: gs.ops.scatter(V, bad),
        lambda: gs.ops.transpose(bad),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_slack_may_hold_anything():
    slack = gs.Pattern(P.offsets, torch.tensor([0, 1, -7, 30000], dtype=torch.int32), P.shape, P.tile)
    assert torch.equal(dsd(torch.cat([V, V]), slack, B), dsd(V, P, B))


def test_validate_names_the_index():
    bad = gs.Pattern(P.offsets, P.indices.clone().fill_(2), P.shape, P.tile)
    with pytest.raises(ValueError, match="indices must be below the 2 tile columns, got 2"):
        bad.validate()


def test_overlapping_tiles_are_found_by_validate():
    twice = gs.Pattern(torch.tensor([0, 2, 2]), torch.zeros(2, dtype=torch.uint16), P.shape, P.tile)
    with pytest.raises(ValueError, match="must not repeat a tile: tile row 0 lists column 0 more than once"):
        twice.validate()
