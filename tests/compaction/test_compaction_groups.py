"""Law: every topology of the table has exactly the channel groups it should, by both routes."""

from __future__ import annotations

import pytest
import torch
from compaction_nets import NETS

from gossamer.compaction import ChannelGraph


@pytest.mark.parametrize("route", ["export", "fx"])
@pytest.mark.parametrize("name", NETS)
def test_groups_of_the_table(name: str, route: str) -> None:
    net = NETS[name]
    model = net.build().double().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    graph = ChannelGraph.build(model, net.inputs(), route)

    expected = net.groups | (net.more_by_fx if route == "fx" else {})
    assert {group.name: (group.channels, group.unit) for group in graph.removable} == expected
    kinds = {group.name: group.kind for group in graph.removable if group.name in net.groups}
    assert {name: kind for name, kind in kinds.items() if kind != "inner"} == net.kinds
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    members_partition_their_axes(graph, before)


def members_partition_their_axes(graph: ChannelGraph, tensors: dict[str, torch.Tensor]) -> None:
    """Within a group every channel owns as many positions, no position twice; groups never share a position."""
    owned: dict[tuple[str, int], list[int]] = {}
    assert len({group.name for group in graph.groups}) == len(graph.groups)
    for group in graph.groups:
        for member in group.members:
            assert member.index.shape[0] == group.channels and member.index.dtype == torch.int64
            owned.setdefault((member.tensor, member.axis), []).extend(member.index.flatten().tolist())
    for (tensor, axis), positions in owned.items():
        assert len(set(positions)) == len(positions)
        assert max(positions) < tensors[tensor].shape[axis]


ROLES = {
    "sequence": {
        ("conv1.weight", 0, "writer"), ("bn1.weight", 0, "affine"), ("bn1.bias", 0, "affine"),
        ("bn1.running_mean", 0, "stat"), ("bn1.running_var", 0, "stat"), ("conv2.weight", 1, "reader"),
    },
    "flat": {("a.weight", 0, "writer"), ("a.bias", 0, "writer"), ("b.weight", 1, "reader")},
    "prelu": {
        ("a.weight", 0, "writer"), ("a.bias", 0, "writer"), ("act.weight", 0, "affine"), ("scale", 0, "affine"),
        ("shift", 1, "writer"), ("b.weight", 1, "reader"),
    },
    "transposed": {("mid.weight", 0, "writer"), ("mid.bias", 0, "writer"), ("dec.weight", 0, "reader")},
    "vit": {("attn.qkv.weight", 0, "writer"), ("attn.qkv.bias", 0, "writer"), ("attn.proj.weight", 1, "reader")},
}  # fmt: skip


@pytest.mark.parametrize("name", ROLES)
def test_roles(name: str) -> None:
    net = NETS[name]
    group = ChannelGraph.build(net.build().double(), net.inputs()).group(next(iter(net.groups)))
    assert {(member.tensor, member.axis, member.role) for member in group.members} == ROLES[name]


def test_flatten_owns_a_block_of_columns_per_channel() -> None:
    group = ChannelGraph.build(NETS["flat"].build().double(), NETS["flat"].inputs()).group("a")
    reader = next(member for member in group.members if member.role == "reader")
    assert torch.equal(reader.index, torch.arange(7 * 36).reshape(7, 36))


REASONS = {
    "layernorm": ("a", "normalises over this axis"),
    "mystery": ("a", "mystery in  has no channel rule"),
    "vit": ("patch", "normalises over this axis"),
    "encoder": ("layer.self_attn", "embed_dim = heads x head size"),
    "recurrent": ("a", "gru in gru has no channel rule"),
    "padded": ("a", "fixed number of channels"),
    "sequence": ("fc", "graph output"),
}


@pytest.mark.parametrize("name", REASONS)
def test_frozen_groups_say_why(name: str) -> None:
    net = NETS[name]
    graph = ChannelGraph.build(net.build().double(), net.inputs(), "export")
    group_name, reason = REASONS[name]
    found = [group for group in graph.groups if group.name.split("#")[0] == group_name]
    reason = reason.replace(" in  ", " ")
    assert any(reason in (group.frozen or "") for group in found), graph.explain()
    assert reason in graph.explain()
