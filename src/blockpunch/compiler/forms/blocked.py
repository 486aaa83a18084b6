"""Forms over blocked compressed storage: what pixels and filters along the vectors have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np

from blockpunch.compiler.forms.base import Emitted, Form, Layer, Schedule
from blockpunch.compiler.kernels.base import Context, biases, call, operands, render, strides_of
from blockpunch.compiler.packing import Ints, Segment, pack
from blockpunch.compiler.program import Choice

PREFETCH = 8
"""Columns that the input is fetched ahead; lists end with as many spare entries."""


class BlockedForm(Form):
    """Row blocks of filters with shared column lists."""

    @abstractmethod
    def kernel(self, layer: Layer, segment: Segment, choice: Choice, fields: dict[str, Any],
               ctx: Context) -> tuple[str, str, int]:
        """(function, its text, units per image and row block); adds to the ``fields`` of the layer's struct."""

    def pack(self, layer: Layer, schedule: Schedule) -> list[Segment]:
        """The weights in row blocks, columns in the order in which they are to be stored."""
        return pack(layer.weights[:, columns_by_shift(layer)], schedule.order, schedule.choice.height)

    def emit(self, layer: Layer, schedule: Schedule, ctx: Context) -> Emitted:
        """One call per segment of equal block height."""
        parts, helpers = [], {"conv_layer": render("conv_layer.c.j2")}
        offsets = column_offsets(layer)[columns_by_shift(layer)]
        segments = self.pack(layer, schedule)
        for segment in segments:
            fields = _fields(layer, segment, offsets, ctx)
            name, text, units = self.kernel(layer, segment, schedule.choice, fields, ctx)
            views = [layer.x, layer.y, *(ctx.view(other) for other in operands(layer.node))]
            parts.append((layer.x.shape[0] * units * segment.blocks, call(name, "conv_layer", fields, views, ctx)))
            helpers[name] = text
        return Emitted(parts, helpers, sum(s.panel.size for s in segments),
                       sum(s.panel.nbytes + s.columns.nbytes for s in segments))


def _fields(layer: Layer, segment: Segment, offsets: Ints, ctx: Context) -> dict[str, Any]:
    """Fields of the layer's struct that both forms need; ``offsets`` are those of the columns as they are stored."""
    y, residuals = layer.y, [ctx.view(name) for name in operands(layer.node)]
    assert y.plane
    columns = np.concatenate([offsets[segment.columns].ravel(), np.zeros(PREFETCH, np.int32)])
    bias = biases(layer.node, ctx, y.shape[1])[segment.filters]
    return {
        "w": ctx.table("float", segment.panel), "bias": ctx.table("float", bias),
        "column": ctx.table("int32_t", columns), "start": ctx.table("int32_t", segment.starts),
        "filter": ctx.table("int32_t", segment.filters), "blocks": segment.blocks,
        "in_image": layer.x.strides[0], "out_image": y.strides[0], "out_plane": y.strides[1], "head": y.plane.origin,
    } | strides_of(residuals, res_image=0, res_plane=1)


def columns_by_shift(layer: Layer) -> Ints:
    """The columns of the weight matrix in the order in which they are stored: one shift after the other."""
    columns = np.arange(layer.weights.shape[1], dtype=np.int32)
    return columns[np.argsort(column_shifts(layer), kind="stable")] if layer.shifts else columns


def column_shifts(layer: Layer) -> Ints:
    """The distance along a row, dx, of every column of the weight matrix."""
    taps = layer.node.attrs["taps"]
    return np.tile(np.array([dx for _, _, dx in taps], np.int32), layer.weights.shape[1] // len(taps))


def column_offsets(layer: Layer) -> Ints:
    """Distance from output pixel to input value for every column (channel, ky, kx) of the weight matrix."""
    x, taps = layer.x, np.array(layer.node.attrs["taps"], np.int64)
    channels = layer.weights.shape[1] // len(taps)
    inside = taps[:, 0] * channels * x.strides[1] + taps[:, 1] * x.strides[2] + taps[:, 2]
    offsets: Ints = (np.arange(channels)[:, None] * x.strides[1] + inside).ravel().astype(np.int32)
    return offsets
