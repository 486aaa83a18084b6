"""Choosing how a layer runs: block height P, vectors per tile, pixels per chunk, by modelled cycles.

The model knows three bounds of one column of a tile of ``r`` filters x ``v`` vectors: the multiply-adds (two per cycle),
the latency of one multiply-add, and the loads (v input vectors, mostly unaligned, and r broadcast weights). It was fitted
to tiles measured on an AVX-512 core and only has to *order* the choices; nothing here looks at a sparsity threshold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from blockpunch.compiler.packing import Floats, row_orders, stored_columns
from blockpunch.target import Target

HEIGHTS = (1, 2, 4, 6, 8, 12, 16)
_FMA_PER_CYCLE, _FMA_LATENCY = 2.0, 4.0
_LOAD_CYCLES_512, _BROADCAST_CYCLES = 1.35, 0.5
_TILE_CYCLES, _STORE_CYCLES = 14.0, 1.2


@dataclass(frozen=True)
class Schedule:
    """How one convolution runs.

    Attributes:
        height: P, filters per row block.
        vectors: pixel vectors per register tile.
        chunk: pixel vectors that all row blocks sweep before the next chunk (keeps the input in the cache).
        order: the filters in the order of the rows.
        cycles: modelled cycles of the layer.
        dense_cycles: the same if every column were stored.
    """

    height: int
    vectors: int
    chunk: int
    order: npt.NDArray[np.intp]
    cycles: float
    dense_cycles: float


def tile_vectors(target: Target, height: int) -> int:
    """Most pixel vectors that a tile of ``height`` filters can have: accumulators, inputs and one weight in registers."""
    if height == 1:
        return min(8, (target.registers - 1) // 2)
    return max((target.registers - 1) // (height + 1), 0)


def column_cycles(target: Target, height: int, vectors: int) -> float:
    """Modelled cycles of one column of a tile."""
    load = _LOAD_CYCLES_512 * vectors * max(target.vector_floats / 16, 0.5)
    return max(height * vectors / _FMA_PER_CYCLE, _FMA_LATENCY, load + _BROADCAST_CYCLES * height)


def choose(weights: Floats, vectors: int, channel_bytes: int, target: Target, threads: int) -> Schedule:
    """Pick the schedule of least modelled cycles.

    Args:
        weights: [filters, columns], zeros included.
        vectors: pixel vectors of one output plane.
        channel_bytes: bytes that all input channels take per pixel.
        target: the core.
        threads: threads that will share the layer.
    """
    nonzero = weights != 0
    chunk = _chunk(vectors, channel_bytes, target, threads, len(weights))
    best: Schedule | None = None
    dense = min(_cycles(np.full(1, nonzero.shape[1]) * np.ones(-(-len(weights) // h)), h, v, vectors, target)
                for h, v in _tiles(target))
    for order in row_orders(weights):
        ordered = nonzero[order]
        for height, tile in _tiles(target):
            if height > len(weights) and height > 1:
                continue
            cycles = sum(_cycles(counts, p, tile, vectors, target) for p, counts in stored_columns(ordered, height))
            if best is None or cycles < best.cycles * 0.995:
                best = Schedule(height, tile, max(chunk, tile), order, cycles, dense)
    assert best is not None
    return best


def _tiles(target: Target) -> list[tuple[int, int]]:
    tiles = [(h, tile_vectors(target, h)) for h in HEIGHTS]
    return [(h, v) for h, v in tiles if v > 0]


def _cycles(counts: npt.NDArray[np.generic], height: int, tile: int, vectors: int, target: Target) -> float:
    """Cycles of blocks with ``counts`` columns each over a plane of ``vectors``."""
    tiles = -(-vectors // tile)
    small, wide = divmod(vectors, tiles)
    total = 0.0
    for size, times in ((small + 1, wide), (small, tiles - wide)):
        if times and size:
            per_tile = _TILE_CYCLES + _STORE_CYCLES * height * size
            total += times * (float(np.sum(counts)) * column_cycles(target, height, size) + len(counts) * per_tile)
    return total


def _chunk(vectors: int, channel_bytes: int, target: Target, threads: int, filters: int) -> int:
    """Vectors per chunk: the input of a chunk takes at most half of the second-level cache, and threads get equal parts."""
    fit = max(int(target.l2_bytes / 2 / max(channel_bytes * target.vector_floats, 1)), 8)
    chunks = max(-(-vectors // fit), 1)
    if threads > 1 and filters < 32 * threads:
        chunks = max(chunks, min(threads, vectors))
    return -(-vectors // chunks)
