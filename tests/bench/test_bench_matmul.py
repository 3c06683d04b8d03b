"""The matmul suite: its summaries are right, its candidates compute the same thing, and it runs on toy sizes."""

import json

import pytest
import torch

import gossamer as gs
from gossamer.bench import Settings
from gossamer.bench.matmul import detection, experts, explain, fit, gradients, products, regret, row_axis, workloads
from gossamer.bench.matmul.costs import costs
from gossamer.bench.matmul.operands import draw, normal
from gossamer.bench.matmul.runtime import candidates

QUICK = Settings(quick=True, reps=1)


def row(size, block, density, ratio):
    return {"size": size, "tile": [block, block], "density": density, "rows": [{"name": "dynamic", "ratio": ratio}]}


def test_the_power_law_of_rows_that_follow_one_is_found():
    law = [
        row(size, block, density, 0.01 * size**0.6 * density**-0.5 * block**0.4)
        for size in (512, 2048) for block in (1, 16) for density in (0.5, 0.1)
    ]  # fmt: skip
    found = fit.power_law([*law, {**law[0], "tile": [32, 1]}])
    assert found["c"] == pytest.approx(0.01)
    assert [found[axis] for axis in fit.AXES] == pytest.approx([0.6, -0.5, 0.4])
    assert found["within"] == pytest.approx(1.0)


def test_an_axis_that_does_not_vary_gets_no_exponent_and_the_best_n_counts():
    rows = [row(512, 4, 0.5, 1.0), row(512, 4, 0.5, 2.0), row(512, 4, 0.125, 8.0)]
    found = fit.power_law(rows)
    assert set(found) == {"c", "density", "within"}
    assert found["density"] == pytest.approx(-1.0)


@pytest.mark.parametrize(
    ("ratios", "expected"), [([4.0, 2.0, 0.0], 0.75), ([3.0, 2.0, 1.5], 1.0), ([0.9, 0.5, 0.1], None)]
)
def test_the_crossing_lies_where_the_line_between_two_points_is_one(ratios, expected):
    points = [row(1, 1, density, ratio) for density, ratio in zip((0.25, 0.5, 1.0), ratios, strict=True)]
    assert fit.crossing(points) == expected


def agree(calls):
    """Every candidate gives the numbers of the first."""
    results = {name: call() for name, call in calls.items()}
    first = next(iter(results))
    for name, result in results.items():
        for got, expected in zip(
            result if isinstance(result, tuple) else (result,),
            results[first] if isinstance(results[first], tuple) else (results[first],),
            strict=True,
        ):
            torch.testing.assert_close(torch.as_tensor(got), expected, rtol=1e-4, atol=1e-3, msg=f"{name} and {first}")


@pytest.mark.parametrize("tile", [(1, 1), (16, 16), (32, 1)], ids=str)
def test_products_agree(tile):
    dense, pattern = draw(96, 96, tile, 0.3, QUICK)
    agree(products._candidates(dense, pattern, normal(96, 40, QUICK)))


def test_products_with_zeros_found_at_run_time_agree():
    for tile in ((1, 96), (32, 1)):
        a, _ = draw(96, 96, tile, 0.3, QUICK)
        b = normal(96, 40, QUICK)
        agree({**candidates(a, b, tile), "torch, rows selected": lambda a=a, b=b: row_axis._torch_rows(a, b)})


def test_both_gradients_agree_with_the_dense_ones():
    sides = gradients._sides(16, 0.25, QUICK)
    agree(sides["dense operand"][0])
    _, pattern = draw(256, 256, (16, 16), 0.25, QUICK)
    calls = sides["values"][0]
    torch.testing.assert_close(calls["ours"](), pattern.pack(calls["dense"]()), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("routing", ["zipf", "uniform", "all to one"])
def test_experts_agree(routing):
    torch.manual_seed(0)
    # A loop has one gradient for each expert, the others one for all.
    agree({name: lambda call=call: stacked(call()) for name, call in experts.experts(QUICK, routing)[0].items()})


def stacked(grads):
    x, *weights = grads
    half = len(weights) // 2
    return grads if half == 1 else (x, torch.stack(weights[:half]), torch.stack(weights[half:]))


@pytest.mark.parametrize(
    ("build", "setting"),
    [(workloads.feed_forward, 0.9), (workloads.padded_batch, 1.0), (workloads.attention, 64)],
    ids=["feed_forward", "padded_batch", "attention"],
)
def test_workloads_agree(build, setting):
    torch.manual_seed(0)
    agree(build(QUICK, setting)[0])


def test_zipf_gives_every_token_an_expert_and_the_first_the_most():
    ids = experts.zipf(4096, 64)
    counts = ids.bincount(minlength=64)
    assert counts.sum() == 4096 and counts[0] == counts.max() and counts[0] / counts[1] == pytest.approx(2, rel=0.05)


def test_the_suite_runs_on_toy_sizes_and_writes_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(detection, "product", lambda *_: [((16, 16), 0.5)])
    path = tmp_path / "matmul.json"
    gs.bench.run("matmul", Settings(quick=True, reps=1, only=("detection",)), path)
    (found,) = json.loads(path.read_text())["sections"]["detection"]["rows"]
    assert found["tile"] == [16, 16] and found["share"]["dense product"] == 1.0


def test_the_planner_is_tuned_here_and_its_choices_are_compared(monkeypatch):
    known = costs(QUICK)
    assert known.measured is not None and known is costs(QUICK)
    (said,) = explain.rows(QUICK)
    assert said["text"][0] == "[2048, 1024] @ [1024, 512], zeros in a, float32" and "<-" in "\n".join(said["text"])
    *cases, total = regret.rows(QUICK)
    assert {case["mask"] for case in cases} >= {"no zeros", "nothing", "independent 0.1"}
    assert total["max"] == max(case["regret"] for case in cases) >= total["median"] >= 1.0
