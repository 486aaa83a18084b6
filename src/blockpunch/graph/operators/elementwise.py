"""Elementwise operators: activations, arithmetic with numpy broadcasting, batch-norm and softmax."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from blockpunch.graph.ir import Array, Node
from blockpunch.graph.operators.table import Operator, Reference, Shape, require, same_shape

_erf_object = np.frompyfunc(math.erf, 1, 1)


def _erf(x: Array) -> Array:
    return np.asarray(_erf_object(x), np.float32)


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _softplus(x: Array) -> Array:
    return np.logaddexp(x, np.float32(0))


def _gelu(x: Array, approximate: str) -> Array:
    if approximate == "tanh":
        return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3))))
    return np.asarray(0.5 * x * (1 + _erf(x * np.float32(math.sqrt(0.5)))))


def _elu(x: Array, alpha: float) -> Array:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


# Name -> (function of the array and the node's attributes, names of these attributes in the order of the function).
_UNARY: dict[str, tuple[Callable[..., Array], tuple[str, ...]]] = {
    "Affine": (lambda x, scale, shift: x * np.float32(scale) + np.float32(shift), ("scale", "shift")),
    "Relu": (lambda x: np.maximum(x, 0), ()),
    "Clip": (lambda x, low, high: np.clip(x, low, high), ("min", "max")),
    "Sigmoid": (_sigmoid, ()),
    "Tanh": (np.tanh, ()),
    "Silu": (lambda x: x * _sigmoid(x), ()),
    "HardSwish": (lambda x: x * np.clip(x / 6 + 0.5, 0, 1), ()),
    "HardSigmoid": (lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1), ("alpha", "beta")),
    "LeakyRelu": (lambda x, alpha: np.where(x > 0, x, alpha * x), ("alpha",)),
    "Elu": (_elu, ("alpha",)),
    "Gelu": (_gelu, ("approximate",)),
    "Exp": (np.exp, ()),
    "Log": (np.log, ()),
    "Sqrt": (np.sqrt, ()),
    "Neg": (np.negative, ()),
    "Abs": (np.abs, ()),
    "Erf": (_erf, ()),
    "Sin": (np.sin, ()),
    "Cos": (np.cos, ()),
    "Softplus": (_softplus, ()),
    "Mish": (lambda x: x * np.tanh(_softplus(x)), ()),
}

_BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide,
    "Min": np.minimum, "Max": np.maximum, "Pow": np.power,
}


def _unary_reference(function: Callable[..., Array], names: tuple[str, ...]) -> Reference:
    def reference(node: Node, arrays: Sequence[Array]) -> list[Array]:
        with np.errstate(all="ignore"):  # exp overflows to inf inside a sigmoid, as it does in every engine
            return [np.asarray(function(arrays[0], *(node.attrs[name] for name in names)), np.float32)]
    return reference


def _binary_reference(function: Callable[[Array, Array], Array]) -> Reference:
    def reference(node: Node, arrays: Sequence[Array]) -> list[Array]:
        with np.errstate(all="ignore"):
            return [np.asarray(function(arrays[0], arrays[1]), np.float32)]
    return reference


def _broadcast(node: Node, shapes: Sequence[Shape]) -> list[Shape]:
    try:
        return [np.broadcast_shapes(*shapes)]
    except ValueError:
        require(False, node, f"shapes {shapes[0]} and {shapes[1]} do not broadcast")
        raise


def _batch_norm_infer(node: Node, shapes: Sequence[Shape]) -> list[Shape]:
    x = shapes[0]
    require(len(x) >= 2 and all(shape == (x[1],) for shape in shapes[1:]), node,
            f"an input of {x} needs scale, bias, mean and variance of one number per channel")
    return [x]


def _batch_norm(node: Node, arrays: Sequence[Array]) -> list[Array]:
    x, scale, bias, mean, variance = arrays
    factor = scale / np.sqrt(variance + np.float32(node.attrs["eps"]))
    column = (-1, *(1,) * (x.ndim - 2))
    return [x * factor.reshape(column) + (bias - mean * factor).reshape(column)]


def _prelu_infer(node: Node, shapes: Sequence[Shape]) -> list[Shape]:
    out = _broadcast(node, shapes)
    require(out[0] == shapes[0], node, f"the slope of {shapes[1]} does not broadcast to {shapes[0]}")
    return out


def _prelu(node: Node, arrays: Sequence[Array]) -> list[Array]:
    return [np.where(arrays[0] > 0, arrays[0], arrays[0] * arrays[1])]


def _softmax_infer(node: Node, shapes: Sequence[Shape]) -> list[Shape]:
    require(0 <= node.attrs["axis"] < len(shapes[0]), node, f"no axis {node.attrs['axis']} in {shapes[0]}")
    return [shapes[0]]


def _softmax(node: Node, arrays: Sequence[Array]) -> list[Array]:
    axis = node.attrs["axis"]
    power = np.exp(arrays[0] - arrays[0].max(axis=axis, keepdims=True))
    return [power / power.sum(axis=axis, keepdims=True)]


ELEMENTWISE_OPERATORS = (
    *(Operator(name, (1, 1), same_shape, _unary_reference(*row), unary=True, attributes=row[1])
      for name, row in _UNARY.items()),
    *(Operator(name, (2, 2), _broadcast, _binary_reference(function)) for name, function in _BINARY.items()),
    Operator("PRelu", (2, 2), _prelu_infer, _prelu, constants=1),
    Operator("BatchNorm", (5, 5), _batch_norm_infer, _batch_norm, constants=1, attributes=("eps",)),
    Operator("Softmax", (1, 1), _softmax_infer, _softmax, attributes=("axis",)),
)
