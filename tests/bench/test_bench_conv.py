"""The conv suite: its operands hold the zeros they claim, and its candidates compute the same."""

import json

import pytest
import torch

import gossamer as gs
from gossamer.bench import Settings
from gossamer.bench.conv import kernels, linear, onnx
from gossamer.bench.conv.compare import CHANNELS_LAST, CONTIGUOUS, crossover
from gossamer.bench.conv.layers import LAYERS, TOY, Layer, keep_mask, spread
from gossamer.bench.conv.passes import PASSES


def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("masks", ["random", "uneven"])
@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.9])
def test_masks_hold_the_share_of_zeros_they_claim(masks, zeros):
    keep = keep_mask(4, 64, 20, zeros, masks, generator())
    assert 1 - keep.float().mean().item() == pytest.approx(zeros, abs=0.01)
    shares = keep.float().mean((0, 2, 3))
    if zeros:
        assert (shares.std() > 0.05) == (masks == "uneven")


def test_uneven_masks_have_neighbours_that_agree():
    for masks, near in (("random", 0.5), ("uneven", 0.75)):
        keep = keep_mask(2, 32, 32, 0.5, masks, generator())
        agree = (keep[..., 1:] == keep[..., :-1]).float().mean().item()
        assert agree == pytest.approx(near, abs=0.1)


def test_shares_of_channels_have_the_mean_asked_for():
    for mean in (0.1, 0.5, 0.93):
        found = spread(mean, 256, generator())
        assert found.mean().item() == pytest.approx(mean, abs=1e-4) and found.std() > 0.05


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [([0.5, 1.5, 2.0], 0.25), ([1.5, 2.0, 3.0], 0.0), ([0.5, 0.6, 0.9], None), ([1.1, 0.5, 1.5], 0.75)],
)
def test_the_crossover_is_the_last_rise_through_one(ratios, expected):
    assert crossover(list(zip((0.0, 0.5, 1.0), ratios, strict=True))) == expected


def agree(calls):
    results = {name: torch.as_tensor(call()) for name, call in calls.items()}
    first = next(iter(results))
    for name, result in results.items():
        torch.testing.assert_close(
            result, results[first], rtol=1e-4, atol=1e-3, msg=lambda m, name=name: f"{name}: {m}"
        )
    return set(results)


@pytest.mark.parametrize("layer", [*TOY, Layer(32, 16, 9, 3, 2)], ids=lambda layer: layer.name)
@pytest.mark.parametrize("which", PASSES)
def test_candidates_of_a_layer_agree(layer, which):
    names = agree(kernels.candidates(layer, which, 2, 0.5, "random"))
    assert {CHANNELS_LAST, CONTIGUOUS} < names and any(name.startswith("ours") for name in names)
    for best in (CHANNELS_LAST, CONTIGUOUS):
        agree(kernels.converting(layer, which, 2, 0.5, best))


@pytest.mark.parametrize("which", PASSES)
def test_candidates_of_a_linear_agree(which):
    agree(linear.candidates(which, 24, 40, 32, 0.5)[0])


def test_onnxruntime_computes_the_same():
    layer = Layer(8, 16, 9, 3, 2)
    x, weight = torch.randn(2, 8, 9, 9), layer.weight()
    theirs = onnx.convolution(layer, weight)
    assert theirs is not None
    expected = torch.nn.functional.conv2d(x, weight, stride=2, padding=1)
    torch.testing.assert_close(torch.from_numpy(theirs(x)), expected, rtol=1e-4, atol=1e-4)


def test_the_table_covers_the_layers_of_the_issue():
    assert [(f.inputs, f.outputs, f.side, f.kernel) for f in LAYERS[:7]] == [
        (64, 64, 56, 3), (128, 128, 28, 3), (256, 256, 14, 3), (512, 512, 7, 3),
        (256, 64, 56, 1), (64, 256, 56, 1), (1024, 256, 14, 1),
    ]  # fmt: skip
    assert LAYERS[7].out_side == 28


def test_kernels_and_linears_run_on_toy_sizes_and_write_rows(tmp_path):
    path = tmp_path / "conv.json"
    gs.bench.run("conv", Settings(quick=True, reps=1, only=("kernels", "linear")), path)
    sections = {name: found["rows"] for name, found in json.loads(path.read_text())["sections"].items()}
    for name, curves in (("kernels", 3 * len(TOY)), ("linear", 3)):
        assert {row["pass"] for row in sections[name]} == set(PASSES)
        assert sum("crossover" in row for row in sections[name]) == curves
    half = [row for row in sections["kernels"] if row.get("zeros") == 0.5 and row["masks"] == "random"]
    assert all({"torch converting", "ours converting"} < {entry["name"] for entry in row["rows"]} for row in half)
