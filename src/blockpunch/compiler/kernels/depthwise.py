"""Depthwise convolutions: one filter per channel, few multiply-adds per value moved, so what counts is loads.

Two forms. *Rows*: a tile of a few output rows by one vector, so that an input row that is loaded once serves all
output rows that it touches; any row stride, stride 2 in place. *Flat*: vectors along the flat plane, across row ends,
for small maps of stride 1 where a row would leave most of a vector empty.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from blockpunch.compiler.kernels.base import (
    Context,
    Kernel,
    Step,
    biases,
    call,
    epilogue_code,
    epilogue_name,
    kernel_epilogue,
    margins,
    operands,
    pixel_masks,
    render,
    strides_of,
)
from blockpunch.compiler.layout import Margin, Needs, View, flat_vectors, is_map
from blockpunch.compiler.legalise import is_depthwise
from blockpunch.compiler.program import StepInfo
from blockpunch.graph.ir import Graph, Node
from blockpunch.target import Target

_TILE_ROWS = {1: 4, 2: 2}  # output rows per tile, by row stride: more rows share more loads


class Depthwise(Kernel):
    """Convolution with as many groups as input channels and filters; all taps are kept."""

    kind = "depthwise"

    def accepts(self, node: Node, graph: Graph) -> bool:
        """One filter per channel, at most 5 x 5 taps; anything else is left to the general convolution."""
        return node.op == "Conv" and is_map(graph.shape(node.outputs[0])) and is_depthwise(node, graph)

    def needs(self, node: Node, graph: Graph, needs: Needs, target: Target) -> None:
        """Margins for the taps; the flat form also asks for one row stride."""
        if _flat(node, graph, target):
            margins(node, graph, needs)
            return
        (h, w), (oh, ow) = graph.shape(node.inputs[0])[2:], graph.shape(node.outputs[0])[2:]
        (sh, sw), taps = node.attrs["stride"], node.attrs["taps"]
        dys, dxs = [t[1] for t in taps], [t[2] for t in taps]
        needs.margin(node.inputs[0], Margin(
            top=max(0, -min(dys)), left=max(0, -min(dxs)), bottom=max(0, (oh - 1) * sh + max(dys) - (h - 1)),
            right=max(0, (ow - 1) * sw + max(dxs) - (w - 1))))

    def lower(self, node: Node, ctx: Context) -> Step:
        """Emit the loop of the form that fits the map."""
        x, y = ctx.view(node.inputs[0]), ctx.view(node.outputs[0])
        residuals = [ctx.view(name) for name in operands(node)]
        weights = ctx.graph.constants[node.inputs[1]]
        channels = weights.shape[0]
        emit = _lower_flat if _flat(node, ctx.graph, ctx.target) else _lower_rows
        name, helper, form, fields = emit(node, x, y, ctx)
        fields |= {"w": ctx.table("float", weights), "bias": ctx.table("float", biases(node, ctx, channels)),
                   "channels": channels, "in_image": x.strides[0], "in_plane": x.strides[1],
                   "out_image": y.strides[0], "out_plane": y.strides[1]}
        fields |= strides_of(residuals, res_image=0, res_plane=1, res_row=2)
        pixels = y.shape[0] * y.shape[2] * y.shape[3]
        info = StepInfo(node.name, self.kind, node.path, macs=weights.size * pixels,
                        kept_macs=int(np.count_nonzero(weights)) * pixels, weight_bytes=weights.nbytes,
                        packing=form, reason="dense: depthwise")
        return Step(info, x.shape[0] * channels, call(name, "depthwise_layer", fields, [x, y, *residuals], ctx),
                    reads=tuple(v.root for v in (x, *residuals)), writes=(y.root,),
                    helpers={"depthwise_layer": render("depthwise_layer.c.j2"), name: helper})


def _flat(node: Node, graph: Graph, target: Target) -> bool:
    """Whether the flat form loads fewer vectors per channel."""
    if node.attrs["stride"] != (1, 1):
        return False
    (oh, ow), taps, width = graph.shape(node.outputs[0])[2:], node.attrs["taps"], target.vector_floats
    reach = max(t[1] for t in taps) - min(t[1] for t in taps)
    flat = -(-oh * (ow + 1) // width) * len(taps)  # as many loads as multiply-adds
    vectors = -(-ow // width)
    loads = -(-oh // _TILE_ROWS[1]) * vectors * len({t[2] for t in taps}) * (_TILE_ROWS[1] + reach)
    return bool(2 * flat < loads + oh * vectors * len(taps))


def _loads_of(dxs: list[int], stride: int) -> list[tuple[int, int]]:
    """(column distance, taps it serves) of each load of a row: with stride 2, neighbours come from the same vectors."""
    loads: list[tuple[int, int]] = []
    for dx in dxs:
        if stride == 2 and loads and loads[-1] == (dx - 1, 1):
            loads[-1] = (dx - 1, 2)
        else:
            loads.append((dx, 1))
    return loads


def _lower_flat(node: Node, x: View, y: View, ctx: Context) -> tuple[str, str, str, dict[str, Any]]:
    """(function, its text, its form in words, fields of the layer)."""
    assert x.plane and y.plane
    taps, width, masked = node.attrs["taps"], ctx.target.vector_floats, y.plane.zero_margin
    vectors = flat_vectors([x.plane, y.plane], y.shape[2], width)
    tile = 4 if ctx.target.registers - len(taps) >= 6 else 2
    name = f"depthwise_flat_{len(taps)}x{tile}{epilogue_name(node.epilogue)}{'_margin' if masked else ''}"
    helper = render("depthwise_flat.c.j2", name=name, taps=len(taps), vectors=tile, width=width, masked=masked,
                    loads=len(operands(node)), epilogue=kernel_epilogue(node.epilogue))
    where = np.array([dy * x.strides[2] + dx for _, dy, dx in taps], np.int32)
    return name, helper, f"flat, {tile} vectors", {
        "tap": ctx.table("int32_t", where), "vectors": vectors,
        "mask": ctx.table("uint16_t", pixel_masks(y.plane, y.shape[2], vectors, width)),
        "head": y.plane.origin, "tail": y.plane.stride - y.plane.origin - vectors * width}


def _lower_rows(node: Node, x: View, y: View, ctx: Context) -> tuple[str, str, str, dict[str, Any]]:
    """(function, its text, its form in words, fields of the layer)."""
    assert x.plane and y.plane
    (sh, sw), taps, masked = node.attrs["stride"], node.attrs["taps"], y.plane.zero_margin
    rows = min(_TILE_ROWS.get(sh, 1), y.shape[2])
    residuals = [f"v_load(r{i} + {{t}} * L->res_row[{i}] + j)" for i in range(len(operands(node)))]
    dys, dxs = sorted({t[1] for t in taps}), sorted({t[2] for t in taps})
    shape = "_".join(str(v).replace("-", "m") for v in (*dys, "by", *dxs))
    name = f"depthwise_{shape}_stride{sh}{sw}_x{rows}{epilogue_name(node.epilogue)}{'_margin' if masked else ''}"
    helper = render("depthwise_rows.c.j2", name=name, dys=dys, dxs=dxs, sh=sh, sw=sw, rows=rows, masked=masked,
                    loads=len(residuals), place=list.index, loads_of=_loads_of,

                    epilogue=lambda t: epilogue_code(node.epilogue, "v_", [load.format(t=t) for load in residuals]))
    h, w = y.shape[2:]
    return name, helper, f"{rows} rows x 1 vector", {
        "in_row": x.strides[2], "out_row": y.strides[2], "height": h, "width": w, "head": y.plane.origin,
        "gap": y.plane.row - w, "tail": y.plane.stride - y.plane.origin - h * y.plane.row}
