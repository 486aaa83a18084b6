"""Small ONNX models for the pruning tests, run by onnxruntime."""

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from blockpunch.graph.onnx_import import from_onnx
from blockpunch.plan import prunable_layers


def constant(name, *shape, seed=0):
    rng = np.random.default_rng(seed + len(name))
    return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32) * 0.2, name)


def mixed_model():
    """Every way in which a file holds a weight."""
    weights = [constant("w0", 12, 3, 3, 3), constant("b0", 12), constant("wg", 8, 6, 3, 3),
               constant("shared", 8, 8, 3, 3),
               constant("flipped", 8, 20), constant("fc0", 20, 17), constant("fc1", 17, 9), constant("fc1b", 9),
               constant("fc2", 5, 9)]
    held = constant("held", 8, 8, 1, 1)
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w0", "b0"], ["t0"], "first", pads=[1, 1, 1, 1]),
        node("Conv", ["t0", "wg"], ["t1"], "grouped", pads=[1, 1, 1, 1], group=2),
        node("Constant", [], ["heldw"], value=held), node("Conv", ["t1", "heldw"], ["t2"], "held_by_constant"),
        node("Conv", ["t2", "shared"], ["t3"], "", pads=[1, 1, 1, 1]),
        node("Identity", ["shared"], ["alias"]),
        node("Conv", ["t3", "alias"], ["t4"], "", pads=[1, 1, 1, 1]),
        node("GlobalAveragePool", ["t4"], ["t5"]), node("Flatten", ["t5"], ["t6"]),
        node("Transpose", ["flipped"], ["turned"], perm=[1, 0]),
        node("Gemm", ["t6", "turned"], ["t7"], "computed", transB=1),
        node("MatMul", ["t7", "fc0"], ["t8"], "product"),
        node("Gemm", ["t8", "fc1", "fc1b"], ["t9"], ""),
        node("Gemm", ["t9", "fc2"], ["y"], "last", transB=1, alpha=0.5),
    ]
    graph = helper.make_graph(nodes, "mixed", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 9, 9])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5])], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def line_model():
    """Convolutions of lines [N, C, L]."""
    weights = [constant("w0", 8, 3, 5), constant("w1", 8, 4, 3), constant("add", 8, 1)]
    nodes = [helper.make_node("Conv", ["x", "w0"], ["c"], "conv"), helper.make_node("Add", ["c", "add"], ["n"]),
             helper.make_node("Conv", ["n", "w1"], ["y"], "grouped", group=2)]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 20])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 14]),
                               helper.make_tensor_value_info("n", TensorProto.FLOAT, [1, 8, 16])], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def conv_bn(kind):
    weights = [constant("w", 8, 4, 3, 3), constant("scale", 8), constant("shift", 8), constant("mean", 8),
               numpy_helper.from_array(np.ones(8, np.float32), "var"), constant("add", 8, 1, 1),
               constant("tail", 3, 8, 1, 1)]
    after = (helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["n"]) if kind == "bn"
             else helper.make_node("Add", ["add", "c"], ["n"]))
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], "conv"), after,
             helper.make_node("Conv", ["n", "tail"], ["y"], "tail")]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 8, 8])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 6, 6]),
                               helper.make_tensor_value_info("n", TensorProto.FLOAT, [1, 8, 6, 6])], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(path, seed=1):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = {item.name: np.random.default_rng(seed).standard_normal(item.shape).astype(np.float32)
             for item in session.get_inputs()}
    return session.run(None, feeds)


def layer_weights(path):
    graph = from_onnx(path)
    return {layer.name: (graph.constants[graph.node(layer.name).inputs[1]], layer) for layer in prunable_layers(graph)}
