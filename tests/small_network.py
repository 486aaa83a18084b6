"""A network of three layers, as an ONNX file."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_network(path: Path, *, channels: int = 8, filters: int = 16, size: int = 12, batch: int | str = 1,
                  seed: int = 3) -> Path:
    """An ONNX file of conv, relu, conv, global pool and a linear layer with random weights, for any opset-13 reader."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(seed)
    weights = {"w1": (channels, 3, 3, 3), "b1": (channels,), "w2": (filters, channels, 3, 3), "w3": (5, filters)}
    arrays = {name: (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
              for name, shape in weights.items()}
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "act"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], "second", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c2"], ["g"], "pool"),
        helper.make_node("Flatten", ["g"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "w3"], ["y"], "last", transB=1),
    ]
    graph = helper.make_graph(
        nodes, "small", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 5])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(path))
    return path
