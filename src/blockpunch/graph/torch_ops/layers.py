"""Convolution, linear layers, norms and pools of torch."""

from __future__ import annotations

import numpy as np

from blockpunch.graph.builder import Const, GraphBuilder, Tensor, Unsupported
from blockpunch.graph.emit import (
    as_image,
    as_line,
    emit_group_norm,
    emit_norm,
    emit_pool,
    emit_transposed_conv,
    transposed_size,
)
from blockpunch.graph.ir import Array
from blockpunch.graph.torch_ops.node import Rule, TorchNode


def _image(builder: GraphBuilder, x: Tensor) -> tuple[int, ...]:
    shape = builder.shape(x)
    if len(shape) != 4:
        raise Unsupported(f"only images [N, C, H, W] and lines [N, C, L] are supported, this has shape {shape}")
    return shape


# What arguments of a line's operator are along the row's height.
_ONE_ROW = {"stride": 1, "dilation": 1, "kernel_size": 1, "output_size": 1, "padding": 0, "output_padding": 0,
            "scale_factors": 1.0}


def lines_too(rule: Rule) -> Rule:
    """``rule``, made for images, for lines [N, C, L] too: they are images of one row."""
    def either(builder: GraphBuilder, node: TorchNode) -> Tensor | list[Tensor]:
        name = "input" if "input" in node.args else "self"
        if len(builder.shape(node.tensor(name))) != 3:
            return rule(builder, node)
        args = dict(node.args)
        for key, value in args.items():
            if key in _ONE_ROW and value and not isinstance(value, str):
                args[key] = [_ONE_ROW[key], value[-1] if isinstance(value, list | tuple) else value]
            elif key == "weight" and isinstance(value, Const):
                args[key] = Const(np.expand_dims(value.array, 2), value.name)
        args |= {name: as_image(builder, node.tensor(name)), "scales_h": 1.0, "scales_w": args.get("scales")}
        result = rule(builder, TorchNode(node.op.replace("1d", "2d"), args))
        assert not isinstance(result, list)
        return as_line(builder, result)
    return either


def _conv(builder: GraphBuilder, node: TorchNode) -> Tensor:
    x, weight, bias = node.tensor("input"), node.constant("weight"), node.optional("bias")
    if node.args.get("transposed"):
        return _transposed_conv(builder, node)
    _image(builder, x)
    stride, dilation = node.pair("stride", (1, 1)), node.pair("dilation", (1, 1))
    padding = node.args["padding"]
    if padding == "valid":
        pads = (0, 0, 0, 0)
    elif padding == "same":
        total = [dilation[axis] * (weight.array.shape[2 + axis] - 1) for axis in (0, 1)]
        pads = (total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2)
    else:
        pads = node.pair("padding", (0, 0)) * 2
    return builder.emit("Conv", [x, weight, *([bias] if bias else [])], stride=stride, pads=pads, dilation=dilation,
                        groups=int(node.args["groups"]))


def _transposed_conv(builder: GraphBuilder, node: TorchNode) -> Tensor:
    x, weight, bias = node.tensor("input"), node.constant("weight"), node.optional("bias")
    shape, stride, dilation = _image(builder, x), node.pair("stride", (1, 1)), node.pair("dilation", (1, 1))
    begin, extra = node.pair("padding", (0, 0)), node.pair("output_padding", (0, 0))
    whole = transposed_size(shape[2:], weight.array.shape[2:], stride, dilation, extra)
    return emit_transposed_conv(builder, x, weight, bias, stride=stride, dilation=dilation, begin=begin,
                                size=(whole[0] - 2 * begin[0], whole[1] - 2 * begin[1]),
                                groups=int(node.args["groups"]))


def _layer_norm(builder: GraphBuilder, node: TorchNode) -> Tensor:
    x = node.tensor("input")
    rank = len(builder.shape(x))
    return emit_norm(builder, x, range(rank - len(node.ints("normalized_shape")), rank), node.optional("weight"),
                     node.optional("bias"), node.number("eps"))


def _group_norm(builder: GraphBuilder, node: TorchNode) -> Tensor:
    x = node.tensor("input")
    if node.op == "instance_norm":
        if not node.args["use_input_stats"]:
            raise Unsupported("an instance norm with running statistics")
        groups = builder.shape(x)[1]
    else:
        groups = int(node.args["num_groups" if "num_groups" in node.args else "group"])
    return emit_group_norm(builder, x, groups, node.optional("weight"), node.optional("bias"), node.number("eps"))


def _linear(builder: GraphBuilder, node: TorchNode) -> Tensor:
    bias = node.optional("bias")
    return builder.emit("Linear", [node.tensor("input"), node.constant("weight"), *([bias] if bias else [])])


def _addmm(builder: GraphBuilder, node: TorchNode) -> Tensor:
    """``bias + x @ w``, where core aten writes the weight as a permuted constant."""
    weight = node.constant("mat2")
    if node.args.get("alpha", 1) != 1 or node.args.get("beta", 1) != 1:
        raise Unsupported("a scaled product")
    result = builder.emit("Linear", [node.tensor("mat1"), Const(weight.array.T, weight.name)])
    return builder.emit("Add", [result, node.tensor("self")])


def _matmul(builder: GraphBuilder, node: TorchNode) -> Tensor:
    a, b = node.tensor("self"), node.tensor("mat2" if "mat2" in node.args else "other")
    if isinstance(b, Const) and b.array.ndim == 2 and not isinstance(a, Const):
        return builder.emit("Linear", [a, Const(b.array.T, b.name)])
    if len(builder.shape(a)) < 2 or len(builder.shape(b)) < 2:
        raise Unsupported("a product with a vector")
    return builder.emit("MatMul", [a, b])


def _attention(builder: GraphBuilder, node: TorchNode) -> Tensor:
    """``softmax(q k' * scale + mask) v``, over leading axes that all have."""
    q, k, v = (node.tensor(name) for name in ("query", "key", "value"))
    mask = node.args.get("attn_mask")
    if node.args.get("enable_gqa") or node.args.get("is_causal") or node.args.get("dropout_p"):
        raise Unsupported("attention with grouped queries, a causal mask or dropout")
    if isinstance(mask, Const) and mask.array.dtype == bool:
        mask = Const(np.where(mask.array, np.float32(0), np.float32(-1e30)), mask.name)
    shape = builder.shape(k)
    rank, scale = len(shape), node.args.get("scale")
    scale = Const(np.full(1, shape[-1] ** -0.5 if scale is None else scale, np.float32))
    turned = builder.emit("Transpose", [k], perm=(*range(rank - 2), rank - 1, rank - 2))
    scores = builder.emit("MatMul", [builder.emit("Mul", [q, scale]), turned])
    scores = scores if mask is None else builder.emit("Add", [scores, mask])
    return builder.emit("MatMul", [builder.emit("Softmax", [scores], axis=rank - 1), v])


def _batch_norm(builder: GraphBuilder, node: TorchNode) -> Tensor:
    if node.args.get("training") or node.args.get("running_mean") is None:
        raise Unsupported("batch-norm in training mode or without running statistics; call model.eval() first")
    mean, variance = node.constant("running_mean"), node.constant("running_var")
    scale = node.optional("weight") or Const(np.ones_like(mean.array))
    bias = node.optional("bias") or Const(np.zeros_like(mean.array))
    return builder.emit("BatchNorm", [node.tensor("input"), scale, bias, mean, variance], eps=node.number("eps"))


def _training(builder: GraphBuilder, node: TorchNode) -> Tensor:
    raise Unsupported("batch-norm in training mode; call model.eval() before the export")


def _pool(builder: GraphBuilder, node: TorchNode) -> Tensor:
    x, kernel = node.tensor(), node.pair("kernel_size")
    _image(builder, x)
    if node.args.get("divisor_override") is not None:
        raise Unsupported("an average pool with its own divisor")
    return emit_pool(builder, node.op == "avg_pool2d", x, kernel, node.pair("stride", kernel),
                     node.pair("padding", (0, 0)) * 2, dilation=node.pair("dilation", (1, 1)),
                     ceil=bool(node.args["ceil_mode"]), count_include_pad=bool(node.args.get("count_include_pad")))


def _shares(size: int, count: int) -> Array:
    """[count, size]: what each of ``size`` pixels adds to the means of ``count`` windows, as torch lays them."""
    shares = np.zeros((count, size), np.float32)
    for index in range(count):
        start, stop = index * size // count, -(-(index + 1) * size // count)
        shares[index, start:stop] = 1 / (stop - start)
    return shares


def _adaptive_pool(builder: GraphBuilder, node: TorchNode) -> Tensor:
    """A pool to a fixed size: the whole image, windows of equal size where the image divides, else means as products
    with the share of every pixel in every window."""
    x, out = node.tensor(), node.pair("output_size")
    height, width = _image(builder, x)[2:]
    average = "avg" in node.op
    if out == (1, 1) and average:
        return builder.emit("GlobalAveragePool", [x])
    divides = not (height % out[0] or width % out[1])
    if average and not divides:
        rows, columns = (_shares(size, count) for size, count in zip((height, width), out, strict=True))
        return builder.emit("MatMul", [builder.emit("MatMul", [Const(rows), x]), Const(columns.T)])
    if not divides:
        raise Unsupported(f"an adaptive pool of {height}x{width} to {out[0]}x{out[1]}, which does not divide")
    kernel = (height // out[0], width // out[1])
    return emit_pool(builder, average, x, kernel, kernel, (0, 0, 0, 0))


RULES: dict[str, Rule] = {
    **dict.fromkeys(("conv1d", "conv2d", "convolution"), lines_too(_conv)),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d"), lines_too(_transposed_conv)), "layer_norm": _layer_norm,
    "native_layer_norm": _layer_norm,
    **dict.fromkeys(("group_norm", "native_group_norm", "instance_norm"), _group_norm),
    "linear": _linear, "addmm": _addmm, "mm": _matmul, "matmul": _matmul,
    "bmm": _matmul, "scaled_dot_product_attention": _attention,
    "batch_norm": _batch_norm, "_native_batch_norm_legit_no_training": _batch_norm,
    "_native_batch_norm_legit_functional": _training,
    **dict.fromkeys((name for rank in (1, 2) for name in (
        f"max_pool{rank}d", f"max_pool{rank}d_with_indices", f"avg_pool{rank}d")), lines_too(_pool)),
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool1d",
                     "adaptive_max_pool2d"), lines_too(_adaptive_pool)),
}
