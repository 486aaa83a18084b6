"""ONNX activations, arithmetic and softmax."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from blockpunch.graph.builder import Const, GraphBuilder, Tensor, Unsupported
from blockpunch.graph.emit import axis_of
from blockpunch.graph.onnx_ops.node import OnnxNode, Rule

# ONNX operator -> (ours, attributes with their defaults).
_UNARY: dict[str, tuple[str, dict[str, Any]]] = {
    "Relu": ("Relu", {}), "Sigmoid": ("Sigmoid", {}), "Tanh": ("Tanh", {}), "HardSwish": ("HardSwish", {}),
    "HardSigmoid": ("HardSigmoid", {"alpha": 0.2, "beta": 0.5}), "LeakyRelu": ("LeakyRelu", {"alpha": 0.01}),
    "Elu": ("Elu", {"alpha": 1.0}), "Gelu": ("Gelu", {"approximate": "none"}), "Exp": ("Exp", {}), "Log": ("Log", {}),
    "Sqrt": ("Sqrt", {}), "Neg": ("Neg", {}), "Abs": ("Abs", {}), "Erf": ("Erf", {}), "Softplus": ("Softplus", {}),
    "Mish": ("Mish", {}), "Sin": ("Sin", {}), "Cos": ("Cos", {}),
}
_BINARY = ("Add", "Sub", "Mul", "Div", "Pow")


def _unary(builder: GraphBuilder, node: OnnxNode) -> list[Tensor]:
    op, defaults = _UNARY[node.op]
    return [builder.emit(op, [node.tensor(0)],
                         **{name: type(default)(node.attrs.get(name, default)) for name, default in defaults.items()})]


def _binary(builder: GraphBuilder, node: OnnxNode) -> list[Tensor]:
    return [builder.emit(node.op, [node.tensor(0), node.tensor(1)])]


def _chain(builder: GraphBuilder, node: OnnxNode) -> list[Tensor]:
    """Min, Max, Sum and Mean of any number of tensors."""
    result = node.tensor(0)
    for index in range(1, len(node.inputs)):
        result = builder.emit({"Min": "Min", "Max": "Max"}.get(node.op, "Add"), [result, node.tensor(index)])
    if node.op == "Mean" and len(node.inputs) > 1:
        result = builder.emit("Mul", [result, Const(np.float32(1 / len(node.inputs)).reshape(1))])
    return [result]


def _clip(builder: GraphBuilder, node: OnnxNode) -> list[Tensor]:
    low, high = node.number("min", 1, -math.inf), node.number("max", 2, math.inf)
    if (low, high) == (0.0, math.inf):
        return [builder.emit("Relu", [node.tensor(0)])]
    return [builder.emit("Clip", [node.tensor(0)], min=low, max=high)]


def _prelu(builder: GraphBuilder, node: OnnxNode) -> list[Tensor]:
    return [builder.emit("PRelu", [node.tensor(0), node.constant(1, "slope")])]


def _reciprocal(builder: GraphBuilder, node: OnnxNode) -> list[Tensor]:
    return [builder.emit("Div", [Const(np.ones(1, np.float32)), node.tensor(0)])]


def _swish(builder: GraphBuilder, node: OnnxNode) -> list[Tensor]:
    if float(node.attrs.get("alpha", 1.0)) != 1.0:
        raise Unsupported("a Swish with alpha other than 1")
    return [builder.emit("Silu", [node.tensor(0)])]


def _softmax(builder: GraphBuilder, node: OnnxNode) -> list[Tensor]:
    x = node.tensor(0)
    shape = builder.shape(x)
    axis = axis_of(int(node.attrs.get("axis", -1 if node.opset >= 13 else 1)), len(shape))
    if node.opset >= 13 or axis == len(shape) - 1 or math.prod(shape[axis + 1:]) == 1:
        result = builder.emit("Softmax", [x], axis=axis)
    else:  # before opset 13 everything from the axis on is one long row
        row = (math.prod(shape[:axis]), math.prod(shape[axis:]))
        result = builder.emit("Softmax", [builder.emit("Reshape", [x], shape=row)], axis=1)
        result = builder.emit("Reshape", [result], shape=shape)
    return [builder.emit("Log", [result]) if node.op == "LogSoftmax" else result]


RULES: dict[str, Rule] = {
    **dict.fromkeys(_UNARY, _unary), **dict.fromkeys(_BINARY, _binary),
    "Min": _chain, "Max": _chain, "Sum": _chain, "Mean": _chain, "Clip": _clip, "PRelu": _prelu,
    "Reciprocal": _reciprocal, "Swish": _swish, "Softmax": _softmax, "LogSoftmax": _softmax,
}
