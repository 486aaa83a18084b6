"""ONNX operators that move, cut, join, average or resample elements."""

from __future__ import annotations

import math

import numpy as np

from blockpunch.graph.builder import Const, GraphBuilder, Tensor, Unsupported
from blockpunch.graph.emit import (
    as_image,
    as_line,
    axis_of,
    depth_to_space,
    emit_gather,
    emit_mirrored,
    emit_slice,
    space_to_depth,
)
from blockpunch.graph.onnx_ops.node import OnnxNode, Rule


def _identity(builder: GraphBuilder, node: OnnxNode) -> list[Tensor]:
    if node.outputs > 1:
        raise Unsupported("the mask of a dropout is not computed")
    return [node.tensor(0)]


def _cast(builder: GraphBuilder, node: OnnxNode) -> list[Tensor]:
    if node.op == "Cast" and node.attrs["to"] not in (1, 10, 11, 16):  # float, float16, double, bfloat16
        raise Unsupported("a cast of activations to something other than floating point")
    return [node.tensor(0)]


def _shape_of(builder: GraphBuilder, node: OnnxNode) -> list[Tensor]:
    shape = builder.shape(node.tensor(0))
    if node.op == "Size":
        return [Const(np.array(math.prod(shape), np.int64))]
    return [Const(np.array(shape[node.attrs.get("start", 0):node.attrs.get("end", len(shape))], np.int64))]


def _reshape(builder: GraphBuilder, node: OnnxNode) -> list[Tensor]:
    x = node.tensor(0)
    old, wanted = builder.shape(x), list(node.ints("shape", 1) or ())
    if not node.attrs.get("allowzero", 0):
        wanted = [old[axis] if size == 0 and axis < len(old) else size for axis, size in enumerate(wanted)]
    if -1 in wanted:
        rest = math.prod(size for size in wanted if size != -1)
        wanted[wanted.index(-1)] = math.prod(old) // rest if rest else 0
    return [builder.emit("Reshape", [x], shape=tuple(wanted))]


def _flatten(builder: GraphBuilder, node: OnnxNode) -> list[Tensor]:
    shape = builder.shape(node.tensor(0))
    axis = int(node.attrs.get("axis", 1))
    axis = axis + len(shape) if axis < 0 else axis
    return [builder.emit("Reshape", [node.tensor(0)], shape=(math.prod(shape[:axis]), math.prod(shape[axis:])))]


def _squeeze(builder: GraphBuilder, node: OnnxNode) -> list[Tensor]:
    shape = builder.shape(node.tensor(0))
    axes = node.ints("axes", 1)
    gone = {axis for axis, size in enumerate(shape) if size == 1} if axes is None else {
        axis_of(axis, len(shape)) for axis in axes}
    return [builder.emit("Reshape", [node.tensor(0)],
                         shape=tuple(size for axis, size in enumerate(shape) if axis not in gone))]


def _unsqueeze(builder: GraphBuilder, node: OnnxNode) -> list[Tensor]:
    old = builder.shape(node.tensor(0))
    axes = node.ints("axes", 1) or ()
    rank = len(old) + len(axes)
    new = {axis_of(axis, rank) for axis in axes}
    if len(new) < len(axes):
        raise ValueError(f"axes {axes} repeat")
    rest = iter(old)
    return [builder.emit("Reshape", [node.tensor(0)],
                         shape=tuple(1 if axis in new else next(rest) for axis in range(rank)))]


def _transpose(builder: GraphBuilder, node: OnnxNode) -> list[Tensor]:
    rank = len(builder.shape(node.tensor(0)))
    return [builder.emit("Transpose", [node.tensor(0)], perm=node.ints("perm") or tuple(reversed(range(rank))))]


def _concat(builder: GraphBuilder, node: OnnxNode) -> list[Tensor]:
    tensors = [node.tensor(index) for index in range(len(node.inputs))]
    axis = axis_of(int(node.attrs["axis"]), len(builder.shape(tensors[0])))
    return [builder.emit("Concat", tensors, axis=axis)]


def _slice(builder: GraphBuilder, node: OnnxNode) -> list[Tensor]:
    x = node.tensor(0)
    shape = builder.shape(x)
    starts, stops = node.ints("starts", 1) or (), node.ints("ends", 2) or ()
    axes = node.ints("axes", 3) or tuple(range(len(starts)))
    steps = node.ints("steps", 4) or (1,) * len(starts)
    axes = tuple(axis_of(axis, len(shape)) for axis in axes)
    kept = [range(shape[axis])[start:stop:step]
            for axis, start, stop, step in zip(axes, starts, stops, steps, strict=True)]
    if not all(kept):
        raise Unsupported("a slice that leaves nothing")
    return [builder.emit("Slice", [x], starts=tuple(r.start for r in kept), stops=tuple(r.stop for r in kept),
                         axes=axes, steps=tuple(r.step for r in kept))]


def _split(builder: GraphBuilder, node: OnnxNode) -> list[Tensor]:
    x = node.tensor(0)
    shape = builder.shape(x)
    axis = axis_of(int(node.attrs.get("axis", 0)), len(shape))
    sizes = node.ints("split", 1)
    if sizes is None:
        chunk = -(-shape[axis] // node.outputs)
        sizes = tuple(min(chunk, shape[axis] - chunk * index) for index in range(node.outputs))
    results: list[Tensor] = []
    start = 0
    for size in sizes:
        results.append(emit_slice(builder, x, axis, start, start + size))
        start += size
    return results


def _gather(builder: GraphBuilder, node: OnnxNode) -> list[Tensor]:
    """Gather by constant indices: slices, joined."""
    x = node.tensor(0)
    shape = builder.shape(x)
    axis = axis_of(int(node.attrs.get("axis", 0)), len(shape))
    indices = node.constant(1, "index").array
    positions = [int(index) % shape[axis] for index in indices.ravel()]
    result = emit_gather(builder, x, axis, positions)
    if indices.ndim == 1:
        return [result]
    return [builder.emit("Reshape", [result], shape=shape[:axis] + indices.shape + shape[axis + 1:])]


def _pad(builder: GraphBuilder, node: OnnxNode) -> list[Tensor]:
    x = node.tensor(0)
    rank = len(builder.shape(x))
    given = node.ints("pads", 1) or ()
    axes = node.ints("axes", 3) or tuple(range(rank))
    pads = [0] * (2 * rank)
    for position, axis in enumerate(axes):
        pads[axis_of(axis, rank)] = given[position]
        pads[axis_of(axis, rank) + rank] = given[position + len(axes)]
    mode = node.attrs.get("mode", "constant")
    if mode not in ("constant", "reflect", "edge"):
        raise Unsupported(f"padding in mode '{mode}'")
    for axis in range(rank):  # negative padding cuts
        if pads[axis] < 0 or pads[axis + rank] < 0:
            size = builder.shape(x)[axis]
            x = emit_slice(builder, x, axis, max(-pads[axis], 0), size - max(-pads[axis + rank], 0))
    pads = [max(size, 0) for size in pads]
    if mode != "constant":
        return [emit_mirrored(builder, x, pads, mode)]
    return [builder.emit("Pad", [x], pads=tuple(pads), value=node.number("value", 2, 0.0)) if any(pads) else x]


def _reduced(builder: GraphBuilder, node: OnnxNode) -> tuple[int, ...]:
    """The axes that a reduction goes over: those given, or all, or none."""
    rank, axes = len(builder.shape(node.tensor(0))), node.ints("axes", 1)
    if axes:
        return tuple(sorted(axis_of(axis, rank) for axis in axes))
    return () if node.attrs.get("noop_with_empty_axes", 0) else tuple(range(rank))


def _reduce(builder: GraphBuilder, node: OnnxNode) -> list[Tensor]:
    x, axes = node.tensor(0), _reduced(builder, node)
    squares = node.op in ("ReduceSumSquare", "ReduceL2")
    result = builder.emit("Mul", [x, x]) if squares else x
    if not axes:
        return [builder.emit("Sqrt", [result]) if node.op == "ReduceL2" else result]
    count = math.prod(builder.shape(x)[axis] for axis in axes)
    result = builder.emit("ReduceMean", [result], axes=axes, keepdims=bool(node.attrs.get("keepdims", 1)))
    if node.op != "ReduceMean":
        result = builder.emit("Mul", [result, Const(np.float32(count).reshape(1))])
    return [builder.emit("Sqrt", [result]) if node.op == "ReduceL2" else result]


def _extreme(builder: GraphBuilder, node: OnnxNode) -> list[Tensor]:
    """ReduceMax, and ReduceMin as the negative maximum of negatives."""
    x, axes = node.tensor(0), _reduced(builder, node)
    if not axes:
        return [x]
    least = node.op == "ReduceMin"
    result = builder.emit("ReduceMax", [builder.emit("Neg", [x]) if least else x], axes=axes,
                          keepdims=bool(node.attrs.get("keepdims", 1)))
    return [builder.emit("Neg", [result]) if least else result]


def _resize(builder: GraphBuilder, node: OnnxNode) -> list[Tensor]:
    x = node.tensor(0)
    shape = builder.shape(x)
    rank = len(shape)
    upsample = node.op == "Upsample"
    mode = str(node.attrs.get("mode", "nearest"))
    coordinates = "asymmetric" if upsample else str(node.attrs.get("coordinate_transformation_mode", "half_pixel"))
    rounding = "floor" if upsample else str(node.attrs.get("nearest_mode", "round_prefer_floor"))
    if rank not in (3, 4) or mode not in ("nearest", "linear") or coordinates not in (
            "asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel"):
        raise Unsupported(f"a resize of {shape} in mode '{mode}' with '{coordinates}' coordinates")
    if node.attrs.get("antialias", 0) or node.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Unsupported("a resize with antialias or an aspect ratio policy")
    axes = node.ints("axes") or tuple(range(rank))
    scales, sizes = np.ones(rank), list(shape)
    given = node.optional(1 if upsample else 2)
    if "scales" in node.attrs:  # Upsample before opset 9
        given = Const(np.array(node.attrs["scales"]))
    if isinstance(given, Const) and given.array.size:
        for axis, scale in zip(axes, given.array.ravel(), strict=True):
            scales[axis], sizes[axis] = float(scale), math.floor(shape[axis] * float(scale))
    else:
        for axis, size in zip(axes, node.ints("sizes", 3) or (), strict=True):
            scales[axis], sizes[axis] = size / shape[axis], size
    if sizes[:2] != list(shape[:2]):
        raise Unsupported("a resize of the batch or of the channels")
    result = builder.emit("Resize", [x if rank == 4 else as_image(builder, x)], mode=mode, coordinates=coordinates,
                          nearest_rounding=rounding, scales=(1.0, *(float(scale) for scale in scales[2:]))[-2:],
                          size=(1, *sizes[2:])[-2:])
    return [result if rank == 4 else as_line(builder, result)]


def _shuffle(builder: GraphBuilder, node: OnnxNode) -> list[Tensor]:
    x, block = node.tensor(0), int(node.attrs["blocksize"])
    if len(builder.shape(x)) != 4:
        raise Unsupported(f"only images [N, C, H, W] are supported, this has shape {builder.shape(x)}")
    if node.op == "SpaceToDepth":
        return [space_to_depth(builder, x, block, blocks_first=True)]
    return [depth_to_space(builder, x, (block, block), blocks_first=node.attrs.get("mode", "DCR") == "DCR")]


def _expand(builder: GraphBuilder, node: OnnxNode) -> list[Tensor]:
    x = node.tensor(0)
    shape = np.broadcast_shapes(builder.shape(x), node.ints("shape", 1) or ())
    return [x if shape == builder.shape(x) else builder.emit("Add", [x, Const(np.zeros(shape, np.float32))])]


RULES: dict[str, Rule] = {
    "Identity": _identity, "Dropout": _identity, "Cast": _cast, "CastLike": _cast, "Shape": _shape_of,
    "Size": _shape_of, "Reshape": _reshape, "Flatten": _flatten, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze,
    "Transpose": _transpose, "Concat": _concat, "Slice": _slice, "Split": _split, "Gather": _gather, "Pad": _pad,
    "Resize": _resize, "Upsample": _resize, "DepthToSpace": _shuffle,
    "SpaceToDepth": _shuffle, "Expand": _expand,
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2"), _reduce),
    "ReduceMax": _extreme, "ReduceMin": _extreme,
}
