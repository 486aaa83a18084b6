"""Operators that slide a window over the last two axes: convolution and pooling (NCHW), and the linear layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from blockpunch.graph.ir import Array, Node
from blockpunch.graph.operators.table import Operator, Shape, require

Pair = tuple[int, int]


def window_output(node: Node, size: Shape, kernel: Shape) -> Pair:
    """Height and width of the result of sliding ``kernel`` over an image of ``size``, from the node's attributes."""
    stride, pads = node.attrs["stride"], node.attrs["pads"]
    dilation = node.attrs.get("dilation", (1, 1))
    require(min(stride) > 0 and min(dilation) > 0 and min(pads) >= 0, node,
            f"stride {stride}, dilation {dilation} must be positive and pads {pads} not negative")
    height, width = (
        (size[axis] + pads[axis] + pads[axis + 2] - dilation[axis] * (kernel[axis] - 1) - 1) // stride[axis] + 1
        for axis in (0, 1))
    require(height > 0 and width > 0, node, f"a {kernel} window does not fit into an image of {size} with pads {pads}")
    return height, width


def _padded(x: Array, pads: Sequence[int], value: float) -> Array:
    if not any(pads):
        return x
    top, left, bottom, right = pads
    return np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=value)


def _positions(x: Array, node: Node, kernel: Pair, out: Pair) -> Iterator[Array]:
    """For every kernel position in order, the strided view [N, C, OH, OW] of the padded image it meets."""
    stride, dilation = node.attrs["stride"], node.attrs.get("dilation", (1, 1))
    for row in range(0, kernel[0] * dilation[0], dilation[0]):
        for column in range(0, kernel[1] * dilation[1], dilation[1]):
            yield x[:, :, row:row + (out[0] - 1) * stride[0] + 1:stride[0],
                    column:column + (out[1] - 1) * stride[1] + 1:stride[1]]


def _conv_infer(node: Node, shapes: Sequence[Shape]) -> list[Shape]:
    x, w = shapes[0], shapes[1]
    groups = node.attrs["groups"]
    require(len(x) == 4 and len(w) == 4, node, f"needs a 4-D input and weight, got {x} and {w}")
    require(x[1] == w[1] * groups and w[0] % groups == 0, node,
            f"{x[1]} input channels do not fit a weight of {w} in {groups} groups")
    require(len(shapes) == 2 or shapes[2] == (w[0],), node, f"the bias must have {w[0]} elements")
    return [(x[0], w[0], *window_output(node, x[2:4], w[2:4]))]


def _conv(node: Node, arrays: Sequence[Array]) -> list[Array]:
    x, w = arrays[0], arrays[1]
    groups = node.attrs["groups"]
    kernel: Pair = w.shape[2:4]
    out = window_output(node, x.shape[2:4], kernel)
    x = _padded(x, node.attrs["pads"], 0.0)
    views = _positions(x, node, kernel, out)
    n, filters, channels = x.shape[0], w.shape[0], w.shape[1]
    if channels == 1 and filters == groups:  # depthwise: one multiply-add over the image per kernel position
        y = np.zeros((n, filters, *out), np.float32)
        for view, tap in zip(views, w.reshape(filters, -1).T, strict=True):
            y += view * tap[:, None, None]
    else:
        columns = np.stack(list(views), axis=2) if kernel != (1, 1) else np.ascontiguousarray(next(views))
        columns = columns.reshape(n, groups, channels * kernel[0] * kernel[1], out[0] * out[1])
        y = np.matmul(w.reshape(1, groups, filters // groups, -1), columns).reshape(n, filters, *out)
    if len(arrays) > 2:
        y += arrays[2][:, None, None]
    return [y]


def _conv_macs(node: Node, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int:
    return int(np.prod(outputs[0], dtype=np.int64) * np.prod(inputs[1][1:], dtype=np.int64))


def _linear_infer(node: Node, shapes: Sequence[Shape]) -> list[Shape]:
    x, w = shapes[0], shapes[1]
    require(len(x) >= 1 and len(w) == 2 and x[-1] == w[1], node, f"an input of {x} does not fit a weight of {w}")
    require(len(shapes) == 2 or shapes[2] == (w[0],), node, f"the bias must have {w[0]} elements")
    return [(*x[:-1], w[0])]


def _linear(node: Node, arrays: Sequence[Array]) -> list[Array]:
    y = np.matmul(arrays[0], arrays[1].T)
    return [y + arrays[2] if len(arrays) > 2 else y]


def _linear_macs(node: Node, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int:
    return int(np.prod(outputs[0], dtype=np.int64)) * inputs[1][1]


def _matmul_infer(node: Node, shapes: Sequence[Shape]) -> list[Shape]:
    a, b = shapes[0], shapes[1]
    require(len(a) >= 2 and len(b) >= 2 and a[-1] == b[-2], node, f"shapes {a} and {b} do not fit")
    return [(*np.broadcast_shapes(a[:-2], b[:-2]), a[-2], b[-1])]


def _matmul(node: Node, arrays: Sequence[Array]) -> list[Array]:
    return [np.matmul(arrays[0], arrays[1])]


def _matmul_macs(node: Node, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int:
    return int(np.prod(outputs[0], dtype=np.int64)) * inputs[0][-1]


def _pool_infer(node: Node, shapes: Sequence[Shape]) -> list[Shape]:
    x = shapes[0]
    require(len(x) == 4, node, f"needs a 4-D input, got {x}")
    return [(*x[:2], *window_output(node, x[2:4], node.attrs["kernel"]))]


def _max_pool(node: Node, arrays: Sequence[Array]) -> list[Array]:
    x, kernel = arrays[0], node.attrs["kernel"]
    out = window_output(node, x.shape[2:4], kernel)
    y = np.full((*x.shape[:2], *out), -np.inf, np.float32)
    for view in _positions(_padded(x, node.attrs["pads"], -np.inf), node, kernel, out):
        np.maximum(y, view, out=y)
    return [y]


def _average_pool(node: Node, arrays: Sequence[Array]) -> list[Array]:
    x, kernel = arrays[0], node.attrs["kernel"]
    out = window_output(node, x.shape[2:4], kernel)
    y = np.zeros((*x.shape[:2], *out), np.float32)
    for view in _positions(_padded(x, node.attrs["pads"], 0.0), node, kernel, out):
        y += view
    if node.attrs["count_include_pad"]:
        return [y / np.float32(kernel[0] * kernel[1])]
    ones = _padded(np.ones((1, 1, *x.shape[2:4]), np.float32), node.attrs["pads"], 0.0)
    return [y / np.maximum(sum(_positions(ones, node, kernel, out)), np.float32(1))]


def _global_infer(node: Node, shapes: Sequence[Shape]) -> list[Shape]:
    require(len(shapes[0]) == 4, node, f"needs a 4-D input, got {shapes[0]}")
    return [(*shapes[0][:2], 1, 1)]


def _global_average(node: Node, arrays: Sequence[Array]) -> list[Array]:
    return [arrays[0].mean(axis=(2, 3), keepdims=True, dtype=np.float32)]


WINDOW_OPERATORS = (
    Operator("Conv", (2, 3), _conv_infer, _conv, _conv_macs, prunable=True, constants=1,
             attributes=("stride", "pads", "dilation", "groups")),
    Operator("Linear", (2, 3), _linear_infer, _linear, _linear_macs, prunable=True, constants=1),
    Operator("MatMul", (2, 2), _matmul_infer, _matmul, _matmul_macs),
    Operator("MaxPool", (1, 1), _pool_infer, _max_pool, attributes=("kernel", "stride", "pads", "dilation")),
    Operator("AveragePool", (1, 1), _pool_infer, _average_pool,
             attributes=("kernel", "stride", "pads", "count_include_pad")),
    Operator("GlobalAveragePool", (1, 1), _global_infer, _global_average),
)
