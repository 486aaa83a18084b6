"""Rows in step: R filters with a list of columns each, side by side; the form for zeros without any structure.

Where filters share no columns, every multiply-add needs an input vector of its own. What is left to gain is
everything else: tiles are as wide as the registers allow, so that a weight is broadcast for many vectors, and on
narrow maps several filters walk their lists together, so that no sum waits for the multiply-add before it. Lists of
one step are equally long: filters of nearly the same number of weights meet, and the shorter lists end with zeros.
"""

from __future__ import annotations

import numpy as np

from blockpunch.compiler.forms.base import (
    BROADCAST_CYCLES,
    FMA_LATENCY,
    FMA_PER_CYCLE,
    TILE_CYCLES,
    Layer,
    Schedule,
    stream_bytes,
)
from blockpunch.compiler.forms.pixels import STORE_CYCLES, Pixels, chunks_of, tile_sizes
from blockpunch.compiler.packing import Ints, Segment, heights, pack_own
from blockpunch.compiler.program import Choice
from blockpunch.target import Target

HEIGHTS = (1, 2, 4, 8)
_MOST_SUMS = 28  # registers that hold them; inputs are operands in memory, weights need a few
_LIST_CYCLES = 16.0  # the end of a list is not foreseen


class Rows(Pixels):
    """Pixels along the vectors, like the form it is derived from, but every filter has its own list."""

    name = "rows"
    tile_unit = "vectors, each filter with columns of its own"
    needs_sides = True
    own_columns = True

    def schedules(self, layer: Layer) -> list[Schedule]:
        """Every number of filters in step, with tiles that fill the registers."""
        counts = np.sort(np.count_nonzero(layer.weights, axis=1))[::-1]
        order = np.arange(len(counts))
        found = []
        for height in (h for h in HEIGHTS if h <= len(counts)):
            most = min((min(layer.target.registers - 4, _MOST_SUMS)) // height, layer.vectors)
            steps = list(_steps(counts, height))
            for tile in sorted({most, most * 2 // 3, most // 2} - {0}, reverse=True):
                for chunk in chunks_of(tile, layer.vectors, layer.threads):
                    choice = Choice(self.name, height, tile, chunk, False)
                    found.append(Schedule(choice, order, _cycles(steps, tile, chunk, layer)))
        return found

    def pack(self, layer: Layer, schedule: Schedule) -> list[Segment]:
        """Filters of nearly as many weights share a block."""
        return pack_own(layer.weights, schedule.choice.height)


def _steps(counts: Ints, height: int) -> list[tuple[int, Ints]]:
    """(filters in step, steps of each block), for the numbers of weights of all filters, the largest first."""
    found, start = [], 0
    for p, rows in heights(len(counts), height):
        found.append((p, counts[start:start + rows:p]))
        start += rows
    return found


def _line_cycles(slab_bytes: float, target: Target) -> float:
    """Cycles to load one input vector. Many loads are under way at once: less than in a tile that waits for them."""
    if slab_bytes <= 0.75 * target.l1_bytes:
        return 1.05
    if slab_bytes <= 0.15 * target.l2_bytes:
        return 1.35
    return 1.5 if slab_bytes <= 0.75 * target.l2_bytes else 2.0


def _cycles(segments: list[tuple[int, Ints]], tile: int, chunk: int, layer: Layer) -> float:
    target = layer.target
    lines = layer.channels * (chunk * target.vector_floats / 16 + 1)
    load = _line_cycles(64 * lines, target) * max(target.vector_floats / 16, 0.5)
    weight_bytes = sum(8.0 * height * float(steps.sum()) for height, steps in segments)
    total = -(-layer.vectors // chunk) * weight_bytes / stream_bytes(weight_bytes + 64 * lines, target)
    for height, steps in segments:
        for size, times in tile_sizes(layer.vectors, chunk, tile):
            per_step = max(height * size / FMA_PER_CYCLE, height * (load * size + BROADCAST_CYCLES), FMA_LATENCY)
            per_tile = TILE_CYCLES + _LIST_CYCLES + STORE_CYCLES * height * size
            total += times * (float(steps.sum()) * per_step + len(steps) * per_tile)
    return total
