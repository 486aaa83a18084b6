"""Pixels along the vectors: tiles of P filters x v pixel vectors, weights broadcast; the form that takes any zeros.

One column of a tile of ``r`` filters x ``v`` vectors is bound by its multiply-adds (two per cycle), by the latency of
one multiply-add, or by its loads: ``v`` input vectors and ``r`` broadcast weights. What an input vector costs depends
on where the *slab* of a chunk lives, that is all input channels of the chunk's pixels, which every row block sweeps
again; a smaller chunk has a smaller slab, but streams all the weights once more. The constants were fitted to layers
measured inside running networks, on an AVX-512 core; they only have to *order* the choices. No sparsity threshold is
involved.
"""

from __future__ import annotations

from typing import Any

from blockpunch.compiler.forms.base import (
    BROADCAST_CYCLES,
    FMA_LATENCY,
    FMA_PER_CYCLE,
    TILE_CYCLES,
    Layer,
    Schedule,
    line_cycles,
    stream_bytes,
)
from blockpunch.compiler.forms.blocked import PREFETCH, BlockedForm
from blockpunch.compiler.kernels.base import Context, epilogue_name, kernel_epilogue, operands, pixel_masks, render
from blockpunch.compiler.packing import Ints, row_orders, stored_columns
from blockpunch.compiler.program import Choice
from blockpunch.target import Target

HEIGHTS = (1, 2, 4, 6, 8, 12, 16)
_STORE_CYCLES = 1.2


class Pixels(BlockedForm):
    """An input row is loaded once for all P filters of a block, one index walks input and output alike."""

    name = "pixels"
    tile_unit = "vectors"

    def schedules(self, layer: Layer) -> list[Schedule]:
        """Every block height with tiles that fill the registers, and chunks of one tile, of a few, of the plane."""
        nonzero = layer.weights != 0
        found = []
        for order in row_orders(layer.weights, [height for height in HEIGHTS if height <= len(layer.weights)]):
            most = min(_tile_vectors(layer.target, order.height), layer.vectors)
            if most == 0:
                continue
            segments = list(stored_columns(nonzero[order.rows], order.height))
            for tile in sorted({most, max(most - 1, 1), max(most * 2 // 3, 1)}, reverse=True):
                for chunk in _chunks(tile, layer):
                    choice = Choice(self.name, order.height, tile, chunk, order.grouped)
                    found.append(Schedule(choice, order.rows, _cycles(segments, tile, chunk, layer)))
        return found

    def kernel(self, layer: Layer, height: int, choice: Choice, fields: dict[str, Any],
               ctx: Context) -> tuple[str, str, int]:
        """Tiles of ``height`` filters x 1..tile vectors, chunk by chunk."""
        plane, epilogue, width = layer.y.plane, layer.node.epilogue, layer.target.vector_floats
        assert plane
        masked, chunks = plane.zero_margin, -(-layer.vectors // choice.chunk)
        mask = ctx.table("uint16_t", pixel_masks(plane, layer.rows, layer.vectors, width)) if masked else "0"
        fields |= {"mask": mask, "chunks": chunks, "chunk": choice.chunk, "vectors": layer.vectors,
                   "tail": plane.stride - plane.origin - layer.vectors * width}
        name = f"conv_{height}x{choice.tile}{epilogue_name(epilogue)}{'_margin' if masked else ''}"
        text = render("conv.c.j2", name=name, height=height, vectors=choice.tile, width=width, masked=masked,
                      loads=len(operands(layer.node)), prefetch=PREFETCH, by_lane=layer.target.isa == "neon",
                      epilogue=kernel_epilogue(epilogue))
        return name, text, chunks


def _tile_vectors(target: Target, height: int) -> int:
    """Most pixel vectors of a tile of ``height`` filters: accumulators, inputs and one weight are in registers."""
    if height == 1:
        return min(8, (target.registers - 1) // 2)
    return max((target.registers - 1) // (height + 1), 0)


def _chunks(tile: int, layer: Layer) -> list[int]:
    """Chunks of one tile, of a few, of the whole plane; equal parts, so that no chunk is left with a stub."""
    counts = {-(-layer.vectors // (tile * n)) for n in (1, 4, 16)} | {1}
    if layer.threads > 1:
        counts = {max(c, min(layer.threads, layer.vectors)) for c in counts}
    return sorted({-(-layer.vectors // c) for c in counts})


def _cycles(segments: list[tuple[int, Ints]], tile: int, chunk: int, layer: Layer) -> float:
    target = layer.target
    lines = layer.channels * (chunk * target.vector_floats / 16 + 1)  # the slab, in cache lines of 64 bytes
    load = line_cycles(64 * lines, target) * max(target.vector_floats / 16, 0.5)
    chunks = -(-layer.vectors // chunk)
    weight_bytes = sum(float(counts.sum()) * 4 * (height + 1) for height, counts in segments)
    total = chunks * weight_bytes / stream_bytes(weight_bytes + 64 * lines, target)
    for height, counts in segments:
        columns = float(counts.sum())
        for size, times in _tile_sizes(layer.vectors, chunk, tile):
            per_column = max(height * size / FMA_PER_CYCLE, FMA_LATENCY, load * size + BROADCAST_CYCLES * height)
            total += times * (columns * per_column + len(counts) * (TILE_CYCLES + _STORE_CYCLES * height * size))
    return total


def _tile_sizes(vectors: int, chunk: int, tile: int) -> list[tuple[int, int]]:
    """(vectors, how many tiles) over the plane, as the kernel splits its chunks."""
    sizes: dict[int, int] = {}
    for length, times in ((chunk, vectors // chunk), (vectors % chunk, 1)):
        if length and times:
            tiles = -(-length // tile)
            small, wide = divmod(length, tiles)
            sizes[small + 1] = sizes.get(small + 1, 0) + times * wide
            sizes[small] = sizes.get(small, 0) + times * (tiles - wide)
    return [(size, times) for size, times in sizes.items() if size and times]
