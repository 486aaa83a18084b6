"""Operators of torch that move, cut, join, average or resample elements."""

from __future__ import annotations

import math

import numpy as np

from blockpunch.graph.builder import Const, GraphBuilder, Tensor, Unsupported
from blockpunch.graph.emit import axis_of, depth_to_space, emit_gather, emit_mirrored, emit_slice, space_to_depth
from blockpunch.graph.torch_ops.layers import lines_too
from blockpunch.graph.torch_ops.node import Rule, TorchNode


def _identity(builder: GraphBuilder, node: TorchNode) -> Tensor:
    if node.op in ("dropout", "native_dropout") and node.args.get("train"):
        raise Unsupported("a dropout in training mode; call model.eval() first")
    dtype = node.args.get("dtype")
    if dtype is not None and not dtype.is_floating_point:
        raise Unsupported("a cast of activations to something other than floating point")
    return node.tensor("input" if "input" in node.args else "self")


def _to_shape(builder: GraphBuilder, x: Tensor, wanted: list[int]) -> Tensor:
    size = math.prod(builder.shape(x))
    if -1 in wanted:
        wanted[wanted.index(-1)] = size // math.prod(item for item in wanted if item != -1)
    return builder.emit("Reshape", [x], shape=tuple(wanted))


def _view(builder: GraphBuilder, node: TorchNode) -> Tensor:
    return _to_shape(builder, node.tensor(), list(node.ints("shape" if "shape" in node.args else "size")))


def _flatten(builder: GraphBuilder, node: TorchNode) -> Tensor:
    shape = builder.shape(node.tensor())
    start, stop = (axis_of(int(node.args[name]), len(shape)) for name in ("start_dim", "end_dim"))
    return _to_shape(builder, node.tensor(), [*shape[:start], math.prod(shape[start:stop + 1]), *shape[stop + 1:]])


def _unflatten(builder: GraphBuilder, node: TorchNode) -> Tensor:
    shape = builder.shape(node.tensor())
    axis = axis_of(int(node.args["dim"]), len(shape))
    return _to_shape(builder, node.tensor(), [*shape[:axis], *node.ints("sizes"), *shape[axis + 1:]])


def _squeeze(builder: GraphBuilder, node: TorchNode) -> Tensor:
    shape = builder.shape(node.tensor())
    axes = ({axis_of(axis, len(shape)) for axis in node.ints("dim")} if "dim" in node.args else set(range(len(shape))))
    return _to_shape(builder, node.tensor(), [size for axis, size in enumerate(shape) if axis not in axes or size != 1])


def _unsqueeze(builder: GraphBuilder, node: TorchNode) -> Tensor:
    shape = list(builder.shape(node.tensor()))
    shape.insert(axis_of(int(node.args["dim"]), len(shape) + 1), 1)
    return _to_shape(builder, node.tensor(), shape)


def _permute(builder: GraphBuilder, node: TorchNode) -> Tensor:
    rank = len(builder.shape(node.tensor()))
    if node.op == "permute":
        perm = [axis_of(axis, rank) for axis in node.ints("dims")]
    else:
        a, b = (0, rank - 1) if node.op == "t" else (
            axis_of(int(node.args["dim0"]), rank), axis_of(int(node.args["dim1"]), rank))
        perm = list(range(rank))
        perm[a], perm[b] = perm[b], perm[a]
    return builder.emit("Transpose", [node.tensor()], perm=tuple(perm))


def _cat(builder: GraphBuilder, node: TorchNode) -> Tensor:
    tensors: list[Tensor] = list(node.args["tensors"])
    axis = axis_of(int(node.args["dim"]), len(builder.shape(tensors[0])) + (node.op == "stack"))
    if node.op == "stack":
        shape = list(builder.shape(tensors[0]))
        shape.insert(axis, 1)
        tensors = [_to_shape(builder, item, list(shape)) for item in tensors]
    return builder.emit("Concat", tensors, axis=axis)


def _slice(builder: GraphBuilder, node: TorchNode) -> Tensor:
    x = node.tensor()
    axis = axis_of(int(node.args["dim"]), len(builder.shape(x)))
    start, stop = node.args.get("start"), node.args.get("end")
    return emit_slice(builder, x, axis, 0 if start is None else int(start),
                      builder.shape(x)[axis] if stop is None else int(stop), int(node.args["step"]))


def _select(builder: GraphBuilder, node: TorchNode) -> Tensor:
    x = node.tensor()
    shape = builder.shape(x)
    axis = axis_of(int(node.args["dim"]), len(shape))
    index = int(node.args["index"]) % shape[axis]
    return _to_shape(builder, emit_slice(builder, x, axis, index, index + 1), [*shape[:axis], *shape[axis + 1:]])


def _split(builder: GraphBuilder, node: TorchNode) -> list[Tensor]:
    x = node.tensor()
    shape = builder.shape(x)
    axis = axis_of(int(node.args["dim"]), len(shape))
    total = shape[axis]
    if "split_sizes" in node.args or isinstance(node.args.get("split_size"), list):
        sizes = list(node.ints("split_sizes" if "split_sizes" in node.args else "split_size"))
    else:
        size = 1
        if node.op == "chunk":
            size = -(-total // int(node.args["chunks"]))
        elif node.op != "unbind":
            size = int(node.args["split_size"])
        sizes = [min(size, total - start) for start in range(0, total, size)]
    parts: list[Tensor] = []
    start = 0
    for size in sizes:
        part: Tensor = emit_slice(builder, x, axis, start, start + size)
        parts.append(_to_shape(builder, part, [*shape[:axis], *shape[axis + 1:]]) if node.op == "unbind" else part)
        start += size
    return parts


# Modes of ``pad``, and operators that have one of them.
_PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}
_MIRRORED = {f"{kind}_pad{rank}d": mode for rank in (1, 2)
             for kind, mode in (("reflection", "reflect"), ("replication", "edge"))}


def _pad(builder: GraphBuilder, node: TorchNode) -> Tensor:
    """Torch lists (before, after) from the last axis backwards; negative numbers cut."""
    x, given = node.tensor(), node.ints("pad" if "pad" in node.args else "padding")
    mode = _MIRRORED.get(node.op) or _PAD_MODES.get(str(node.args.get("mode", "constant")))
    if mode is None:
        raise Unsupported(f"padding in mode '{node.args['mode']}'")
    rank = len(builder.shape(x))
    pads = [0] * (2 * rank)
    for position in range(len(given) // 2):
        axis = rank - 1 - position
        before, after = given[2 * position], given[2 * position + 1]
        if before < 0 or after < 0:
            x = emit_slice(builder, x, axis, max(-before, 0), builder.shape(x)[axis] - max(-after, 0))
        pads[axis], pads[axis + rank] = max(before, 0), max(after, 0)
    if mode != "constant":
        return emit_mirrored(builder, x, pads, mode)
    return builder.emit("Pad", [x], pads=tuple(pads), value=float(node.args.get("value") or 0.0)) if any(pads) else x


def _reduce(builder: GraphBuilder, node: TorchNode) -> Tensor:
    x = node.tensor()
    shape = builder.shape(x)
    axes = tuple(sorted(axis_of(axis, len(shape)) for axis in node.ints("dim"))) or tuple(range(len(shape)))
    result = builder.emit("ReduceMean", [x], axes=axes, keepdims=bool(node.args.get("keepdim")))
    if node.op == "sum":
        count = math.prod(shape[axis] for axis in axes)
        result = builder.emit("Mul", [result, Const(np.float32(count).reshape(1))])
    return result


def _extreme(builder: GraphBuilder, node: TorchNode) -> Tensor:
    """``amax`` and ``max`` along an axis (its indices are not computed); the least as the negative of the largest
    negative; of two tensors, element by element."""
    x = node.tensor()
    if "other" in node.args:
        return builder.emit("Min" if node.op == "min" else "Max", [x, node.tensor("other")])
    rank, least = len(builder.shape(x)), "min" in node.op
    axes = tuple(sorted(axis_of(axis, rank) for axis in node.ints("dim"))) or tuple(range(rank))
    result = builder.emit("ReduceMax", [builder.emit("Neg", [x]) if least else x], axes=axes,
                          keepdims=bool(node.args.get("keepdim")))
    return builder.emit("Neg", [result]) if least else result


def _index_select(builder: GraphBuilder, node: TorchNode) -> Tensor:
    x = node.tensor()
    axis = axis_of(int(node.args["dim"]), len(builder.shape(x)))
    return emit_gather(builder, x, axis, [int(index) for index in node.constant("index").array.ravel()])


def _index(builder: GraphBuilder, node: TorchNode) -> Tensor:
    """``x[:, :, rows[:, None], columns]``: positions of some axes, which do not depend on each other."""
    x = node.tensor()
    given = [(axis, index) for axis, index in enumerate(node.args["indices"]) if index is not None]
    for place, (axis, index) in enumerate(given):
        if not isinstance(index, Const) or index.array.dtype == bool:
            raise Unsupported("an index that is computed at run time, or a mask")
        if axis - place != given[0][0] or max(index.array.shape, default=1) != index.array.size or \
                (len(given) > 1 and index.array.ndim != len(given) - place):
            raise Unsupported("indices that depend on each other")
        size = builder.shape(x)[axis]
        x = emit_gather(builder, x, axis, [int(item) % size for item in index.array.ravel()])
    return x


def _upsample(builder: GraphBuilder, node: TorchNode) -> Tensor:
    x = node.tensor("input" if "input" in node.args else "self")
    height, width = builder.shape(x)[2:]
    size, factors = node.ints("output_size"), list(node.args.get("scale_factors") or ())
    if not factors:
        factors = [node.args.get("scales_h"), node.args.get("scales_w")]
    if not size:
        size = (math.floor(height * factors[0]), math.floor(width * factors[1]))
    scales = tuple(float(factor or out / old) for factor, out, old in zip(factors, size, (height, width), strict=True))
    if "nearest" in node.op:
        exact = node.op.startswith("_upsample_nearest_exact")
        mode, coordinates = "nearest", "half_pixel" if exact else "asymmetric"
        rounding = "round_prefer_ceil" if exact else "floor"
    else:
        mode, rounding = "linear", "floor"
        coordinates = "align_corners" if node.args["align_corners"] else "half_pixel"
    return builder.emit("Resize", [x], mode=mode, coordinates=coordinates, nearest_rounding=rounding, scales=scales,
                        size=tuple(size))


def _shuffle(builder: GraphBuilder, node: TorchNode) -> Tensor:
    if node.op == "pixel_shuffle":
        return depth_to_space(builder, node.tensor(), node.pair("upscale_factor"), blocks_first=False)
    return space_to_depth(builder, node.tensor(), int(node.args["downscale_factor"]), blocks_first=False)


def _channel_shuffle(builder: GraphBuilder, node: TorchNode) -> Tensor:
    n, c, h, w = builder.shape(node.tensor())
    groups = int(node.args["groups"])
    x = builder.emit("Reshape", [node.tensor()], shape=(n, groups, c // groups, h, w))
    x = builder.emit("Transpose", [x], perm=(0, 2, 1, 3, 4))
    return builder.emit("Reshape", [x], shape=(n, c, h, w))


def _expand(builder: GraphBuilder, node: TorchNode) -> Tensor:
    x = node.tensor()
    old, size = builder.shape(x), node.ints("size")
    aligned = (1,) * (len(size) - len(old)) + old
    shape = tuple(a if b == -1 else b for a, b in zip(aligned, size, strict=True))
    return x if shape == old else builder.emit("Add", [x, Const(np.zeros(shape, np.float32))])


def _filled(builder: GraphBuilder, node: TorchNode) -> Tensor:
    """A constant of the input's shape, or of a given one."""
    shape = node.ints("size") if node.op.startswith("new_") else builder.shape(node.tensor())
    number = 0.0 if "zeros" in node.op else 1.0 if "ones" in node.op else node.number("fill_value")
    return Const(np.full(shape, number, np.float32))


RULES: dict[str, Rule] = {
    **dict.fromkeys(("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"), _filled),
    **dict.fromkeys(("clone", "contiguous", "dropout", "native_dropout", "alias", "detach", "to", "_to_copy", "type_as",
                     "lift_fresh_copy", "feature_dropout", "alpha_dropout"), _identity),
    **dict.fromkeys(("view", "reshape", "_unsafe_view"), _view), "flatten": _flatten, "unflatten": _unflatten,
    "squeeze": _squeeze, "unsqueeze": _unsqueeze, "permute": _permute, "transpose": _permute, "t": _permute,
    "cat": _cat, "concat": _cat, "stack": _cat, "slice": _slice, "select": _select,
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "unbind", "unsafe_split"), _split),
    "pad": _pad, **dict.fromkeys(("constant_pad_nd", *_MIRRORED), _pad), "index_select": _index_select,
    "index": _index,
    **dict.fromkeys(("amax", "amin", "max", "min"), _extreme), "mean": _reduce, "sum": _reduce,
    **dict.fromkeys(("upsample_nearest1d", "upsample_linear1d", "_upsample_nearest_exact1d", "upsample_nearest2d",
                     "upsample_bilinear2d", "_upsample_nearest_exact2d"), lines_too(_upsample)),
    "pixel_shuffle": _shuffle, "pixel_unshuffle": _shuffle, "channel_shuffle": _channel_shuffle, "expand": _expand,
}
