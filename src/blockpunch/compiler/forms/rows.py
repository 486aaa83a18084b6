"""Rows in step: R filters with a list of columns each, side by side; the form for zeros without any structure.

Where filters share no columns, every multiply-add needs an input vector of its own: loads bind. So the channels come in
slices whose pixels stay in the first-level cache while all filters sweep them; sums wait in memory between slices. A
weight is broadcast for as many vectors as registers allow, and several filters walk their lists together, so that no
sum waits for the multiply-add before it. Lists of one step are equally long: in every slice filters of nearly the same
number of weights meet, and the shorter lists end with zeros.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from blockpunch.compiler.forms.base import (
    BROADCAST_CYCLES,
    FMA_LATENCY,
    FMA_PER_CYCLE,
    TILE_CYCLES,
    Emitted,
    Form,
    Layer,
    Schedule,
    stream_bytes,
)
from blockpunch.compiler.forms.blocked import column_offsets
from blockpunch.compiler.forms.pixels import STORE_CYCLES
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
from blockpunch.compiler.packing import Ints, OwnLists, heights, pack_own
from blockpunch.compiler.program import Choice

HEIGHTS = (1, 2, 4, 8)
_MOST_SUMS = 28  # registers that hold them; inputs are operands in memory, weights need a few
_LIST_CYCLES = 16.0  # the end of a list is not foreseen
_LEAST_LOAD_CYCLES = 0.7  # two loads in a cycle, some of them of weights and columns: binds narrow vectors
_SUM_CYCLES = 1.6  # a vector of sums to memory and back
_UNITS = 4  # for each thread, at least, where filters are many
_PART = 64  # filters, at least: each part loads the slices anew


class Rows(Form):
    """Pixels along the vectors; every filter has its own list."""

    name = "rows"
    tile_unit = "vectors, each filter with columns of its own"

    def schedules(self, layer: Layer) -> list[Schedule]:
        """Every number of filters in step, with tiles that fill the registers, and slices of several sizes."""
        channels, order = _channels(layer), np.arange(len(layer.weights))
        kept = np.count_nonzero(layer.weights.reshape(len(order), channels, -1), axis=2)
        slices = sorted({channels, *(-(-channels // n) for n in (2, 4, 8, 16, 32) if channels >= 4 * n)})
        counts = {channels_of: _counts(kept, channels_of) for channels_of in slices}
        weight_bytes = {channels_of: 4 + _columns(layer, channels_of).bits / 8 for channels_of in slices}
        found = []
        for height in (h for h in HEIGHTS if h <= len(order)):
            most = min((min(layer.target.registers - 4, _MOST_SUMS)) // height, layer.vectors)
            for tile in sorted({most, most * 2 // 3, most // 2} - {0}, reverse=True):
                lines = _slab_lines(layer, tile)
                for channels_of in slices:
                    choice = Choice(self.name, height, tile, channels_of, False)
                    cycles = _cycles(counts[channels_of], choice, layer, 64.0 * lines * channels_of,
                                     weight_bytes[channels_of])
                    found.append(Schedule(choice, order, cycles))
        return found

    def emit(self, layer: Layer, schedule: Schedule, ctx: Context) -> Emitted:
        """One call per segment of equally many filters in step."""
        choice, taps = schedule.choice, len(layer.node.attrs["taps"])
        chunks = -(-layer.vectors // choice.tile)
        segments = pack_own(layer.weights, choice.height, choice.chunk * taps, _parts(layer, chunks))
        parts, helpers = [], {"conv_rows_layer": render("conv_rows_layer.c.j2")}
        views = [layer.x, layer.y, *(ctx.view(other) for other in operands(layer.node))]
        for segment in segments:
            name, text = _kernel(layer, segment, choice)
            fields = _fields(layer, segment, choice, ctx) | {"chunks": chunks}
            units = layer.x.shape[0] * chunks * (len(segment.parts) - 1)
            parts.append((units, call(name, "conv_rows_layer", fields, views, ctx)))
            helpers[name] = text
        rows = max(int(np.diff(s.parts).max()) * s.height for s in segments)
        sums = rows * choice.tile * layer.target.vector_floats if choice.chunk < _channels(layer) else 0
        bits = _columns(layer, choice.chunk).bits
        return Emitted(parts, helpers, sum(s.panel.size for s in segments),
                       sum(s.panel.nbytes + s.columns.size * bits // 8 for s in segments), sums)


def _kernel(layer: Layer, segment: OwnLists, choice: Choice) -> tuple[str, str]:
    """Name and text of the C function."""
    plane, epilogue = layer.y.plane, layer.node.epilogue
    assert plane
    masked, sliced = plane.zero_margin, choice.chunk < _channels(layer)
    far = 2 * segment.panel.nbytes > layer.target.l2_bytes / 2
    columns = _columns(layer, choice.chunk)
    chunks = -(-layer.vectors // choice.tile)
    sizes = sorted({layer.vectors // chunks, -(-layer.vectors // chunks)})
    name = (f"conv_rows_{segment.height}x{'_'.join(map(str, sizes))}{f'_slicesof{choice.tile}' if sliced else ''}"
            f"_columns{columns.bits}{f'_by{columns.unit}' if columns.unit > 1 else ''}"
            f"{epilogue_name(epilogue)}{'_margin' if masked else ''}{'_far' if far else ''}")
    width = layer.target.vector_floats
    return name, render("conv_rows.c.j2", name=name, height=segment.height, sizes=sizes, width=width, masked=masked,
                        sliced=sliced, far=far, sums=choice.tile * width, bits=columns.bits, unit=columns.unit,
                        loads=len(operands(layer.node)), epilogue=kernel_epilogue(epilogue))


def _fields(layer: Layer, segment: OwnLists, choice: Choice, ctx: Context) -> dict[str, object]:
    """Fields of the layer's struct."""
    x, y, plane = layer.x, layer.y, layer.y.plane
    assert plane
    width, columns = layer.target.vector_floats, _columns(layer, choice.chunk)
    base = columns.first + np.arange(len(segment.filters)) * choice.chunk * x.strides[1]
    steps = np.diff(segment.starts[::segment.blocks])
    distances = (column_offsets(layer)[segment.columns] - np.repeat(base, steps)[:, None]) // columns.unit
    return {
        "w": ctx.table("float", segment.panel), "bias": ctx.table("float", biases(layer.node, ctx, y.shape[1])),
        "column": ctx.table("void", distances.astype(np.uint16 if columns.bits == 16 else np.int32)),
        "base": ctx.table("int32_t", base.astype(np.int32)),
        "start": ctx.table("int32_t", segment.starts), "part": ctx.table("int32_t", segment.parts),
        "filter": ctx.table("int32_t", segment.filters), "place": ctx.table("int32_t", _places(segment)),
        "mask": ctx.table("uint16_t", pixel_masks(plane, layer.rows, layer.vectors, width)) if plane.zero_margin
        else "0",
        "sums": "THREAD_SCRATCH", "blocks": segment.blocks, "parts": len(segment.parts) - 1,
        "slices": len(segment.filters), "vectors": layer.vectors,
        "in_image": x.strides[0], "out_image": y.strides[0], "out_plane": y.strides[1], "head": plane.origin,
        "tail": plane.stride - plane.origin - layer.vectors * width,
    } | strides_of([ctx.view(name) for name in operands(layer.node)], res_image=0, res_plane=1)


def _places(segment: OwnLists) -> Ints:
    """[slices, rows] the row's place among its part: that of its filter in the first slice."""
    first = np.repeat(segment.parts[:-1], np.diff(segment.parts) * segment.height) * segment.height
    place = np.zeros(int(segment.filters.max()) + 1, np.int32)
    place[segment.filters[0]] = np.arange(segment.filters.shape[1]) - first
    return place[segment.filters]


class _Columns(NamedTuple):
    """How distances from the first column of a slice are stored: ``bits`` each, in units of ``unit`` floats."""

    bits: int
    unit: int
    first: int  # distance of the least column of the first slice from the output pixel, in floats


def _columns(layer: Layer, channels_of: int) -> _Columns:
    """16 bits where a slice is small enough: loads bind, and four columns come by one."""
    offsets = column_offsets(layer)[:channels_of * len(layer.node.attrs["taps"])]
    first = int(offsets.min())
    width = layer.target.vector_floats
    unit = width if not ((offsets - first) % width).any() else 1
    reach = int(offsets.max()) - first
    return _Columns(16, unit, first) if reach // unit < 1 << 16 else _Columns(32, 1, first)


def _channels(layer: Layer) -> int:
    """Channels that the columns are sliced by; the phases of a strided input belong to one."""
    return int(layer.weights.shape[1]) // len(layer.node.attrs["taps"])


def _parts(layer: Layer, chunks: int) -> int:
    """Sets of filters that are units of work of their own: where there are few chunks, threads need more."""
    return max(min(-(-_UNITS * layer.threads // chunks), len(layer.weights) // _PART), 1)


def _counts(kept: Ints, channels_of: int) -> Ints:
    """[filters, slices] weights of each filter in each slice, in each slice the most first."""
    edges = np.arange(0, kept.shape[1], channels_of)
    return -np.sort(-np.add.reduceat(kept, edges, axis=1), axis=0)


def _slab_lines(layer: Layer, tile: int) -> int:
    """Lines of a channel that the loads for one tile of pixels touch."""
    taps: dict[int, list[tuple[int, int]]] = {}
    for phase, dy, dx in layer.node.attrs["taps"]:
        taps.setdefault(phase, []).append((dy, dx))
    lines = 0
    for places in taps.values():
        dys, dxs = zip(*places, strict=True)
        reach = tile * layer.target.vector_floats + max(dxs) - min(dxs) + 15 * _shifted(layer)
        lines += min(len(set(dys)) * -(-reach // 16), -(-(reach + (max(dys) - min(dys)) * layer.x.strides[2]) // 16))
    return lines


def _shifted(layer: Layer) -> bool:
    """Whether most input vectors lie on two cache lines."""
    return len(layer.node.attrs["taps"]) > 1


def _load_cycles(layer: Layer, slab_bytes: float) -> float:
    """Cycles to load one input vector, by how much of the slice stays in the first-level cache."""
    near, more = (1.08, 0.25) if _shifted(layer) else (0.8, 0.5)
    return near + more * max(1 - 0.7 * layer.target.l1_bytes / slab_bytes, 0.0)


def _cycles(counts: Ints, choice: Choice, layer: Layer, slab_bytes: float, weight_bytes: float) -> float:
    """Cycles of the layer.

    Args:
        counts: [filters, slices] weights of each filter in each slice, in each slice the most first.
        choice, layer: what runs.
        slab_bytes: bytes of the lines that a slice's loads touch, for one tile of pixels.
        weight_bytes: of one weight with its column.
    """
    target, chunks = layer.target, -(-layer.vectors // choice.tile)
    size, slices = layer.vectors / chunks, counts.shape[1]
    load = max(_load_cycles(layer, slab_bytes) * target.vector_floats / 16, _LEAST_LOAD_CYCLES)
    total, start = 0.0, 0
    for height, rows in heights(len(counts), choice.height):
        steps, sums = counts[start:start + rows:height], height * size
        start += rows
        per_step = max(sums / FMA_PER_CYCLE, load * sums + BROADCAST_CYCLES * height, FMA_LATENCY)
        lists = steps.size * (TILE_CYCLES + _LIST_CYCLES / 2)
        moved = len(steps) * sums * (STORE_CYCLES + _SUM_CYCLES * (slices - 1))
        unforeseen = _LIST_CYCLES * np.count_nonzero(np.diff(steps, axis=0))  # lists as long as those before are not
        stored = weight_bytes * height * float(steps.sum())
        stream = stored / stream_bytes(stored + slab_bytes, target)
        total += chunks * (float(steps.sum()) * per_step + lists + unforeseen + moved + stream)
    return total
