"""The conv suite's networks: every ReLU has the zeros that were asked for, and a step is split into its parts."""

import copy
import json

import pytest
import torch
from torch import nn

import gossamer as gs
from gossamer.bench import Settings
from gossamer.bench.conv import auto, densities, images, networks, split, training
from gossamer.bench.conv.calibrate import calibrate, reached, shifts
from gossamer.bench.conv.compare import CHANNELS_LAST, CONTIGUOUS
from gossamer.bench.conv.layers import TOY

QUICK = Settings(quick=True, reps=1)


def test_steps_of_a_layer_agree_whatever_was_chosen():
    calls = auto.candidates(TOY[0], 2, 0.5)
    expected = calls[CHANNELS_LAST]()
    for name, call in calls.items():
        for got, wanted in zip(call(), expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-3, msg=name)


def test_the_read_densities_have_the_means_that_were_published():
    vgg = densities.VGG16
    assert sum(vgg) / len(vgg) == pytest.approx(0.80, abs=0.01)
    for name, mean in (("resnet34", 0.61), ("resnet50", 0.615)):  # published over all layers
        zeros = densities.AUTHORS[name]
        assert sum(zeros) / len(zeros) == pytest.approx(mean, abs=0.04)


SMALL = {
    "vgg16_plain": {"head": (64, 64)},
    "resnet34": {"width": 16},
    "resnet50": {"width": 8},
    "fixup_resnet50": {"width": 8},
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("training_mode", [True, False])
def test_calibration_brings_every_relu_to_its_share(name, training_mode):
    x = images.photographs(8, 32)
    model = gs.models.build(name, (3, 32, 32), 10, **SMALL[name]).train(training_mode)
    wanted = densities.AUTHORS[name]
    assert len(shifts(model)) == len(wanted)
    calibrate(model, x, wanted)
    assert model.training == training_mode
    found = reached(model, x)
    # The last layers of VGG see so few pixels that shares come in steps; eval divides by n - 1 where training by n.
    early = slice(0, 8)
    assert found[early] == pytest.approx(wanted[early], abs=0.02)
    assert sum(found) / len(found) == pytest.approx(sum(wanted) / len(wanted), abs=0.05)


def test_calibration_says_when_the_shares_do_not_fit():
    with pytest.raises(ValueError, match="zeros has 3 entries; expected one for each of 14 ReLUs"):
        calibrate(gs.models.vgg16_plain((3, 32, 32), 10), torch.randn(1, 3, 32, 32), [0.5] * 3)


def test_photographs_are_real_and_normalised():
    x = images.photographs(3, 48)
    assert x.shape == (3, 3, 48, 48) and x.mean((1, 2, 3)).abs().max() < 1e-4
    neighbours = (x[..., 1:] - x[..., :-1]).square().mean()
    assert neighbours < 0.5 < 2 * x.var()  # noise would have 2


def test_a_step_is_split_without_rest():
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3))
    split.mark(net)
    x = torch.randn(4, 3, 24, 24)
    found = split.timed(lambda: net(x).sum().backward())
    assert sum(found[part] for part in split.PARTS) == pytest.approx(found["step"])
    assert found["conv"] == found["forward"] + found["backward"]
    assert all(found[part] > 0 for part in ("forward", "backward", "first", "other"))
    only = nn.Sequential(nn.Conv2d(3, 16, 3))
    split.mark(only)
    found = split.timed(lambda: only(x).sum().backward())
    assert found["conv"] == 0 < found["first"]


def test_ours_is_split_like_torchs():
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten())
    net.append(nn.Linear(16 * 20 * 20, 16))
    report = gs.nn.skip_zeros(net, skip="input")
    assert "2" in report.converted
    split.mark(net)
    x = torch.randn(4, 3, 24, 24)
    found = split.timed(lambda: net(x).sum().backward())
    assert all(found[part] > 0 for part in ("forward", "backward", "first", "other"))
    net[-1].weight.requires_grad_(False)
    net[2].requires_grad_(False)
    net[0].requires_grad_(False)
    assert split.timed(lambda: net(x).sum().backward())["backward"] == 0


def sample(**parts):
    return {**dict.fromkeys(("step", "conv", *split.PARTS), 1.0), **parts}


def test_ratios_are_over_the_faster_format_of_each_part():
    samples = {
        CHANNELS_LAST: [sample(conv=2.0, step=3.0)] * 2, f"{CHANNELS_LAST} (control)": [sample(conv=2.0, step=3.0)] * 2,
        CONTIGUOUS: [sample(conv=1.0, step=4.0)] * 2, f"{CONTIGUOUS} (control)": [sample(conv=1.0, step=4.0)] * 2,
        networks.OURS: [sample(conv=0.5, step=1.5)] * 2,
    }  # fmt: skip
    conv, step = networks.compare(samples, "conv"), networks.compare(samples, "step")
    assert conv["baseline"] == CONTIGUOUS and step["baseline"] == CHANNELS_LAST
    assert conv["rows"][-1]["ratio"] == 2.0 == step["rows"][-1]["ratio"]
    assert conv["control"]["name"] == f"{CONTIGUOUS} (control)" and conv["control"]["ratio"] == 1.0


def test_the_zeros_of_a_training_step_are_logged_for_every_convolution():
    torch.manual_seed(0)
    model = gs.models.vgg16_plain((3, 32, 32), 10)
    before = copy.deepcopy(model.state_dict())
    found = training.log_zeros(model, torch.randn(4, 3, 32, 32), torch.arange(4))
    assert [entry["layer"] for entry in found][:2] == ["features.0", "features.2"] and len(found) == 13
    assert found[0]["x"] == 0.0 and 0.3 < found[1]["x"] < 0.7 and found[3]["dy"] > 0.7
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_networks_and_training_run_on_toy_sizes_and_write_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(densities, "AUTHORS", {"resnet34": densities.AUTHORS["resnet34"]})
    monkeypatch.setattr(training, "RATE", {"resnet34": 0.005})
    path = tmp_path / "conv.json"
    gs.bench.run("conv", Settings(quick=True, reps=1, only=("auto", "networks", "training")), path)
    sections = {name: found["rows"] for name, found in json.loads(path.read_text())["sections"].items()}
    assert {row["mode"] for row in sections["networks"]} == {"training", "inference"}
    (trained,) = sections["training"]
    assert trained["loss_apart"] < 1e-3 and trained["steps"] == 2
    for found in trained["same_weights"].values():
        # A ReLU whose input is within rounding (1e-7) of zero may flip; sqrt(1e-7) of the gradient's norm goes with it.
        assert found["loss"] < 1e-5 and found["gradient"] < 3e-3
    assert trained["zeros"][0]["layers"][1]["x"] > 0
