"""Small translations that the ONNX and the torch importer share."""

from __future__ import annotations

from blockpunch.graph.builder import GraphBuilder, Tensor, Unsupported

Pair = tuple[int, int]
Pads = tuple[int, int, int, int]


def axis_of(axis: int, rank: int) -> int:
    """A non-negative axis."""
    if not -rank <= axis < rank:
        raise Unsupported(f"axis {axis} of a tensor with {rank} axes")
    return axis % rank


def ceil_pads(size: tuple[int, ...], kernel: Pair, stride: Pair, dilation: Pair, pads: Pads) -> Pads:
    """Pads that make the usual rounding down give what ``ceil_mode`` asks for."""
    grown = list(pads)
    for axis in (0, 1):
        span = dilation[axis] * (kernel[axis] - 1) + 1
        out = -(-(size[axis] + pads[axis] + pads[axis + 2] - span) // stride[axis]) + 1
        if (out - 1) * stride[axis] >= size[axis] + pads[axis]:  # the last window would start in the padding
            out -= 1
        grown[axis + 2] = max(pads[axis + 2], (out - 1) * stride[axis] + span - size[axis] - pads[axis])
    return grown[0], grown[1], grown[2], grown[3]


def emit_pool(builder: GraphBuilder, average: bool, x: Tensor, kernel: Pair, stride: Pair, pads: Pads, *,
              dilation: Pair = (1, 1), ceil: bool = False,
              count_include_pad: bool = False) -> str:
    """A pool with ``ceil_mode`` turned into explicit pads."""
    grown = ceil_pads(builder.shape(x)[2:], kernel, stride, dilation, pads) if ceil else pads
    if not average:
        return builder.emit("MaxPool", [x], kernel=kernel, stride=stride, pads=grown, dilation=dilation)
    if dilation != (1, 1):
        raise Unsupported(f"an average pool with dilation {dilation}")
    if count_include_pad and grown != pads:  # given pads count as zeros, those of ceil_mode do not count
        x = builder.emit("Pad", [x], pads=(0, 0, *pads[:2], 0, 0, *pads[2:]), value=0.0)
        pads, grown = (0, 0, 0, 0), (0, 0, grown[2] - pads[2], grown[3] - pads[3])
    return builder.emit("AveragePool", [x], kernel=kernel, stride=stride, pads=grown,
                        count_include_pad=count_include_pad and grown == pads and any(grown))


def emit_slice(builder: GraphBuilder, x: Tensor, axis: int, start: int, stop: int, step: int = 1) -> str:
    """Cut ``start:stop:step`` (with Python's meaning) out of one axis."""
    kept = range(builder.shape(x)[axis])[start:stop:step]
    return builder.emit("Slice", [x], starts=(kept.start,), stops=(kept.stop,), axes=(axis,), steps=(kept.step,))


def depth_to_space(builder: GraphBuilder, x: Tensor, block: int, *, blocks_first: bool) -> str:
    """Channels to pixels: ``blocks_first`` is ONNX's DCR order, otherwise CRD, which is torch's pixel shuffle."""
    n, c, h, w = builder.shape(x)
    c //= block * block
    if blocks_first:
        x = builder.emit("Reshape", [x], shape=(n, block, block, c, h, w))
        x = builder.emit("Transpose", [x], perm=(0, 3, 4, 1, 5, 2))
    else:
        x = builder.emit("Reshape", [x], shape=(n, c, block, block, h, w))
        x = builder.emit("Transpose", [x], perm=(0, 1, 4, 2, 5, 3))
    return builder.emit("Reshape", [x], shape=(n, c, h * block, w * block))


def space_to_depth(builder: GraphBuilder, x: Tensor, block: int, *, blocks_first: bool) -> str:
    """Pixels to channels, the inverse of :func:`depth_to_space`."""
    n, c, h, w = builder.shape(x)
    x = builder.emit("Reshape", [x], shape=(n, c, h // block, block, w // block, block))
    x = builder.emit("Transpose", [x], perm=(0, 3, 5, 1, 2, 4) if blocks_first else (0, 1, 3, 5, 2, 4))
    return builder.emit("Reshape", [x], shape=(n, c * block * block, h // block, w // block))
