"""Pixels along the vectors: tiles of P filters x v pixel vectors, weights broadcast; the form that takes any zeros.

One column of a tile of ``r`` filters x ``v`` vectors is bound by its multiply-adds (two per cycle), by the latency of
one multiply-add, or by its loads: ``v`` input vectors and ``r`` broadcast weights. What an input vector costs depends
on where the *slab* of a chunk lives, that is all input channels of the chunk's pixels, which every row block sweeps
again; a smaller chunk has a smaller slab, but streams all the weights once more. The constants were fitted to layers
measured inside running networks, on an AVX-512 core; they only have to *order* the choices. No sparsity threshold is
involved.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from blockpunch.compiler.forms.base import (
    BROADCAST_CYCLES,
    FMA_LATENCY,
    FMA_PER_CYCLE,
    TILE_CYCLES,
    Layer,
    Schedule,
    column_cycles,
    counts_for,
    line_cycles,
    shared_cycles,
    stream_bytes,
)
from blockpunch.compiler.forms.blocked import PREFETCH, BlockedForm, column_shifts
from blockpunch.compiler.kernels.base import Context, epilogue_name, kernel_epilogue, operands, pixel_masks, render
from blockpunch.compiler.packing import Ints, Segment, row_orders, stored_columns
from blockpunch.compiler.program import Choice
from blockpunch.target import Target

HEIGHTS = (1, 2, 4, 6, 8, 12, 16)
STORE_CYCLES = 1.2
"""To store one vector of a result."""
_LOADS_PER_FETCH = 8  # fewer, and fetching a line costs as much as it saves
_SHIFT_CYCLES = 45.0  # from the columns of one shift to those of the next
_BLOCKS_EACH = 4  # row blocks for each thread, at least, where threads share no pixels


class Pixels(BlockedForm):
    """An input row is loaded once for all P filters of a block, one index walks input and output alike."""

    name = "pixels"
    tile_unit = "vectors"
    needs_sides = False

    def schedules(self, layer: Layer) -> list[Schedule]:
        """Every block height with tiles that fill the registers, and chunks of one tile, of a few, of the plane."""
        nonzero = layer.weights != 0
        found = []
        for order in row_orders(layer.weights, [height for height in HEIGHTS if height <= len(layer.weights)]):
            most = min(_tile_vectors(layer.target, order.height), layer.vectors)
            if most == 0:
                continue
            segments = [(height, len(counts), float(counts.sum()))
                        for height, counts in stored_columns(nonzero[order.rows], order.height)]
            vectors, _ = _whole_and_rest(layer, order.height)
            blocks = sum(count for _, count, _ in segments)
            for tile in sorted({most, max(most - 1, 1), max(most * 2 // 3, 1)}, reverse=True):
                for chunk in chunks_of(tile, vectors, layer.threads, blocks):
                    choice = Choice(self.name, order.height, tile, chunk, order.grouped)
                    found.append(Schedule(choice, order.rows, _cycles(segments, tile, chunk, layer)))
        return found

    def kernel(self, layer: Layer, segment: Segment, choice: Choice, fields: dict[str, Any],
               ctx: Context) -> tuple[str, str, int]:
        """Tiles of the segment's height in filters x 1..tile vectors, chunk by chunk."""
        plane, epilogue, width = layer.y.plane, layer.node.epilogue, layer.target.vector_floats
        assert plane
        height, shifts, masked = segment.height, layer.shifts, plane.zero_margin
        vectors, rest = _whole_and_rest(layer, height)
        chunks = -(-vectors // choice.chunk)
        mask = ctx.table("uint16_t", pixel_masks(plane, layer.rows, layer.vectors, width)) if masked else "0"
        fields |= {"mask": mask, "chunks": chunks, "chunk": choice.chunk, "vectors": vectors,
                   "tail": plane.stride - plane.origin - layer.vectors * width}
        if shifts:
            fields |= {"stop": ctx.table("int32_t", _stops(layer, segment)),
                       "inside": ctx.table("uint16_t", _inside(layer))}
        far = chunks > 1 and _worth_fetching(layer, segment)
        if far:
            fields |= {"channels": layer.channels, "in_plane": layer.x.strides[1],
                       "reach": max(dy * layer.x.strides[2] + dx for _, dy, dx in layer.node.attrs["taps"])}
        last = _last_tile(vectors, choice.chunk, choice.tile)
        name = (f"conv_{height}x{choice.tile}"
                f"{f'_and{rest}of{last}' if rest else ''}{f'_shifts{len(shifts)}' if shifts else ''}"
                f"{epilogue_name(epilogue)}{'_margin' if masked else ''}{'_far' if far else ''}")
        text = render("conv.c.j2", name=name, height=height, vectors=choice.tile, width=width, masked=masked,
                      loads=len(operands(layer.node)), prefetch=PREFETCH, by_lane=layer.target.isa == "neon",
                      far=far, epilogue=kernel_epilogue(epilogue), shifts=len(shifts), rest=rest, last=last)
        return name, text, chunks


def _whole_and_rest(layer: Layer, height: int) -> tuple[int, int]:
    """Vectors of pixels that tiles of ``height`` filters take, and the pixels of a last, nearly empty one.

    The rest is computed with the filters along the vector, by the tile before it: one multiply-add per column and
    pixel, where a vector of its own takes one per column and filter.
    """
    whole, rest = divmod(layer.pixels, layer.target.vector_floats)
    if rest and whole and height in (4, 8, 16) and height <= layer.target.vector_floats and 2 * rest <= height:
        return whole, rest
    return layer.vectors, 0


def _worth_fetching(layer: Layer, segment: Segment) -> bool:
    """Whether the next chunk's input is fetched into the second-level cache while this chunk is computed.

    It pays where the input lies beyond that cache and every line, once fetched, is loaded many times.
    """
    beyond = layer.channels * layer.x.strides[1] * 4 > layer.target.l2_bytes
    return beyond and len(segment.columns) >= _LOADS_PER_FETCH * layer.channels


def _stops(layer: Layer, segment: Segment) -> Ints:
    """[blocks, shifts] how many columns of a block have this shift or one before it."""
    shift = np.sort(column_shifts(layer))[segment.columns]
    counts = [[np.count_nonzero(shift[a:b] <= dx) for dx in layer.shifts]
              for a, b in pairwise(segment.starts)]
    return np.array(counts, np.int32)


def _inside(layer: Layer) -> npt.NDArray[np.uint16]:
    """[vectors, shifts] one bit per lane: whether the pixel's input, so far away, lies in its row."""
    plane, width = layer.x.plane, layer.target.vector_floats
    assert plane
    x = np.arange(layer.vectors * width) % plane.row
    inside = np.stack([(x + dx >= 0) & (x + dx < plane.w) for dx in layer.shifts])
    bits = inside.reshape(len(layer.shifts), layer.vectors, width) @ (1 << np.arange(width))
    return np.ascontiguousarray(bits.T.astype(np.uint16))


def _tile_vectors(target: Target, height: int) -> int:
    """Most pixel vectors of a tile of ``height`` filters: accumulators, inputs and one weight are in registers."""
    if height == 1:
        return min(13, (target.registers - 1) // 2)
    return max((target.registers - 1) // (height + 1), 0)


def chunks_of(tile: int, vectors: int, threads: int, blocks: int) -> list[int]:
    """Chunks of one tile, of a few, of the whole plane; equal parts, so that no chunk is left with a stub.

    Several threads take either as many chunks each, or, where there are enough row ``blocks``, shares of those.
    """
    counts = counts_for(threads, {-(-vectors // (tile * n)) for n in (1, 4, 16)} | {1}, vectors)
    if blocks >= _BLOCKS_EACH * threads:
        counts.add(1)
    return sorted({-(-vectors // c) for c in counts})


def _cycles(segments: list[tuple[int, int, float]], tile: int, chunk: int, layer: Layer) -> float:
    """``segments``: (P, blocks, columns of all blocks)."""
    target = layer.target
    lines = layer.channels * (chunk * target.vector_floats / 16 + 1)  # the slab, in cache lines of 64 bytes
    load = line_cycles(64 * lines, target) * max(target.vector_floats / 16, 0.5)
    weight_bytes = sum(columns * 4 * (height + 1) for height, _, columns in segments)
    chunks = -(-_whole_and_rest(layer, segments[0][0])[0] // chunk)
    total = chunks * weight_bytes / stream_bytes(weight_bytes + 64 * lines, target)
    total += shared_cycles(layer, chunks, weight_bytes, 64 * lines)
    shift_cycles = _SHIFT_CYCLES * max(len(layer.shifts) - 1, 0)
    for height, blocks, columns in segments:
        vectors, rest = _whole_and_rest(layer, height)
        sizes = [(size, 0, times) for size, times in tile_sizes(vectors, chunk, tile)]
        if rest:
            last = _last_tile(vectors, chunk, tile)
            sizes += [(last, 0, -1), (last, rest, 1)]
        for size, more, times in sizes:
            fmas, loads = height * size + more, load * size + BROADCAST_CYCLES * (height + (more + 1 if more else 0))
            per_column = column_cycles(fmas / FMA_PER_CYCLE, loads, FMA_LATENCY)
            per_tile = TILE_CYCLES + shift_cycles + STORE_CYCLES * height * (size + (more > 0))
            total += times * (columns * per_column + blocks * per_tile)
    return total


def tile_sizes(vectors: int, chunk: int, tile: int) -> list[tuple[int, int]]:
    """(vectors, how many tiles) over the plane, as the kernel splits its chunks."""
    sizes: dict[int, int] = {}
    for length, times in ((chunk, vectors // chunk), (vectors % chunk, 1)):
        if length and times:
            tiles = -(-length // tile)
            small, wide = divmod(length, tiles)
            sizes[small + 1] = sizes.get(small + 1, 0) + times * wide
            sizes[small] = sizes.get(small, 0) + times * (tiles - wide)
    return [(size, times) for size, times in sizes.items() if size and times]


def _last_tile(vectors: int, chunk: int, tile: int) -> int:
    """Vectors of the last tile of the plane; it takes the rest along."""
    length = vectors % chunk or chunk
    return length // -(-length // tile)
