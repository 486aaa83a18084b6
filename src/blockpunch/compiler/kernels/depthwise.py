"""Depthwise convolutions: one filter per channel, few multiply-adds per value moved, so what counts is loads.

Two forms. *Rows*: a tile of a few output rows by one vector, so that an input row that is loaded once serves all
output rows that it touches; any row stride, stride 2 in place. Where the gaps that margins put between the rows would
be much of a map, the plane of a channel is copied to where it has margins, in the first-level cache: gaps cost every
layer of that size. *Plane*: all pixels of a small map in registers, across row ends, where a row would leave most of a
vector empty; it needs no margins either.
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
    operands,
    pixel_masks,
    render,
    strides_of,
)
from blockpunch.compiler.kernels.planes import PlaneSums
from blockpunch.compiler.layout import Margin, Needs, View, is_map
from blockpunch.compiler.legalise import is_depthwise
from blockpunch.compiler.program import StepInfo
from blockpunch.graph.ir import Graph, Node
from blockpunch.target import Target

_TILE_ROWS = {1: 4, 2: 2}  # output rows per tile, by row stride: more rows share more loads
_ROW_TILE_CYCLES = 11.0  # to load, store and step, besides the multiply-adds
_PLANE_VECTORS = 16
_SHIFT_CYCLES = {"avx512": 0.5, "neon": 0.5}  # one instruction there
_ROWS_MALUS = 1.4  # for what margins cost other layers, or copies that avoid them
_COPIED_GAP, _COPIED_FLOATS = 1 / 20, 4096  # a gap that is more of a row is worth a copy, in half of the first cache


class Depthwise(Kernel):
    """Convolution with as many groups as input channels and filters; all taps are kept."""

    kind = "depthwise"

    def accepts(self, node: Node, graph: Graph) -> bool:
        """One filter per channel, at most 5 x 5 taps; anything else is left to the general convolution."""
        return node.op == "Conv" and is_map(graph.shape(node.outputs[0])) and is_depthwise(node, graph)

    def needs(self, node: Node, graph: Graph, needs: Needs, target: Target) -> None:
        """Margins for the taps, or for the plane form and stride 1 only one row stride."""
        if _in_registers(node, graph, target):
            needs.margin(node.outputs[0], Margin(row=graph.shape(node.outputs[0])[3]))
            for other in (node.inputs[0], *operands(node)) if node.attrs["stride"] == (1, 1) else ():
                needs.same_row.append((node.outputs[0], other))
            return
        x = graph.shape(node.inputs[0])
        margin = _margin(node, x, graph.shape(node.outputs[0]))
        needs.margin(node.inputs[0], Margin(row=x[3]) if _copied(x, margin) else margin)

    def lower(self, node: Node, ctx: Context) -> Step:
        """Emit the loop of the form that fits the map."""
        x, y = ctx.view(node.inputs[0]), ctx.view(node.outputs[0])
        residuals = [ctx.view(name) for name in operands(node)]
        weights = ctx.graph.constants[node.inputs[1]]
        channels = weights.shape[0]
        emit = _lower_plane if _in_registers(node, ctx.graph, ctx.target) else _lower_rows
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


def _margin(node: Node, x: tuple[int, ...], y: tuple[int, ...]) -> Margin:
    """What the taps read around a map of shape ``x``, for one of shape ``y``."""
    (h, w), (oh, ow), (sh, sw) = x[2:], y[2:], node.attrs["stride"]
    dys, dxs = [t[1] for t in node.attrs["taps"]], [t[2] for t in node.attrs["taps"]]
    left, right = max(0, -min(dxs)), max(0, (ow - 1) * sw + max(dxs) - (w - 1))
    return Margin(top=max(0, -min(dys)), left=left, right=right, row=w + max(left, right),
                  bottom=max(0, (oh - 1) * sh + max(dys) - (h - 1)))


def _copied(x: tuple[int, ...], margin: Margin) -> bool:
    """Whether the rows form copies planes of a map of shape ``x`` to where they have a margin."""
    h, w = x[2:]
    return margin.row - w > _COPIED_GAP * w and (margin.top + h + margin.bottom) * margin.row <= _COPIED_FLOATS


def _in_registers(node: Node, graph: Graph, target: Target) -> bool:
    """Whether the map is small enough for the plane form, and that takes fewer modelled cycles per channel."""
    (h, w), (oh, ow) = graph.shape(node.inputs[0])[2:], graph.shape(node.outputs[0])[2:]
    stride, taps, lanes = node.attrs["stride"], node.attrs["taps"], target.vector_floats
    vectors = -(-max(h * w, oh * stride[0] * max(w, ow * stride[1])) // lanes)
    if stride not in ((1, 1), (2, 2)) or vectors > _PLANE_VECTORS or stride[1] * (ow - 1) >= w:
        return False
    shifts = len({t[1] for t in taps} - {0}) + len({t[2] for t in taps} - {0})
    plane = vectors * (len(taps) / 2 + shifts * _SHIFT_CYCLES.get(target.isa, 1.5))
    tiles = -(-oh // _TILE_ROWS[stride[0]]) * -(-ow // lanes)
    return bool(plane < _ROWS_MALUS * tiles * (_TILE_ROWS[stride[0]] * len(taps) / 2 + _ROW_TILE_CYCLES))


def _loads_of(dxs: list[int], stride: int) -> list[tuple[int, int]]:
    """(column distance, taps it serves) of each load of a row: with stride 2, neighbours come from the same vectors."""
    loads: list[tuple[int, int]] = []
    for dx in dxs:
        if stride == 2 and loads and loads[-1] == (dx - 1, 1):
            loads[-1] = (dx - 1, 2)
        else:
            loads.append((dx, 1))
    return loads


def _lower_plane(node: Node, x: View, y: View, ctx: Context) -> tuple[str, str, str, dict[str, Any]]:
    """(function, its text, its form in words, fields of the layer)."""
    assert x.plane and y.plane
    (h, w), (oh, ow) = x.shape[2:], y.shape[2:]
    stride, lanes, masked = node.attrs["stride"][0], ctx.target.vector_floats, y.plane.zero_margin
    taps = [(dy, dx) for _, dy, dx in node.attrs["taps"]]
    vectors = -(-(oh * x.plane.row if stride == 1 else 2 * (oh - 1) * x.plane.row + 2 * ow - 1) // lanes)
    sums = PlaneSums(taps, h, w, x.plane.row, lanes)
    shape = "_".join(f"{dy}{dx}".replace("-", "m") for dy, dx in taps)
    name = (f"depthwise_plane_{h}x{w}_{shape}_stride{stride}_rows{x.plane.row}_{oh}x{ow}_rows{y.plane.row}"
            f"{epilogue_name(node.epilogue)}{'_margin' if masked else ''}")
    helper = render("depthwise_plane.c.j2", name=name, taps=len(taps), width=lanes, masked=masked, stride=stride,
                    loads=len(operands(node)), epilogue=kernel_epilogue(node.epilogue), rows=oh, columns=ow,
                    in_row=x.plane.row, out_row=y.plane.row, sums=[sums.vector(j) for j in range(vectors)])
    end = vectors * lanes if stride == 1 else oh * y.plane.row
    return name, helper, f"plane of {vectors} vectors", {
        "mask": ctx.table("uint16_t", pixel_masks(y.plane, oh, vectors, lanes)) if stride == 1 and masked else "0",
        "head": y.plane.origin, "gap": y.plane.row - ow, "tail": y.plane.stride - y.plane.origin - end}


def _lower_rows(node: Node, x: View, y: View, ctx: Context) -> tuple[str, str, str, dict[str, Any]]:
    """(function, its text, its form in words, fields of the layer)."""
    assert x.plane and y.plane
    (sh, sw), taps, masked = node.attrs["stride"], node.attrs["taps"], y.plane.zero_margin
    rows = min(_TILE_ROWS.get(sh, 1), y.shape[2])
    residuals = [f"v_load(r{i} + {{t}} * L->res_row[{i}] + j)" for i in range(len(operands(node)))]
    dys, dxs = sorted({t[1] for t in taps}), sorted({t[2] for t in taps})
    shape = "_".join(str(v).replace("-", "m") for v in (*dys, "by", *dxs))
    margin, lanes = _margin(node, x.shape, y.shape), ctx.target.vector_floats
    copied = _copied(x.shape, margin)
    # Storing a part of a vector takes many instructions but with AVX-512; what a sum adds may lie where it is stored.
    overlap = ctx.target.isa != "avx512" and y.shape[3] >= lanes and not residuals
    sizes = "x".join(map(str, (*x.shape[2:], margin.top, margin.bottom, margin.left, margin.right)))
    name = (f"depthwise_{shape}_stride{sh}{sw}_x{rows}{epilogue_name(node.epilogue)}{'_margin' if masked else ''}"
            f"{'_overlap' if overlap else ''}{f'_copied_{sizes}' if copied else ''}")
    helper = render("depthwise_rows.c.j2", name=name, dys=dys, dxs=dxs, sh=sh, sw=sw, rows=rows, masked=masked,
                    overlap=overlap, loads=len(residuals), place=list.index, loads_of=_loads_of,
                    copied=copied, margin=margin, height=x.shape[2], width=x.shape[3], lanes=lanes,
                    epilogue=lambda t: epilogue_code(node.epilogue, "v_", [load.format(t=t) for load in residuals]))
    h, w = y.shape[2:]
    return name, helper, f"{rows} rows x 1 vector{', copied' if copied else ''}", {
        "in_row": x.strides[2], "out_row": y.strides[2], "height": h, "width": w, "head": y.plane.origin,
        "gap": y.plane.row - w, "tail": y.plane.stride - y.plane.origin - h * y.plane.row}
