"""Filters along the vectors: 4 to 32 filters x whole rows of the map, pixels broadcast.

No lane is lost on narrow maps, but filters must share their columns in large blocks, so it serves dense layers.
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
    column_cycles,
    stream_bytes,
)
from blockpunch.compiler.forms.blocked import BlockedForm
from blockpunch.compiler.kernels.base import Context, epilogue_name, kernel_epilogue, operands, render
from blockpunch.compiler.packing import Ints, Segment, row_orders, stored_columns
from blockpunch.compiler.program import Choice

HEIGHTS = (4, 8, 16, 32)
_MOST_ROWS = 4
_GATHER_CYCLES = 12.0  # one row of one filter out of a tile of the other orientation


class Filters(BlockedForm):
    """A tile is turned around in memory before it is stored as rows."""

    name = "filters"
    tile_unit = "rows"

    def schedules(self, layer: Layer) -> list[Schedule]:
        """Every block height for which at least one row of the map fits the registers."""
        nonzero = layer.weights != 0
        found = []
        for order in row_orders(layer.weights, [height for height in HEIGHTS if height <= len(layer.weights)]):
            parts = max(order.height // layer.target.vector_floats, 1)
            most = min((layer.target.registers - parts - 2) // (parts * layer.width), layer.rows, _MOST_ROWS)
            segments = list(stored_columns(nonzero[order.rows], order.height))
            if most >= 1 and all(p in HEIGHTS for p, _ in segments):
                choice = Choice(self.name, order.height, most, layer.vectors, order.grouped)
                cycles = sum(_cycles(counts, p, most, layer) for p, counts in segments)
                found.append(Schedule(choice, order.rows, cycles))
        return found

    def kernel(self, layer: Layer, segment: Segment, choice: Choice, fields: dict[str, Any],
               ctx: Context) -> tuple[str, str, int]:
        """Tiles of the segment's height in filters x 1..tile rows."""
        x, y, vl, epilogue = layer.x.plane, layer.y.plane, layer.target.vector_floats, layer.node.epilogue
        assert x and y
        height = segment.height
        fields |= {"tail": y.stride - y.origin - layer.rows * y.row}
        name = (f"conv_filters_{height}_{layer.rows}x{layer.width}_{choice.tile}_rows{x.row}_{y.row}"
                f"{epilogue_name(epilogue)}{'_margin' if y.zero_margin else ''}")
        text = render("conv_filters.c.j2", name=name, height=height, lanes=min(height, vl), rows=choice.tile,
                      width=layer.width, map_rows=layer.rows, in_row=x.row, out_row=y.row, masked=y.zero_margin, vl=vl,
                      lines=-(-layer.width // vl) * vl, loads=len(operands(layer.node)),
                      epilogue=kernel_epilogue(epilogue))
        return name, text, 1


def _cycles(counts: Ints, height: int, rows: int, layer: Layer) -> float:
    parts = max(height // layer.target.vector_floats, 1)
    columns = float(counts.sum())
    total = columns * 4 * (height + 1) / stream_bytes(columns * 4 * height, layer.target)
    for n, times in ((rows, layer.rows // rows), (layer.rows % rows, 1)):
        pixels = n * layer.width
        per_column = column_cycles(pixels * parts / FMA_PER_CYCLE, (pixels + parts) * BROADCAST_CYCLES, FMA_LATENCY / 2)
        if n:
            total += times * (columns * per_column
                              + len(counts) * (TILE_CYCLES + height * (pixels * 1.5 + n * _GATHER_CYCLES)))
    return total
