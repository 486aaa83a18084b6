"""Fully connected layers and convolutions with one output pixel: dot products.

For one input the bytes of the weights are the bound: they are read once, from several places at a time. For many inputs
(rows) a tile of rows shares every weight that is loaded.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from blockpunch.compiler.forms.base import BROADCAST_CYCLES, FMA_LATENCY, FMA_PER_CYCLE, column_cycles
from blockpunch.compiler.kernels.base import (
    Context,
    Kernel,
    Step,
    biases,
    call,
    core_inputs,
    epilogue_code,
    epilogue_name,
    kernel_epilogue,
    operands,
    render,
    together,
)
from blockpunch.compiler.layout import View, is_map
from blockpunch.compiler.legalise import as_matrix
from blockpunch.compiler.packing import Floats, Ints, Segment, pack, row_orders, stored_columns
from blockpunch.compiler.program import StepInfo
from blockpunch.graph.ir import Array, Graph, Node
from blockpunch.target import Target

_HEIGHTS = (1, 2, 4, 8, 16, 32)
_MOST_ROWS = 8  # at a time; each needs a pointer
_BYTES_PER_CYCLE, _CACHED_BYTES_PER_CYCLE = 12.0, 24.0  # weights from the last-level cache or memory, and again


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
        rows = prod(y.shape) // len(matrix)
        order, height, cycles = _choose(matrix, rows, ctx.target)
        segments = pack(matrix, order, height)
        emitted = [part for s in segments for part in _segment(node, s, offsets, rows, x, y, ctx)]
        stored, kept = sum(s.panel.size for s in segments), int(np.count_nonzero(matrix))
        dense = -(-len(matrix) // 16) * _cycles(np.array([matrix.shape[1]]), 16, rows, ctx.target)
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


def _choose(matrix: Floats, rows: int,
            target: Target) -> tuple[np.ndarray[tuple[int], np.dtype[np.intp]], int, float]:
    best: tuple[np.ndarray[tuple[int], np.dtype[np.intp]], int, float] | None = None
    nonzero = matrix != 0
    for order in row_orders(matrix, [height for height in _HEIGHTS if height <= len(matrix)]):
        stored = stored_columns(nonzero[order.rows], order.height)
        cycles = sum(_cycles(counts, height, rows, target) for height, counts in stored)
        if best is None or cycles < 0.995 * best[2]:
            best = order.rows, order.height, cycles
    assert best is not None
    return best


def _tiles(rows: int, height: int, target: Target) -> list[tuple[int, int]]:
    """(rows of a tile, how many such tiles): as many rows as registers hold the sums of, all tiles nearly alike."""
    most = min(max((target.registers - 4) // -(-height // target.vector_floats), 1), _MOST_ROWS)
    tiles = -(-rows // most)
    size = -(-rows // tiles)
    larger = rows - tiles * (size - 1)
    return [(size, larger)] + ([(size - 1, tiles - larger)] if tiles > larger else [])


def _chunk(size: int, tiles: int, segment: Segment, in_row: int, out_row: int, target: Target) -> int:
    """How many of the ``tiles`` of ``size`` rows go through all row blocks before the next ones follow.

    All of them, and the inputs are read again for each row block; or as many as stay in the second-level cache with
    their results, and the weights are read again for each chunk: whichever reads less from beyond that cache.
    """
    inputs, weights, cached = 4 * size * tiles * in_row, segment.panel.nbytes, target.l2_bytes // 2
    few = min(max(cached // 2 // (4 * size * (in_row + out_row)), 1), tiles)
    inputs_again = inputs * (segment.blocks - 1) if inputs > cached else 0
    weights_again = weights * (-(-tiles // few) - 1) if weights > cached else 0
    return few if weights_again < inputs_again else tiles


def _cycles(counts: Ints, height: int, rows: int, target: Target) -> float:
    """Modelled cycles of row blocks: streamed bytes (a weight each, an index per column) against instructions."""
    total, column_bytes = float(np.sum(counts)), 4 * (height + 1)
    found = (12.0 + 1.5 * height * rows) * len(counts)
    if rows == 1:
        return found + max(total * column_bytes / _BYTES_PER_CYCLE, total * max(height / 16, 1.2))
    vectors = -(-height // target.vector_floats)
    for size, tiles in _tiles(rows, height, target):
        loads = max((vectors + size) * BROADCAST_CYCLES, column_bytes / _CACHED_BYTES_PER_CYCLE)
        found += tiles * total * column_cycles(vectors * size / FMA_PER_CYCLE, loads, FMA_LATENCY)
    return found + total * column_bytes / _BYTES_PER_CYCLE


def _reading(target: Target) -> tuple[int, list[tuple[int, int]]]:
    """(row blocks at a time, [(floats that weights are fetched ahead, into the cache of which level)]), for one row.

    What reads fastest from memory was measured and differs: AMD Zen 1 reads 18.4 GB/s by three streams, 12.6 by one,
    and gains nothing by fetching ahead; Zen 5 40 GB/s by two that fetch once, 37 by three that fetch in two steps;
    Intel Emerald Rapids 27 in two steps, 19 in one.
    """
    if target.isa != "avx512":
        return 3, []
    return (3, [(4096, 2), (256, 1)]) if target.l2_bytes >= 2 << 20 else (2, [(1024, 1)])


def _segment(node: Node, segment: Segment, offsets: Ints, rows: int, x: View, y: View,
             ctx: Context) -> list[tuple[int, str, dict[str, str]]]:
    """(units, statements, helpers) of each size of tiles of rows."""
    residuals, height, vl = [ctx.view(name) for name in operands(node)], segment.height, ctx.target.vector_floats
    place, filters = _place(offsets), ctx.graph.shape(core_inputs(node)[1])[0]
    in_row = x.strides[0] if node.op == "Conv" else x.shape[-1]
    vector = height % vl == 0 and bool((np.diff(segment.filters.reshape(-1, height)) == 1).all())
    fields = {
        "w": ctx.table("float", segment.panel),
        "bias": ctx.table("float", biases(node, ctx, filters)[segment.filters]),
        "column": ctx.table("void", offsets[segment.columns].astype(place)),
        "start": ctx.table("int32_t", segment.starts),
        "filter": ctx.table("int32_t", segment.filters),
        "in_row": in_row, "out_row": filters,
    }
    count = range(len(residuals))
    shared: dict[str, Any] = {
        "height": height, "lanes": min(height, vl), "parts": -(-height // vl), "place": f"{place.name}_t",
        "loads": len(residuals), "vector": vector, "vector_epilogue": kernel_epilogue(node.epilogue),
        "epilogue": epilogue_code(node.epilogue, "s_", [f"r{i}[row * L->out_row + f]" for i in count])}
    kind = f"_{height}_{place.itemsize}{'_side_by_side' if vector else ''}{epilogue_name(node.epilogue)}"
    if rows == 1:
        name = f"dot{kind}"
        streams, ahead = _reading(ctx.target)
        helper = render("dot.c.j2", name=name, streams=streams, ahead=ahead, unroll=max(1, min(4, 4 * vl // height)),
                        **shared)
        return [(segment.blocks, call(name, "dot_layer", fields, [x, y, *residuals], ctx), {name: helper})]
    found, first = [], 0
    for size, tiles in _tiles(rows, height, ctx.target):
        name = f"dot_{size}_rows{kind}"
        helper = render("dot_rows.c.j2", name=name, rows=size, **shared)
        more = {**fields, "groups": tiles, "first_row": first, "blocks": segment.blocks,
                "chunk": _chunk(size, tiles, segment, in_row, filters, ctx.target)}
        found.append((segment.blocks * tiles, call(name, "dot_layer", more, [x, y, *residuals], ctx), {name: helper}))
        first += size * tiles
    return found
