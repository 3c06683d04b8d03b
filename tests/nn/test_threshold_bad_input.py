"""What gs.nn.threshold takes as data, and what it refuses without changing the model."""

import pytest
import torch
from threshold_models import Tower, snapshot
from torch import nn

import gossamer as gs


@pytest.mark.parametrize("data", [
    {"x": torch.randn(20, 32)},
    [{"x": torch.randn(20, 32)}, torch.randn(9, 32)],
    [(torch.randn(20, 32),)],
    (x for x in [torch.randn(20, 32)]),
])  # fmt: skip
def test_data_as_it_comes(data):
    assert len(gs.nn.threshold(Tower(depth=1), data, 0.5).rows) == 3


def test_forward_says_how_to_call():
    pairs = [(torch.randn(20, 32), torch.zeros(20))]
    report = gs.nn.threshold(Tower(depth=1), pairs, 0.5, forward=lambda model, batch: model(batch[0]))
    assert len(report.rows) == 3


X = torch.randn(16, 32)


@pytest.mark.parametrize(("arguments", "error", "message"), [
    ((X, 1.0), ValueError, r"sparsity must be in \[0, 1\), got 1.0"),
    ((X, -0.1), ValueError, r"sparsity must be in \[0, 1\), got -0.1"),
    ((X, float("nan")), ValueError, r"sparsity must be in \[0, 1\), got nan"),
    ((X, "half"), TypeError, "sparsity must be a number, got str"),
    (([], 0.5), ValueError, "data is empty"),
    ((torch.randn(0, 32), 0.5), ValueError, "data never reached an nn.Linear"),
    ((7, 0.5), TypeError, "data must be a batch or an iterable of batches, got int"),
    (([X, 7], 0.5), TypeError, "data must hold tensors, tuples or mappings, got int"),
    (([X, torch.randn(3, 31)], 0.5), ValueError, r"the model does not take batch 1, a tensor \(3, 31\).*forward="),
    (([(X, X)], 0.5), ValueError, "the model does not take batch 0, a tuple of 2"),
    ((X.index_fill(1, torch.tensor(3), float("nan")), 0.5), ValueError, "'layers.0.up': .* holds NaN in batch 0"),
    ((X, 0.5, {"layers": ["nose"]}), ValueError, "layers names 'nose', but the model has only"),
    ((X, 0.5, {"layers": "head"}), TypeError, "layers must be a list of names.*got the string 'head'"),
    ((X, 0.5, {"layers": lambda name, module: False}), ValueError, "no nn.Linear to threshold among layers"),
    ((X, 0.5, {"allocation": "best"}), ValueError, "allocation must be one of .* got 'best'"),
    ((X, 0.5, {"prefill": "sparse"}), ValueError, "prefill must be one of .* got 'sparse'"),
    ((X, 0.5, {"passes": 0}), ValueError, "passes must be at least 1, got 0"),
    ((X, 0.5, {"step": 0.0}), ValueError, r"step must be in \(0, 1\], got 0.0"),
])  # fmt: skip
def test_refuses_and_changes_nothing(arguments, error, message):
    model = Tower(depth=1)
    before = snapshot(model)
    with pytest.raises(error, match=message):
        gs.nn.threshold(model, *arguments[:2], **(arguments[2] if len(arguments) > 2 else {}))
    assert snapshot(model) == before


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: gs.nn.threshold(nn.Sequential(nn.ReLU()), X, 0.5), ValueError, "model has no nn.Linear to threshold"),
    (lambda: gs.nn.threshold(len, X, 0.5), TypeError, "model must be an nn.Module, got builtin_function_or_method"),
    (lambda: gs.nn.ThresholdLinear(4, 4, threshold=-1.0), ValueError, "threshold must be finite .* got -1"),
    (lambda: gs.nn.ThresholdLinear(4, 4, prefill="x"), ValueError, "prefill must be one of"),
    (lambda: gs.nn.ThresholdLinear.convert(nn.Bilinear(2, 2, 2), 0.1), TypeError, "exactly nn.Linear, got Bilinear"),
    (lambda: gs.nn.apply_thresholds(Tower(), {}), ValueError, "thresholds is empty"),
    (lambda: gs.nn.apply_thresholds(Tower(), {"nose": 1.0}), ValueError, "names 'nose'"),
    (lambda: gs.nn.apply_thresholds(Tower(), {"head": "1"}), TypeError, r"\['head'\] must be a number, got str"),
    (lambda: gs.nn.apply_thresholds(Tower(), {"head": float("inf")}), ValueError, "must be finite .* got inf"),
])  # fmt: skip
def test_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call()
