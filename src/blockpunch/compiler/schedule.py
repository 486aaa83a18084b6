"""Choosing how a convolution runs: block height P, vectors per tile, pixels per chunk, by modelled cycles.

One column of a tile of ``r`` filters x ``v`` vectors is bound by its multiply-adds (two per cycle), by the latency of
one multiply-add, or by its loads: ``v`` input vectors and ``r`` broadcast weights. What an input vector costs depends
on where the *slab* of a chunk lives, that is all input channels of the chunk's pixels, which every row block sweeps
again; a smaller chunk has a smaller slab, but streams all the weights once more. The constants were fitted to layers
measured inside running networks, on an AVX-512 core; they only have to *order* the choices. No sparsity threshold is
involved.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from blockpunch.compiler.packing import Floats, Ints, row_orders, stored_columns
from blockpunch.compiler.program import Choice
from blockpunch.target import Target

HEIGHTS = (1, 2, 4, 6, 8, 12, 16)
FILTER_HEIGHTS = (4, 8, 16, 32)
_FILTER_ROWS = 4
_ROW_CYCLES = 12.0  # to gather one row of one filter from a tile of the other orientation
_FMA_PER_CYCLE, _FMA_LATENCY = 2.0, 4.0
_BROADCAST_CYCLES = 0.5
_TILE_CYCLES, _STORE_CYCLES = 14.0, 1.2
_WORST = 1.6  # schedules that the model finds this much slower than its best are not options
_SPLIT_LINES = 1.35  # a vector of a shifted row lies on two cache lines more often than not


@dataclass(frozen=True)
class Schedule:
    """How one convolution runs.

    Attributes:
        choice: block height, tile and chunk.
        order: the filters in the order of the rows.
        cycles: modelled cycles of the layer.
    """

    choice: Choice
    order: npt.NDArray[np.intp]
    cycles: float


@dataclass(frozen=True)
class Geometry:
    """What the model knows of a layer besides its zeros.

    Attributes:
        vectors: pixel vectors of one output plane.
        rows, width: output pixels.
        channels: input channels (phases count).
        threads: threads that will share the layer.
    """

    vectors: int
    rows: int
    width: int
    channels: int
    threads: int = 1


def tile_vectors(target: Target, height: int) -> int:
    """Most pixel vectors of a tile of ``height`` filters: accumulators, inputs and one weight are in registers."""
    if height == 1:
        return min(8, (target.registers - 1) // 2)
    return max((target.registers - 1) // (height + 1), 0)


def options(weights: Floats, geometry: Geometry, target: Target) -> list[Schedule]:
    """Every schedule worth comparing for ``weights`` [filters, columns], the best by the model first."""
    nonzero = weights != 0
    found = []
    for grouped, order in enumerate(row_orders(weights)):
        ordered = nonzero[order]
        for height in HEIGHTS:
            most = min(tile_vectors(target, height), geometry.vectors)
            if most == 0 or (height > len(weights) and height > 1):
                continue
            segments = list(stored_columns(ordered, height))
            for tile in sorted({most, max(most - 1, 1), max(most * 2 // 3, 1)}, reverse=True):
                for chunk in _chunks(tile, geometry):
                    cycles = _cycles(segments, tile, chunk, geometry, target)
                    found.append(Schedule(Choice("pixels", height, tile, chunk, bool(grouped)), order, cycles))
        found += _filter_options(ordered, order, bool(grouped), geometry, target)
    found.sort(key=lambda s: s.cycles)  # stable: the plainest first among equals
    return [s for s in found if s.cycles <= _WORST * found[0].cycles]


def _filter_options(ordered: npt.NDArray[np.bool_], order: npt.NDArray[np.intp], grouped: bool, geometry: Geometry,
                    target: Target) -> list[Schedule]:
    """Tiles with the filters along the vectors: no lane is lost on narrow maps, if filters come in large blocks."""
    found = []
    for height in FILTER_HEIGHTS:
        parts = max(height // target.vector_floats, 1)
        most = min((target.registers - parts - 2) // (parts * geometry.width), geometry.rows, _FILTER_ROWS)
        if height > len(ordered) or most < 1:
            continue
        segments = list(stored_columns(ordered, height))
        if any(p not in FILTER_HEIGHTS for p, _ in segments):
            continue
        cycles = sum(_filter_cycles(counts, p, most, geometry, target) for p, counts in segments)
        found.append(Schedule(Choice("filters", height, most, geometry.vectors, grouped), order, cycles))
    return found


def _filter_cycles(counts: Ints, height: int, rows: int, geometry: Geometry, target: Target) -> float:
    parts = max(height // target.vector_floats, 1)
    columns = float(counts.sum())
    total = columns * 4 * (height + 1) / _stream_bytes(columns * 4 * height, target)
    for n, times in ((rows, geometry.rows // rows), (geometry.rows % rows, 1)):
        pixels = n * geometry.width
        per_column = max(pixels * parts / _FMA_PER_CYCLE, _FMA_LATENCY / 2, (pixels + parts) * _BROADCAST_CYCLES)
        if n:
            total += times * (columns * per_column
                              + len(counts) * (_TILE_CYCLES + height * (pixels * 1.5 + n * _ROW_CYCLES)))
    return total


def dense_cycles(weights: Floats, geometry: Geometry, target: Target) -> float:
    """Modelled cycles of the layer if it had no zeros."""
    return options(np.ones_like(weights), geometry, target)[0].cycles


def _chunks(tile: int, geometry: Geometry) -> list[int]:
    """Chunks of one tile, of a few, of the whole plane; equal parts, so that no chunk is left with a stub."""
    counts = {-(-geometry.vectors // (tile * n)) for n in (1, 4, 16)} | {1}
    if geometry.threads > 1:
        counts = {max(c, min(geometry.threads, geometry.vectors)) for c in counts}
    return sorted({-(-geometry.vectors // c) for c in counts})


def _cycles(segments: list[tuple[int, Ints]], tile: int, chunk: int, geometry: Geometry, target: Target) -> float:
    lines = geometry.channels * (chunk * target.vector_floats / 16 + 1)  # the slab, in cache lines of 64 bytes
    load = _line_cycles(64 * lines, target) * max(target.vector_floats / 16, 0.5)
    chunks = -(-geometry.vectors // chunk)
    weight_bytes = sum(float(counts.sum()) * 4 * (height + 1) for height, counts in segments)
    total = chunks * weight_bytes / _stream_bytes(weight_bytes + 64 * lines, target)
    for height, counts in segments:
        columns = float(counts.sum())
        for size, times in _tile_sizes(geometry.vectors, chunk, tile):
            per_column = max(height * size / _FMA_PER_CYCLE, _FMA_LATENCY, load * size + _BROADCAST_CYCLES * height)
            total += times * (columns * per_column + len(counts) * (_TILE_CYCLES + _STORE_CYCLES * height * size))
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


def _line_cycles(slab_bytes: float, target: Target) -> float:
    """Cycles to load one input vector, by where the slab lives."""
    if slab_bytes <= 0.75 * target.l1_bytes:
        return 1.0 * _SPLIT_LINES
    if slab_bytes <= 0.25 * target.l2_bytes:
        return 1.2 * _SPLIT_LINES
    return (1.8 if slab_bytes <= 0.75 * target.l2_bytes else 2.4) * _SPLIT_LINES


def _stream_bytes(working_set: float, target: Target) -> float:
    """Bytes of weights per cycle when they are streamed once more."""
    return 48.0 if working_set <= 0.75 * target.l2_bytes else 24.0
