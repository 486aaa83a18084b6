"""Small ONNX models, and the comparison of our import with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from blockpunch.graph import Graph
from blockpunch.graph.interpreter import run
from blockpunch.graph.onnx_import import from_onnx
from blockpunch.graph.passes import optimize

Array = np.ndarray


def model_of(nodes: Sequence[onnx.NodeProto], inputs: Mapping[str, Sequence[int | str]], outputs: Sequence[str],
             constants: Mapping[str, Array] | None = None, opset: int = 17) -> onnx.ModelProto:
    """A model with float inputs; shapes of the outputs are left to the readers."""
    graph = helper.make_graph(
        list(nodes), "test",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def session(model: onnx.ModelProto | str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model if isinstance(model, str) else model.SerializeToString(), options,
                                        providers=["CPUExecutionProvider"])


def assert_close(ours: Mapping[str, Array], reference: Sequence[Array], tolerance: float, what: str = "") -> None:
    for (name, mine), theirs in zip(ours.items(), reference, strict=True):
        assert mine.shape == theirs.shape, f"{what} {name}: shape {mine.shape}, expected {theirs.shape}"
        assert mine.dtype == np.float32
        scale = max(float(np.abs(theirs).max()), 1e-6)
        error = float(np.abs(mine - theirs).max()) / scale
        assert error <= tolerance, f"{what} {name}: relative error {error:.2e}"


def check_model(model: onnx.ModelProto | str, tolerance: float = 1e-5, feeds: Mapping[str, Array] | None = None,
                low: float = -2.0, high: float = 2.0) -> tuple[Graph, Graph]:
    """Import, run before and after ``optimize``, compare with ONNX Runtime; returns both graphs."""
    graph = from_onnx(model)
    if feeds is None:
        generator = np.random.default_rng(11)
        feeds = {name: generator.uniform(low, high, graph.shape(name)).astype(np.float32) for name in graph.inputs}
    reference = session(model).run(None, dict(feeds))
    assert_close(run(graph, feeds), reference, tolerance, "imported")
    better = optimize(graph)
    assert_close(run(better, feeds), reference, tolerance, "optimized")
    return graph, better


def check_node(op: str, *, shapes: Sequence[Sequence[int]] = ((1, 3, 5, 7),), constants: Sequence[Array | None] = (),
               constants_first: bool = False, opset: int = 17, outputs: int = 1, low: float = -2.0, high: float = 2.0,
               **attrs: Any) -> Graph:
    """One ONNX node: inputs of ``shapes``, then constants (``None`` leaves one out); returns our graph."""
    inputs = {f"x{index}": shape for index, shape in enumerate(shapes)}
    named = {f"c{index}": array for index, array in enumerate(constants) if array is not None}
    fixed = ["" if array is None else f"c{index}" for index, array in enumerate(constants)]
    results = [f"y{index}" for index in range(outputs)]
    order = [*fixed, *inputs] if constants_first else [*inputs, *fixed]
    node = helper.make_node(op, order, results, name="the_node", **attrs)
    return check_model(model_of([node], inputs, results, named, opset), low=low, high=high)[0]
