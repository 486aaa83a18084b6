"""Fully connected layers and convolutions with one output pixel: dot products bound by the bytes of their weights."""

from __future__ import annotations

from math import prod

import numpy as np

from blockpunch.compiler.kernels.base import (
    Context,
    Kernel,
    Step,
    biases,
    call,
    core_inputs,
    epilogue_code,
    epilogue_name,
    operands,
    render,
    together,
)
from blockpunch.compiler.layout import View, is_map
from blockpunch.compiler.legalise import as_matrix
from blockpunch.compiler.packing import Floats, Ints, Segment, pack, row_orders, stored_columns
from blockpunch.compiler.program import StepInfo
from blockpunch.graph.ir import Array, Graph, Node

_HEIGHTS = (1, 2, 4, 8, 16, 32)
_BYTES_PER_CYCLE = 12.0  # weights stream from the last-level cache or from memory


class Dot(Kernel):
    """One weight is used once per input row: store few bytes per kept weight, and stream them."""

    kind = "dot"

    def accepts(self, node: Node, graph: Graph) -> bool:
        """Linear layers, and convolutions whose result is a single pixel."""
        return node.op == "Linear" or (node.op == "Conv" and not is_map(graph.shape(node.outputs[0])))

    def lower(self, node: Node, ctx: Context) -> Step:
        """Pack in the block height that needs the fewest modelled cycles."""
        x, y = ctx.view(node.inputs[0]), ctx.view(node.outputs[0])
        weights = ctx.graph.constants[node.inputs[1]]
        matrix, offsets = _columns(node, weights, x)
        order, height, cycles = _choose(matrix)
        segments = pack(matrix, order, height)
        rows = prod(y.shape) // len(matrix)
        emitted = [_segment(node, s, offsets, rows, x, y, ctx) for s in segments]
        stored, kept = sum(s.panel.size for s in segments), int(np.count_nonzero(matrix))
        dense = -(-len(matrix) // 16) * _cycles(np.array([matrix.shape[1]]), 16)
        reason = "dense: no zeros in the weights" if kept == weights.size else \
            f"{dense / cycles:.1f}x fewer modelled cycles than dense; {stored - kept} zeros stored to fill blocks"
        info = StepInfo(node.name, self.kind, node.path, macs=weights.size * rows, kept_macs=kept * rows,
                        weight_bytes=sum(s.panel.nbytes + s.columns.size * _place(offsets).itemsize for s in segments),
                        packing=f"{height} filters, {stored / weights.size:.0%} of the weights stored", reason=reason)
        units, body = together([(u, b) for u, b, _ in emitted])
        return Step(info, units, body,
                    reads=tuple(ctx.view(n).root for n in (node.inputs[0], *operands(node))), writes=(y.root,),
                    helpers={"dot_layer": render("dot_layer.c.j2"),
                             **{k: t for _, _, h in emitted for k, t in h.items()}})


def _columns(node: Node, weights: Array, x: View) -> tuple[Floats, Ints]:
    """The weight matrix, without taps outside the map, and the place of each column in the input row."""
    if node.op == "Linear":
        return np.ascontiguousarray(weights), np.arange(weights.shape[1], dtype=np.int32)
    matrix = as_matrix(weights, node.attrs["groups"])
    channels = weights.shape[1] * node.attrs["groups"]
    taps = np.array([t[1:] for t in node.attrs["taps"]])
    inside = ((taps >= 0) & (taps < x.shape[2:])).all(axis=1)
    offsets = np.arange(channels)[:, None] * x.strides[1] + (taps @ x.strides[2:])
    keep = np.tile(inside, channels)
    return np.ascontiguousarray(matrix[:, keep]), offsets.ravel()[keep].astype(np.int32)


def _place(offsets: Ints) -> np.dtype[np.uint16] | np.dtype[np.int32]:
    """The smallest type for the places of inputs: bytes are what bounds these layers."""
    return np.dtype(np.uint16) if offsets.max(initial=0) < 1 << 16 else np.dtype(np.int32)


def _choose(matrix: Floats) -> tuple[np.ndarray[tuple[int], np.dtype[np.intp]], int, float]:
    best: tuple[np.ndarray[tuple[int], np.dtype[np.intp]], int, float] | None = None
    nonzero = matrix != 0
    for order in row_orders(matrix, [height for height in _HEIGHTS if height <= len(matrix)]):
        cycles = sum(_cycles(counts, p) for p, counts in stored_columns(nonzero[order.rows], order.height))
        if best is None or cycles < 0.995 * best[2]:
            best = order.rows, order.height, cycles
    assert best is not None
    return best


def _cycles(counts: Ints, height: int) -> float:
    """Modelled cycles of row blocks: streamed bytes (a weight each, an index per column) against instructions."""
    total = float(np.sum(counts))
    return max(total * 4 * (height + 1) / _BYTES_PER_CYCLE, total * max(height / 16, 1.2)) + 12.0 * len(counts) + \
        1.5 * len(counts) * height


def _segment(node: Node, segment: Segment, offsets: Ints, rows: int, x: View, y: View,
             ctx: Context) -> tuple[int, str, dict[str, str]]:
    residuals = [ctx.view(name) for name in operands(node)]
    place = _place(offsets)
    name = f"dot_{segment.height}_{place.itemsize}{epilogue_name(node.epilogue)}"
    loads = [f"res{i}[row * L->out_row + f]" for i in range(len(residuals))]
    helper = render("dot.c.j2", name=name, height=segment.height, place=f"{place.name}_t",
                    loads=len(residuals), epilogue=epilogue_code(node.epilogue, "s_", loads))
    filters = ctx.graph.shape(core_inputs(node)[1])[0]
    fields = {
        "w": ctx.table("float", segment.panel),
        "bias": ctx.table("float", biases(node, ctx, filters)[segment.filters]),
        "column": ctx.table("void", offsets[segment.columns].astype(place)),
        "start": ctx.table("int32_t", segment.starts),
        "filter": ctx.table("int32_t", segment.filters), "blocks": segment.blocks,
        "in_row": x.strides[0] if node.op == "Conv" else x.shape[-1], "out_row": filters,
    }
    return rows * segment.blocks, call(name, "dot_layer", fields, [x, y, *residuals], ctx), {name: helper}
