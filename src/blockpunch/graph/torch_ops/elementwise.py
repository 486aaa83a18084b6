"""Activations, arithmetic and softmax of torch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from blockpunch.graph.builder import Const, GraphBuilder, Tensor, Unsupported
from blockpunch.graph.emit import axis_of
from blockpunch.graph.torch_ops.node import Rule, TorchNode

# aten name -> (operator, attribute -> name of the argument, or the number itself).
_UNARY: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("Relu", {}), "relu6": ("Clip", {"min": 0.0, "max": 6.0}), "silu": ("Silu", {}), "sigmoid": ("Sigmoid", {}),
    "hardtanh": ("Clip", {"min": "min_val", "max": "max_val"}), "tanh": ("Tanh", {}), "hardswish": ("HardSwish", {}),
    "hardsigmoid": ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}), "mish": ("Mish", {}), "exp": ("Exp", {}),
    "leaky_relu": ("LeakyRelu", {"alpha": "negative_slope"}), "log": ("Log", {}), "sqrt": ("Sqrt", {}),
    "neg": ("Neg", {}), "abs": ("Abs", {}), "erf": ("Erf", {}), "sin": ("Sin", {}), "cos": ("Cos", {}),
}
_BINARY = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "minimum": "Min", "maximum": "Max", "pow": "Pow"}


def _number(value: float) -> Const:
    return Const(np.float32(value).reshape(1))


def _unary(builder: GraphBuilder, node: TorchNode) -> Tensor:
    op, attrs = _UNARY[node.op]
    return builder.emit(op, [node.tensor()],
                        **{key: node.number(value) if isinstance(value, str) else value
                           for key, value in attrs.items()})


def _binary(builder: GraphBuilder, node: TorchNode) -> Tensor:
    second = "exponent" if node.op == "pow" else "other"
    if node.args.get("rounding_mode"):
        raise Unsupported("a division that rounds")
    sides = [side if isinstance(side, str | Const) else _number(side)
             for side in (node.args["self"], node.args[second])]
    alpha = float(node.args.get("alpha", 1))
    if alpha != 1:
        sides[1] = (Const(sides[1].array * np.float32(alpha)) if isinstance(sides[1], Const)
                    else builder.emit("Mul", [sides[1], _number(alpha)]))
    return builder.emit(_BINARY[node.op], sides)


def _reversed_sub(builder: GraphBuilder, node: TorchNode) -> Tensor:
    other = node.args["other"]
    return builder.emit("Sub", [other if isinstance(other, str | Const) else _number(other), node.tensor()])


def _clamp(builder: GraphBuilder, node: TorchNode) -> Tensor:
    low, high = node.args.get("min"), node.args.get("max")
    if isinstance(low, str | Const) or isinstance(high, str | Const):
        raise Unsupported("a clamp whose bounds are tensors")
    low, high = -math.inf if low is None else float(low), math.inf if high is None else float(high)
    return builder.emit("Relu", [node.tensor()]) if (low, high) == (0.0, math.inf) else builder.emit(
        "Clip", [node.tensor()], min=low, max=high)


def _gelu(builder: GraphBuilder, node: TorchNode) -> Tensor:
    return builder.emit("Gelu", [node.tensor()], approximate=str(node.args["approximate"]))


def _elu(builder: GraphBuilder, node: TorchNode) -> Tensor:
    if node.args["scale"] != 1 or node.args["input_scale"] != 1:
        raise Unsupported("an ELU with scales (SELU, CELU)")
    return builder.emit("Elu", [node.tensor()], alpha=node.number("alpha"))


def _softplus(builder: GraphBuilder, node: TorchNode) -> Tensor:
    if node.args["beta"] != 1:
        raise Unsupported("a softplus with beta other than 1")
    return builder.emit("Softplus", [node.tensor()])


def _reciprocal(builder: GraphBuilder, node: TorchNode) -> Tensor:
    x = node.tensor()
    return builder.emit("Div", [_number(1), builder.emit("Sqrt", [x]) if node.op == "rsqrt" else x])


def _prelu(builder: GraphBuilder, node: TorchNode) -> Tensor:
    slope, rank = node.constant("weight"), len(builder.shape(node.tensor()))
    array = slope.array.reshape(-1, *(1,) * (rank - 2)) if slope.array.ndim == 1 and rank > 2 else slope.array
    return builder.emit("PRelu", [node.tensor(), Const(array, slope.name)])


def _softmax(builder: GraphBuilder, node: TorchNode) -> Tensor:
    result = builder.emit("Softmax", [node.tensor()],
                          axis=axis_of(int(node.args["dim"]), len(builder.shape(node.tensor()))))
    return builder.emit("Log", [result]) if "log" in node.op else result


RULES: dict[str, Rule] = {
    **dict.fromkeys(_UNARY, _unary), **dict.fromkeys(_BINARY, _binary), "rsub": _reversed_sub, "clamp": _clamp,
    "clamp_min": _clamp, "clamp_max": _clamp, "gelu": _gelu, "elu": _elu, "softplus": _softplus, "rsqrt": _reciprocal,
    "reciprocal": _reciprocal, "prelu": _prelu, "_prelu_kernel": _prelu, "softmax": _softmax, "_softmax": _softmax,
    "log_softmax": _softmax, "_log_softmax": _softmax,
}
