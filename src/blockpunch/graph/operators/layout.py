"""Operators that move, cut, join, average or resample elements."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from blockpunch.graph.ir import Array, Node
from blockpunch.graph.operators.table import Operator, Shape, require


def _reshape_infer(node: Node, shapes: Sequence[Shape]) -> list[Shape]:
    shape: Shape = node.attrs["shape"]
    require(np.prod(shape, dtype=np.int64) == np.prod(shapes[0], dtype=np.int64), node,
            f"{shapes[0]} cannot be reshaped to {shape}")
    return [shape]


def _reshape(node: Node, arrays: Sequence[Array]) -> list[Array]:
    return [arrays[0].reshape(node.attrs["shape"])]


def _transpose_infer(node: Node, shapes: Sequence[Shape]) -> list[Shape]:
    perm = node.attrs["perm"]
    require(sorted(perm) == list(range(len(shapes[0]))), node, f"{perm} is no permutation of the axes of {shapes[0]}")
    return [tuple(shapes[0][axis] for axis in perm)]


def _transpose(node: Node, arrays: Sequence[Array]) -> list[Array]:
    return [arrays[0].transpose(node.attrs["perm"])]


def _concat_infer(node: Node, shapes: Sequence[Shape]) -> list[Shape]:
    axis, first = node.attrs["axis"], shapes[0]
    require(0 <= axis < len(first), node, f"no axis {axis} in {first}")
    for shape in shapes[1:]:
        require(len(shape) == len(first) and all(a == b for i, (a, b) in enumerate(zip(first, shape, strict=True))
                                                 if i != axis),
                node, f"{first} and {shape} cannot be joined along axis {axis}")
    return [(*first[:axis], sum(shape[axis] for shape in shapes), *first[axis + 1:])]


def _concat(node: Node, arrays: Sequence[Array]) -> list[Array]:
    return [np.concatenate(list(arrays), axis=node.attrs["axis"])]


def _ranges(node: Node, shape: Shape) -> list[range]:
    """For every axis of ``shape`` the positions that a Slice keeps."""
    ranges = [range(size) for size in shape]
    attrs = node.attrs
    for start, stop, axis, step in zip(attrs["starts"], attrs["stops"], attrs["axes"], attrs["steps"], strict=True):
        require(0 <= axis < len(shape) and step != 0, node, f"no axis {axis} in {shape}, or a step of zero")
        kept = range(start, stop, step)
        require(len(kept) > 0 and min(kept) >= 0 and max(kept) < shape[axis], node,
                f"positions {start}:{stop}:{step} leave nothing, or more than there is, of axis {axis} of {shape}")
        ranges[axis] = kept
    return ranges


def _slice_infer(node: Node, shapes: Sequence[Shape]) -> list[Shape]:
    return [tuple(len(kept) for kept in _ranges(node, shapes[0]))]


def _slice(node: Node, arrays: Sequence[Array]) -> list[Array]:
    index = (slice(r.start, r.stop if r.stop >= 0 else None, r.step) for r in _ranges(node, arrays[0].shape))
    return [arrays[0][tuple(index)]]


def _pad_infer(node: Node, shapes: Sequence[Shape]) -> list[Shape]:
    x, pads = shapes[0], node.attrs["pads"]
    require(len(pads) == 2 * len(x) and min(pads, default=0) >= 0, node, f"pads {pads} do not fit {x}")
    return [tuple(before + size + after
                  for before, size, after in zip(pads[:len(x)], x, pads[len(x):], strict=True))]


def _pad(node: Node, arrays: Sequence[Array]) -> list[Array]:
    rank, pads = arrays[0].ndim, node.attrs["pads"]
    return [np.pad(arrays[0], list(zip(pads[:rank], pads[rank:], strict=True)), constant_values=node.attrs["value"])]


def _reduce_infer(node: Node, shapes: Sequence[Shape]) -> list[Shape]:
    axes = node.attrs["axes"]
    require(all(0 <= axis < len(shapes[0]) for axis in axes), node, f"no axes {axes} in {shapes[0]}")
    if node.attrs["keepdims"]:
        return [tuple(1 if axis in axes else size for axis, size in enumerate(shapes[0]))]
    return [tuple(size for axis, size in enumerate(shapes[0]) if axis not in axes)]


def _reduce_mean(node: Node, arrays: Sequence[Array]) -> list[Array]:
    return [np.asarray(arrays[0].mean(axis=node.attrs["axes"], keepdims=node.attrs["keepdims"], dtype=np.float32))]


def _reduce_max(node: Node, arrays: Sequence[Array]) -> list[Array]:
    return [np.asarray(arrays[0].max(axis=node.attrs["axes"], keepdims=node.attrs["keepdims"]))]


def _resize_infer(node: Node, shapes: Sequence[Shape]) -> list[Shape]:
    x, size = shapes[0], node.attrs["size"]
    require(len(x) == 4 and len(size) == 2 and min(size) > 0, node, f"cannot resize {x} to {size}")
    require(node.attrs["mode"] in ("nearest", "linear"), node, f"unknown mode '{node.attrs['mode']}'")
    require(node.attrs["coordinates"] in ("asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel"), node,
            f"unknown coordinates '{node.attrs['coordinates']}'")
    require(node.attrs["mode"] == "linear" or node.attrs["nearest_rounding"] in _ROUNDING, node,
            f"unknown rounding '{node.attrs['nearest_rounding']}'")
    return [(*x[:2], *size)]


_ROUNDING: dict[str, Callable[[Array], Array]] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_floor": lambda position: np.asarray(np.ceil(position - np.float32(0.5))),
    "round_prefer_ceil": lambda position: np.asarray(np.floor(position + np.float32(0.5))),
}


def resize_positions(coordinates: str, size: int, out: int, scale: float) -> Array:
    """Where each of ``out`` samples lies on an axis of ``size`` pixels (float32, not yet clipped to the image)."""
    index = np.arange(out, dtype=np.float32)
    half = np.float32(0.5)
    if coordinates == "align_corners":
        return index * np.float32(size - 1) / np.float32(max(out - 1, 1))
    if coordinates == "asymmetric":
        return index / np.float32(scale)
    if coordinates == "pytorch_half_pixel" and out == 1:
        return index
    return (index + half) / np.float32(scale) - half


def resize_nearest(coordinates: str, rounding: str, size: int, out: int, scale: float) -> Array:
    """The source pixel of each of ``out`` samples (int64)."""
    position = _ROUNDING[rounding](resize_positions(coordinates, size, out, scale))
    return np.clip(position, 0, size - 1).astype(np.int64)


def resize_linear(coordinates: str, size: int, out: int, scale: float) -> tuple[Array, Array, Array]:
    """Left pixel, right pixel (int64) and weight of the right one (float32) for each of ``out`` samples."""
    position = np.clip(resize_positions(coordinates, size, out, scale), 0, size - 1)
    left = np.floor(position).astype(np.int64)
    return left, np.minimum(left + 1, size - 1), (position - left).astype(np.float32)


def _resize(node: Node, arrays: Sequence[Array]) -> list[Array]:
    x, attrs = arrays[0], node.attrs
    for axis, out, scale in zip((2, 3), attrs["size"], attrs["scales"], strict=True):
        size = x.shape[axis]
        if attrs["mode"] == "nearest":
            x = x.take(resize_nearest(attrs["coordinates"], attrs["nearest_rounding"], size, out, scale), axis=axis)
            continue
        left, right, weight = resize_linear(attrs["coordinates"], size, out, scale)
        weight = weight.reshape(-1, 1) if axis == 2 else weight
        x = x.take(left, axis=axis) * (1 - weight) + x.take(right, axis=axis) * weight
    return [x]


LAYOUT_OPERATORS = (
    Operator("Reshape", (1, 1), _reshape_infer, _reshape, attributes=("shape",)),
    Operator("Transpose", (1, 1), _transpose_infer, _transpose, attributes=("perm",)),
    Operator("Concat", (1, 10 ** 6), _concat_infer, _concat, attributes=("axis",)),
    Operator("Slice", (1, 1), _slice_infer, _slice, attributes=("starts", "stops", "axes", "steps")),
    Operator("Pad", (1, 1), _pad_infer, _pad, attributes=("pads", "value")),
    Operator("ReduceMean", (1, 1), _reduce_infer, _reduce_mean, attributes=("axes", "keepdims")),
    Operator("ReduceMax", (1, 1), _reduce_infer, _reduce_max, attributes=("axes", "keepdims")),
    Operator("Resize", (1, 1), _resize_infer, _resize,
             attributes=("mode", "coordinates", "nearest_rounding", "scales", "size")),
)
