"""ONNX convolution, pooling, matrix products and norms."""

from __future__ import annotations

import numpy as np

from blockpunch.graph.builder import Const, GraphBuilder, Tensor, Unsupported
from blockpunch.graph.emit import (
    as_image,
    as_line,
    axis_of,
    emit_group_norm,
    emit_norm,
    emit_pool,
    emit_transposed_conv,
    transposed_size,
)
from blockpunch.graph.onnx_ops.node import OnnxNode, Rule


def _pair(node: OnnxNode, attribute: str, default: int = 1) -> tuple[int, int]:
    values = node.ints(attribute) or (default, default)
    if len(values) != 2:
        raise Unsupported(f"{attribute} {values} is not two-dimensional")
    return values[0], values[1]


def _pads(node: OnnxNode, size: tuple[int, ...], kernel: tuple[int, int], stride: tuple[int, int],
          dilation: tuple[int, int]) -> tuple[int, int, int, int]:
    """Explicit (top, left, bottom, right) from ``pads`` or ``auto_pad``."""
    mode = node.attrs.get("auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        pads = node.ints("pads") or (0, 0, 0, 0)
        return pads[0], pads[1], pads[2], pads[3]
    if mode == "VALID":
        return 0, 0, 0, 0
    before, after = [], []
    for axis in (0, 1):
        out = -(-size[axis] // stride[axis])
        total = max((out - 1) * stride[axis] + dilation[axis] * (kernel[axis] - 1) + 1 - size[axis], 0)
        small, large = total // 2, total - total // 2
        before.append(large if mode == "SAME_LOWER" else small)
        after.append(small if mode == "SAME_LOWER" else large)
    return before[0], before[1], after[0], after[1]


def _image(builder: GraphBuilder, node: OnnxNode) -> tuple[Tensor, tuple[int, ...]]:
    x = node.tensor(0)
    shape = builder.shape(x)
    if len(shape) != 4:
        raise Unsupported(f"only images [N, C, H, W] and lines [N, C, L] are supported, this has shape {shape}")
    return x, shape


# What attributes of a line's operator are along the row's height.
_ONE_ROW = {"kernel_shape": 1, "strides": 1, "dilations": 1, "output_shape": 1, "output_padding": 0}


def _lines_too(rule: Rule) -> Rule:
    """``rule``, made for images, for lines [N, C, L] too: they are images of one row."""
    def either(builder: GraphBuilder, node: OnnxNode) -> list[Tensor]:
        if len(builder.shape(node.tensor(0))) != 3:
            return rule(builder, node)
        attrs = {name: [_ONE_ROW[name], value[-1]] if name in _ONE_ROW else value for name, value in node.attrs.items()}
        if "pads" in attrs:
            attrs["pads"] = [0, attrs["pads"][0], 0, attrs["pads"][1]]
        inputs: list[Tensor | None] = [as_image(builder, node.tensor(0)), *node.inputs[1:]]
        weight = node.optional(1)
        if isinstance(weight, Const):
            inputs[1] = Const(np.expand_dims(weight.array, 2), weight.name)
        image = OnnxNode(node.op, node.opset, inputs, node.outputs, attrs)
        return [as_line(builder, result) for result in rule(builder, image)]
    return either


def _conv(builder: GraphBuilder, node: OnnxNode) -> list[Tensor]:
    x, shape = _image(builder, node)
    weight = node.constant(1, "weight")
    kernel: tuple[int, int] = weight.array.shape[2:4]
    stride, dilation = _pair(node, "strides"), _pair(node, "dilations")
    inputs: list[Tensor] = [x, weight]
    if node.optional(2) is not None:
        inputs.append(node.constant(2, "bias"))
    return [builder.emit("Conv", inputs, stride=stride, pads=_pads(node, shape[2:], kernel, stride, dilation),
                         dilation=dilation, groups=int(node.attrs.get("group", 1)))]


def _transposed_conv(builder: GraphBuilder, node: OnnxNode) -> list[Tensor]:
    x, shape = _image(builder, node)
    weight = node.constant(1, "weight")
    bias = node.constant(2, "bias") if node.optional(2) is not None else None
    stride, dilation, extra = _pair(node, "strides"), _pair(node, "dilations"), _pair(node, "output_padding", 0)
    whole = transposed_size(shape[2:], weight.array.shape[2:], stride, dilation, extra)
    mode, wanted = node.attrs.get("auto_pad", "NOTSET"), node.ints("output_shape")
    if mode in ("NOTSET", "", "VALID") and wanted is None:
        pads = (node.ints("pads") or (0, 0, 0, 0)) if mode != "VALID" else (0, 0, 0, 0)
        begin, size = [pads[0], pads[1]], [whole[0] - pads[0] - pads[2], whole[1] - pads[1] - pads[3]]
    else:
        size = list(wanted[-2:]) if wanted else [shape[2] * stride[0], shape[3] * stride[1]]
        cut = [max(whole[a] - size[a], 0) for a in (0, 1)]
        begin = [c // 2 if mode == "SAME_UPPER" else -(-c // 2) for c in cut]
    return [emit_transposed_conv(builder, x, weight, bias, stride=stride, dilation=dilation, begin=(begin[0], begin[1]),
                                 size=(size[0], size[1]), groups=int(node.attrs.get("group", 1)))]


def _pool(builder: GraphBuilder, node: OnnxNode) -> list[Tensor]:
    x, shape = _image(builder, node)
    if node.outputs > 1:
        raise Unsupported("the indices of a max pool are not computed")
    kernel = _pair(node, "kernel_shape")
    stride, dilation = _pair(node, "strides"), _pair(node, "dilations")
    return [emit_pool(builder, node.op == "AveragePool", x, kernel, stride,
                      _pads(node, shape[2:], kernel, stride, dilation), dilation=dilation,
                      ceil=bool(node.attrs.get("ceil_mode", 0)),
                      count_include_pad=bool(node.attrs.get("count_include_pad", 0)))]


def _global_pool(builder: GraphBuilder, node: OnnxNode) -> list[Tensor]:
    x, shape = _image(builder, node)
    if node.op == "GlobalAveragePool":
        return [builder.emit("GlobalAveragePool", [x])]
    return [builder.emit("MaxPool", [x], kernel=shape[2:], stride=(1, 1), pads=(0, 0, 0, 0), dilation=(1, 1))]


def _batch_norm(builder: GraphBuilder, node: OnnxNode) -> list[Tensor]:
    if node.attrs.get("training_mode", 0) or node.outputs > 1:
        raise Unsupported("batch-norm in training mode; export the model in eval mode")
    statistics = [node.constant(index, "statistic") for index in range(1, 5)]
    return [builder.emit("BatchNorm", [node.tensor(0), *statistics], eps=float(node.attrs.get("epsilon", 1e-5)))]


def _layer_norm(builder: GraphBuilder, node: OnnxNode) -> list[Tensor]:
    if node.outputs > 1:
        raise Unsupported("its mean and deviation are not computed")
    rank, axis = len(builder.shape(node.tensor(0))), int(node.attrs.get("axis", -1))
    bias = node.constant(2, "bias") if node.optional(2) is not None else None
    return [emit_norm(builder, node.tensor(0), range(axis_of(axis, rank), rank), node.constant(1, "scale"), bias,
                      float(node.attrs.get("epsilon", 1e-5)))]


def _group_norm(builder: GraphBuilder, node: OnnxNode) -> list[Tensor]:
    x, scale, bias = node.tensor(0), node.constant(1, "scale"), node.constant(2, "bias")
    channels = builder.shape(x)[1]
    groups = channels if node.op == "InstanceNormalization" else int(node.attrs["num_groups"])
    if scale.array.size != channels:  # GroupNormalization before opset 21: one for each group
        scale, bias = (Const(np.repeat(item.array, channels // groups)) for item in (scale, bias))
    return [emit_group_norm(builder, x, groups, scale, bias, float(node.attrs.get("epsilon", 1e-5)))]


def _gemm(builder: GraphBuilder, node: OnnxNode) -> list[Tensor]:
    x = node.tensor(0)
    if isinstance(x, Const):
        raise Unsupported("the first matrix is a constant")
    if node.attrs.get("transA", 0):
        x = builder.emit("Transpose", [x], perm=(1, 0))
    weight = node.constant(1, "second matrix")
    matrix = weight.array if node.attrs.get("transB", 0) else weight.array.T
    alpha, beta = float(node.attrs.get("alpha", 1.0)), float(node.attrs.get("beta", 1.0))
    inputs: list[Tensor] = [x, Const(matrix if alpha == 1 else matrix * np.float32(alpha), weight.name)]
    tail = node.optional(2)
    if isinstance(tail, Const) and (tail.array.size == 1 or tail.array.shape[-1] == tail.array.size == len(matrix)):
        bias = np.broadcast_to(tail.array.reshape(-1), matrix.shape[:1])
        return [builder.emit("Linear", [*inputs, Const(bias if beta == 1 else bias * np.float32(beta), tail.name)])]
    result = builder.emit("Linear", inputs)
    if tail is None:
        return [result]
    if beta != 1:
        tail = (Const(tail.array * np.float32(beta)) if isinstance(tail, Const)
                else builder.emit("Mul", [tail, Const(np.float32(beta).reshape(1))]))
    return [builder.emit("Add", [result, tail])]


def _matmul(builder: GraphBuilder, node: OnnxNode) -> list[Tensor]:
    a, b = node.tensor(0), node.tensor(1)
    if isinstance(b, Const) and b.array.ndim == 2 and not isinstance(a, Const):
        return [builder.emit("Linear", [a, Const(b.array.T, b.name)])]
    if len(builder.shape(a)) < 2 or len(builder.shape(b)) < 2:
        raise Unsupported("a product with a vector")
    return [builder.emit("MatMul", [a, b])]


RULES: dict[str, Rule] = {
    **{op: _lines_too(rule) for op, rule in (
        ("Conv", _conv), ("ConvTranspose", _transposed_conv), ("MaxPool", _pool), ("AveragePool", _pool),
        ("GlobalAveragePool", _global_pool), ("GlobalMaxPool", _global_pool))},
    "LayerNormalization": _layer_norm, "InstanceNormalization": _group_norm, "GroupNormalization": _group_norm,
    "BatchNormalization": _batch_norm, "Gemm": _gemm, "MatMul": _matmul,
}
