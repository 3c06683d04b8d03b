"""One convolution in onnxruntime, on as many threads as torch has."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gossamer import extras
from gossamer.bench.conv.layers import Layer

log = logging.getLogger(__name__)


def convolution(layer: Layer, weight: Tensor) -> Callable[[Tensor], Any] | None:
    """A function of x[batch, inputs, side, side], contiguous; None where onnx or onnxruntime is not installed.

    The runtime's own blocked layout is made and unmade inside the call, as its graph of a single layer demands.
    """
    try:
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        log.warning("onnxruntime is not installed, so its rows are left out: %s", extras.command("onnx"))
        return None
    pad = [layer.padding] * 4
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=pad, strides=[layer.stride] * 2)
    graph = helper.make_graph(
        [node], "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", layer.inputs, layer.side, layer.side])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight.numpy(), "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it would take a core from the others
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x.numpy()})[0]
