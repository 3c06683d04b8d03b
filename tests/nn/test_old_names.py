"""Modules of `gossamer.nn` that moved into folders are found under their old names; a warning says the new one."""

from __future__ import annotations

import importlib
import pickle

import pytest
import torch

from gossamer import nn
from gossamer.nn.block_sparse.gradient_capture import GradientCapture


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("block_sparse_linear", "block_sparse.linear", "BlockSparseLinear"),
        ("block_sparse_attention", "block_sparse.attention", "AttentionIndex"),
        ("linear", "skip.linear", "Linear"),
        ("moves", "block_sparse.slot_remapping", "states_of"),
        ("skip_zeros", "skip.conversion", "unskip_zeros"),
        ("threshold_linear", "threshold.linear", "ThresholdLinear"),
        ("threshold_report", "threshold.report", "ThresholdReport"),
    ],
)
def test_an_old_module_name_finds_what_moved_and_says_where(old, new, name):
    module = importlib.import_module(f"gossamer.nn.{old}")
    with pytest.warns(DeprecationWarning, match=rf"gossamer\.nn\.{old} is gossamer\.nn\.{new} now"):
        found = getattr(module, name)
    assert found is getattr(importlib.import_module(f"gossamer.nn.{new}"), name) is getattr(nn, name, found)


def test_what_has_another_name_is_found_under_the_old_one():
    with pytest.warns(DeprecationWarning, match=r"gossamer\.nn\.moved is gossamer\.nn\.remapped now"):
        assert nn.moved is nn.remapped
    with pytest.warns(DeprecationWarning, match="gradient_capture now"):
        assert importlib.import_module("gossamer.nn.tap").Tap is GradientCapture
    with pytest.raises(AttributeError, match="has no attribute 'shifted'"):
        nn.shifted  # noqa: B018


def test_functions_that_shared_a_name_with_their_module_stay():
    assert all(callable(getattr(nn, name)) for name in ("skip_zeros", "block_sparse_attention", "threshold"))


def test_a_module_pickled_under_its_old_name_loads():
    layer = nn.BlockSparseLinear(8, 4, block=2, density=0.5, seed=0)
    stored = pickle.dumps(layer, protocol=0)  # which writes names as text
    old = stored.replace(b"gossamer.nn.block_sparse.linear", b"gossamer.nn.block_sparse_linear")
    assert old != stored
    with pytest.warns(DeprecationWarning, match=r"block_sparse\.linear"):
        loaded = pickle.loads(old)
    x = torch.randn(3, 8)
    assert torch.equal(loaded(x), layer(x))
