"""Law: a compact model is an ordinary module: it exports, compiles to ONNX, pickles and scripts its state as one."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from compaction_nets import NETS

import gossamer as gs
from gossamer.compaction import ChannelGraph, zero_channels_


def smaller(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    net = NETS[name]
    model = net.build().eval()
    x = net.inputs().float()
    graph = ChannelGraph.build(model, x)
    zero_channels_(model, graph, {g.name: torch.arange(g.channels) % 3 != 1 for g in graph.removable})
    return gs.compact(model, x, round_to=None, check_latency=False).model, x


@pytest.mark.parametrize("name", ["residual", "grouped 4", "vit", "shuffle"])
def test_torch_export(name: str) -> None:
    model, x = smaller(name)
    program = torch.export.export(model, (x,))
    assert torch.equal(program.module()(x), model(x))
    assert {key: value.shape for key, value in program.state_dict.items()} == {
        key: value.shape for key, value in model.state_dict().items()
    }


@pytest.mark.parametrize("name", ["residual", "vit"])
def test_onnx_runtime_agrees(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, x = smaller(name)
    path = tmp_path / "small.onnx"
    torch.onnx.export(model, (x,), path, dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    expected = model(x).detach()
    assert (torch.from_numpy(found) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_pickle_keeps_the_shapes() -> None:
    model, x = smaller("residual")
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False)
    assert torch.equal(again(x), model(x))
