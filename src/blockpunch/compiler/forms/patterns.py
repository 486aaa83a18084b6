"""Kernel patterns: lists of filters that keep the same few weights of a kernel, and a tile of sums in the first cache.

Where every filter keeps its own weights, a tile of sums in registers costs one load per multiply-add. Here the input
stays in registers instead: a *list* is k columns (kernel taps of one channel) and all filters of a block that have
weights in just these; the k x n input vectors are loaded once per list, and each filter's n sums are fetched, receive
k * n multiply-adds, and are put back. With 4 of 9 taps that is 16 multiply-adds for 4 loads and 4 stores of sums.

Any zeros will do. It pays where many filters of a block have equal tap sets: pattern pruning, removed kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from blockpunch.compiler.forms.base import FMA_PER_CYCLE, Emitted, Form, Layer, Schedule, column_cycles
from blockpunch.compiler.forms.blocked import column_offsets
from blockpunch.compiler.kernels.base import (
    Context,
    biases,
    call,
    epilogue_name,
    kernel_epilogue,
    operands,
    pixel_masks,
    render,
    strides_of,
)
from blockpunch.compiler.lists import MOST_TAPS, Lists, Runs, lists_of, runs_of, tap_sets
from blockpunch.compiler.program import Choice
from blockpunch.target import Target

TILES = (5, 4, 3, 2)
PREFETCH = 8
"""Lists that the input is fetched ahead; the columns end with as many spare lists."""
_SUMS_SHARE = 0.85  # of the first-level cache, for the sums of a block
_MOST_L1 = 128 << 10  # the places of the sums are 16-bit numbers
_SUM_TRAFFIC = 1.5  # cycles to fetch and put back one vector of sums
_FILTER_CYCLES, _LIST_CYCLES, _SUM_CYCLES = 1.5, 10.0, 4.0
"""Beside the multiply-adds: of a filter in a list, of a list beside its loads, of the first and last use of a sum."""
_FAR_CYCLES = 0.44  # per byte of maps that the last-level cache will not hold


class Patterns(Form):
    """The input in registers, the sums in the first-level cache."""

    name = "patterns"
    tile_unit = "vectors"

    def schedules(self, layer: Layer) -> list[Schedule]:
        """Tiles that leave registers for the taps, with blocks of filters whose sums fill the first-level cache."""
        taps, filters, target = _taps(layer), len(layer.weights), layer.target
        if not 1 < taps <= MOST_TAPS:
            return []
        sets = tap_sets(layer.weights != 0, taps)
        runs: dict[int, list[Runs]] = {}
        found = []
        for tile in TILES:
            if _most_columns(target, tile) < 2 or tile > layer.vectors:
                continue
            most = max(int(_SUMS_SHARE * min(target.l1_bytes, _MOST_L1)) // (4 * target.vector_floats * tile), 1)
            height = -(-filters // -(-filters // most))
            if height not in runs:
                runs[height] = [runs_of(sets[at:at + height], taps) for at in range(0, filters, height)]
            cycles = _cycles(layer, runs[height], tile)
            found.append(Schedule(Choice(self.name, height, tile, layer.vectors, False), np.arange(filters), cycles))
        return found

    def emit(self, layer: Layer, schedule: Schedule, ctx: Context) -> Emitted:
        """One call; every tile of pixels takes every block of filters."""
        choice, y, width, epilogue = schedule.choice, layer.y, layer.target.vector_floats, layer.node.epilogue
        assert y.plane
        blocks = _blocks(layer, choice.height, choice.tile)
        taps = sorted({lists.columns.shape[1] for block in blocks for lists in block}, reverse=True)
        tiles, masked = -(-layer.vectors // choice.tile), y.plane.zero_margin
        mask = ctx.table("uint16_t", pixel_masks(y.plane, layer.rows, layer.vectors, width)) if masked else "0"
        fields = _tables(layer, blocks, taps, choice, ctx)
        fields |= {"mask": mask, "tiles": tiles, "vectors": layer.vectors,
                   "tail": y.plane.stride - y.plane.origin - layer.vectors * width}
        sizes = sorted({layer.vectors // tiles, -(-layer.vectors // tiles)})
        name = "_".join(["conv_patterns", f"{choice.height}x{choice.tile}", *map(str, sizes), "of", *map(str, taps)])
        name += f"{epilogue_name(epilogue)}{'_margin' if masked else ''}"
        text = render("conv_patterns.c.j2", name=name, height=choice.height, tile=choice.tile, sizes=sizes, taps=taps,
                      width=width, masked=masked, loads=len(operands(layer.node)), ahead=PREFETCH,
                      by_lane=layer.target.isa == "neon", epilogue=kernel_epilogue(epilogue))
        views = [layer.x, y, *(ctx.view(other) for other in operands(layer.node))]
        parts = [(layer.x.shape[0] * tiles * len(blocks), call(name, "patterns_layer", fields, views, ctx))]
        entries = sum(len(lists.filters) for block in blocks for lists in block)
        lists = sum(lists.columns.size + len(lists.counts) for block in blocks for lists in block)
        kept = int(np.count_nonzero(layer.weights))
        return Emitted(parts, {"patterns_layer": render("patterns_layer.c.j2"), name: text}, kept,
                       4 * kept + 2 * entries + 4 * lists, choice.height * choice.tile * width)


def _taps(layer: Layer) -> int:
    return len(layer.node.attrs["taps"])


def _most_columns(target: Target, tile: int) -> int:
    """Columns whose input vectors fit the registers beside the sums of one filter and its weights."""
    return (target.registers - tile - 3) // tile


def _blocks(layer: Layer, height: int, tile: int) -> list[list[Lists]]:
    nonzero, most = layer.weights != 0, _most_columns(layer.target, tile)
    return [lists_of(nonzero[at:at + height], _taps(layer), most) for at in range(0, len(nonzero), height)]


def _tables(layer: Layer, blocks: list[list[Lists]], taps: list[int], choice: Choice, ctx: Context) -> dict[str, Any]:
    """Fields of the layer's struct."""
    y, residuals, matrix = layer.y, [ctx.view(name) for name in operands(layer.node)], layer.weights
    assert y.plane
    flat = [(at * choice.height, lists) for at, block in enumerate(blocks) for lists in block]
    offsets = column_offsets(layer)
    columns = [offsets[lists.columns].ravel() for _, lists in flat]
    spare = np.zeros(PREFETCH * max(taps, default=1), np.int32)
    weights = [lists.weights(matrix[first:first + choice.height]).ravel() for first, lists in flat]
    stride = choice.tile * layer.target.vector_floats
    numbers = [[next((len(item.counts) for item in block if item.columns.shape[1] == k), 0) for k in taps]
               for block in blocks]
    sizes = [[sum(item.columns.size for item in block), sum(len(item.counts) for item in block),
              sum(len(item.filters) for item in block),
              sum(len(item.filters) * item.columns.shape[1] for item in block)] for block in blocks]
    starts = np.cumsum([[0] * 4, *sizes], axis=0)[:-1]
    return {
        "w": ctx.table("float", _joined(weights, np.float32)),
        "bias": ctx.table("float", biases(layer.node, ctx, y.shape[1])),
        "column": ctx.table("int32_t", _joined([*columns, spare], np.int32)),
        "count": ctx.table("int32_t", _joined([item.counts for _, item in flat], np.int32)),
        "sum": ctx.table("uint16_t", _joined([item.filters * stride for _, item in flat], np.uint16)),
        "lists": ctx.table("int32_t", np.array(numbers, np.int32)),
        "start": ctx.table("int32_t", starts.astype(np.int32)),
        "sums": "THREAD_SCRATCH", "blocks": len(blocks), "filters": len(matrix),
        "in_image": layer.x.strides[0], "out_image": y.strides[0], "out_plane": y.strides[1], "head": y.plane.origin,
    } | strides_of(residuals, res_image=0, res_plane=1)


def _joined(arrays: list[Any], kind: type[np.generic]) -> Any:
    return np.concatenate([np.zeros(0, kind), *arrays]).astype(kind)


def _cycles(layer: Layer, blocks: list[Runs], tile: int) -> float:
    """Modelled cycles; the constants were fitted to layers with 4 of 9 taps inside a running network."""
    target = layer.target
    tiles, most = -(-layer.vectors // tile), _most_columns(target, tile)
    size = layer.vectors / tiles
    total = len(layer.weights) * _SUM_CYCLES * size
    for block in blocks:
        for k, lists, filters in block.lists(most):
            each = column_cycles(k * size / FMA_PER_CYCLE, _SUM_TRAFFIC * size, 0.0) + _FILTER_CYCLES
            total += filters * each + lists * (_LIST_CYCLES + k * size / 2)
    maps = 4.0 * layer.vectors * target.vector_floats * (layer.channels + len(layer.weights))
    return tiles * total + _FAR_CYCLES * max(maps - max(target.l3_bytes / 4, target.l2_bytes), 0)
