"""Small translations that the ONNX and the torch importer share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from blockpunch.graph.builder import Const, GraphBuilder, Tensor, Unsupported

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


_MOST_RUNS = 64
"""Evenly spaced runs of positions that are joined; more would be a table's work."""


def as_image(builder: GraphBuilder, x: Tensor) -> str:
    """A line [N, C, L] as the image of one row [N, C, 1, L]."""
    shape = builder.shape(x)
    with builder.scoped("image"):
        return builder.emit("Reshape", [x], shape=(*shape[:2], 1, *shape[2:]))


def as_line(builder: GraphBuilder, x: Tensor) -> str:
    """An image of one row [N, C, 1, L] as the line [N, C, L]."""
    shape = builder.shape(x)
    with builder.scoped("line"):
        return builder.emit("Reshape", [x], shape=(*shape[:2], *shape[3:]))


def emit_range(builder: GraphBuilder, x: Tensor, axis: int, kept: range) -> str:
    """The positions ``kept`` of one axis."""
    if not kept:
        raise Unsupported("a slice that leaves nothing")
    return builder.emit("Slice", [x], starts=(kept.start,), stops=(kept.stop,), axes=(axis,), steps=(kept.step,))


def emit_slice(builder: GraphBuilder, x: Tensor, axis: int, start: int, stop: int, step: int = 1) -> str:
    """Cut ``start:stop:step`` (with Python's meaning) out of one axis."""
    return emit_range(builder, x, axis, range(builder.shape(x)[axis])[start:stop:step])


def emit_gather(builder: GraphBuilder, x: Tensor, axis: int, positions: Sequence[int]) -> Tensor:
    """Positions of one axis in any order, as few evenly spaced runs joined."""
    runs: list[list[int]] = []
    for position in positions:
        run = runs[-1] if runs else []
        step = run[1] - run[0] if len(run) > 1 else position - run[0] if run else 0
        if step and position == run[-1] + step:
            run.append(position)
        else:
            runs.append([position])
    if not 0 < len(runs) <= _MOST_RUNS:
        raise Unsupported(f"a gather of {len(positions)} positions in {len(runs)} evenly spaced runs")
    steps = [run[1] - run[0] if len(run) > 1 else 1 for run in runs]
    parts = [emit_range(builder, x, axis, range(run[0], run[-1] + (1 if step > 0 else -1), step))
             for run, step in zip(runs, steps, strict=True)]
    return builder.emit("Concat", parts, axis=axis) if len(parts) > 1 else parts[0]


def emit_mirrored(builder: GraphBuilder, x: Tensor, pads: Sequence[int], mode: str) -> Tensor:
    """Lengthen axes by their own elements: ``reflect`` mirrors at the ends, ``edge`` repeats the outermost.

    ``pads`` are before each axis, then after each; none is negative.
    """
    rank = len(builder.shape(x))
    for axis, before, after in zip(range(rank), pads[:rank], pads[rank:], strict=True):
        size = builder.shape(x)[axis]
        if mode == "reflect" and max(before, after) >= size:
            raise Unsupported(f"a reflection of {max(before, after)} out of {size} elements")
        if mode == "reflect":
            ends = [[range(before, 0, -1)] if before else [], [range(size - 2, size - 2 - after, -1)] if after else []]
        else:
            ends = [[range(1)] * before, [range(size - 1, size)] * after]
        parts = [[emit_range(builder, x, axis, kept) for kept in end] for end in ends]
        if any(parts):
            x = builder.emit("Concat", [*parts[0], x, *parts[1]], axis=axis)
    return x


def depth_to_space(builder: GraphBuilder, x: Tensor, block: Pair, *, blocks_first: bool) -> str:
    """Channels to blocks of pixels: ``blocks_first`` is ONNX's DCR order, else CRD, which is torch's pixel shuffle."""
    n, c, h, w = builder.shape(x)
    c //= block[0] * block[1]
    if blocks_first:
        x = builder.emit("Reshape", [x], shape=(n, *block, c, h, w))
        x = builder.emit("Transpose", [x], perm=(0, 3, 4, 1, 5, 2))
    else:
        x = builder.emit("Reshape", [x], shape=(n, c, *block, h, w))
        x = builder.emit("Transpose", [x], perm=(0, 1, 4, 2, 5, 3))
    return builder.emit("Reshape", [x], shape=(n, c, h * block[0], w * block[1]))


def space_to_depth(builder: GraphBuilder, x: Tensor, block: int, *, blocks_first: bool) -> str:
    """Pixels to channels, the inverse of :func:`depth_to_space`."""
    n, c, h, w = builder.shape(x)
    x = builder.emit("Reshape", [x], shape=(n, c, h // block, block, w // block, block))
    x = builder.emit("Transpose", [x], perm=(0, 3, 5, 1, 2, 4) if blocks_first else (0, 1, 3, 5, 2, 4))
    return builder.emit("Reshape", [x], shape=(n, c * block * block, h // block, w // block))


def emit_norm(builder: GraphBuilder, x: Tensor, axes: Sequence[int], scale: Const | None, bias: Const | None,
              eps: float) -> str:
    """Layer, group and instance norm: mean 0 and variance 1 over ``axes``, then constants that broadcast to ``x``."""
    mean = builder.emit("ReduceMean", [x], axes=tuple(axes), keepdims=True)
    centred = builder.emit("Sub", [x, mean])
    variance = builder.emit("ReduceMean", [builder.emit("Mul", [centred, centred])], axes=tuple(axes), keepdims=True)
    deviation = builder.emit("Sqrt", [builder.emit("Add", [variance, Const(np.full(1, eps, np.float32))])])
    result = builder.emit("Mul", [centred, builder.emit("Div", [Const(np.ones(1, np.float32)), deviation])])
    if scale is not None:
        result = builder.emit("Mul", [result, scale])
    return result if bias is None else builder.emit("Add", [result, bias])


def emit_group_norm(builder: GraphBuilder, x: Tensor, groups: int, scale: Const | None, bias: Const | None,
                    eps: float) -> str:
    """Mean 0 and variance 1 over each group of channels (instance norm: one channel a group), then a line per channel.

    ``scale`` and ``bias`` are [C].
    """
    shape = builder.shape(x)
    n, channels, *size = shape
    if groups < 1 or channels % groups:
        raise Unsupported(f"{channels} channels in {groups} groups")
    if groups == channels:
        result = emit_norm(builder, x, range(2, len(shape)), None, None, eps)
    else:
        rows = builder.emit("Reshape", [x], shape=(n, groups, int(np.prod(shape[1:])) // groups))
        result = builder.emit("Reshape", [emit_norm(builder, rows, (2,), None, None, eps)], shape=shape)
    for op, line in (("Mul", scale), ("Add", bias)):
        if line is not None:
            result = builder.emit(op, [result, Const(line.array.reshape(-1, *(1,) * len(size)), line.name)])
    return result


def transposed_size(inputs: Sequence[int], kernel: Sequence[int], stride: Pair, dilation: Pair,
                    extra: Pair) -> list[int]:
    """Height and width of a transposed convolution's whole result, before anything is cut off."""
    return [(inputs[a] - 1) * stride[a] + dilation[a] * (kernel[a] - 1) + 1 + extra[a] for a in (0, 1)]


def emit_transposed_conv(builder: GraphBuilder, x: Tensor, weight: Const, bias: Const | None, *, stride: Pair,
                         dilation: Pair, groups: int, begin: Pair, size: Pair) -> str:
    """A transposed convolution as a convolution that gives the stride x stride phases of the result as channels.

    Result ``o + begin`` gets input ``i`` by tap ``k`` where ``i * stride + k * dilation`` is that; so each phase is a
    convolution by some of the taps, and with zeros for the others all phases have one kernel.

    Args:
        weight: [C, filters / groups, kh, kw].
        begin: what is cut off at the top and left of the whole result.
        size: height and width of the result.
    """
    channels, per_group, *kernel = weight.array.shape
    inputs = builder.shape(x)[2:]
    spans = [(kernel[a] - 1) * dilation[a] // stride[a] + 1 for a in (0, 1)]  # taps of a phase, along each axis
    phases = np.zeros((groups, per_group, *stride, channels // groups, *spans), np.float32)
    taps = weight.array.reshape(groups, channels // groups, per_group, *kernel).transpose(0, 2, 1, 3, 4)
    for ky in range(kernel[0]):
        for kx in range(kernel[1]):
            (ty, ry), (tx, rx) = divmod(ky * dilation[0], stride[0]), divmod(kx * dilation[1], stride[1])
            phases[:, :, ry, rx, :, spans[0] - 1 - ty, spans[1] - 1 - tx] = taps[..., ky, kx]
    filters, block = groups * per_group, stride[0] * stride[1]
    # from the first row that is kept, or the last that any input reaches: all below that is bias alone
    first = [min(begin[a] // stride[a], inputs[a] + spans[a] - 2) for a in (0, 1)]
    count = [(begin[a] + size[a] - 1) // stride[a] - first[a] + 1 for a in (0, 1)]
    before = [spans[a] - 1 - first[a] for a in (0, 1)]
    after = [count[a] + spans[a] - 1 - inputs[a] - before[a] for a in (0, 1)]
    for axis in (0, 1):  # inputs that only reach what is cut off
        if min(before[axis], after[axis]) < 0:
            x = emit_slice(builder, x, axis + 2, max(-before[axis], 0), inputs[axis] - max(-after[axis], 0))
    name = f"{weight.name}.phases" if weight.name else ""
    constants = [Const(phases.reshape(filters * block, channels // groups, *spans), name)]
    if bias is not None:
        constants.append(Const(np.repeat(bias.array, block)))
    pads = tuple(max(pad, 0) for pad in (*before, *after))
    result = builder.emit("Conv", [x, *constants], stride=(1, 1), pads=pads, dilation=(1, 1), groups=groups,
                          rearranged=True)
    if block > 1:
        result = depth_to_space(builder, result, stride, blocks_first=False)
    for axis in (0, 1):
        start = begin[axis] - first[axis] * stride[axis]
        if (start, size[axis]) != (0, count[axis] * stride[axis]):
            result = emit_slice(builder, result, axis + 2, start, start + size[axis])
    return result
