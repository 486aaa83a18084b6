"""Convolutions on planar maps: any kernel, dilation and groups, any zeros, in blocked compressed storage."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from blockpunch.compiler import schedule
from blockpunch.compiler.kernels.base import (
    Context,
    Kernel,
    Step,
    call,
    core_inputs,
    epilogue_code,
    epilogue_name,
    in_sequence,
    operands,
    render,
    strides_of,
)
from blockpunch.compiler.layout import Margin, Needs, Plane, View, flat_vectors, is_map
from blockpunch.compiler.legalise import as_matrix
from blockpunch.compiler.packing import Floats, Ints, Segment, pack
from blockpunch.compiler.program import Choice, Options, StepInfo
from blockpunch.graph.ir import FusedOp, Graph, Node
from blockpunch.target import Target

PREFETCH = 8
"""Columns that the input is fetched ahead; lists end with as many spare entries."""
_TILE_OF = {"pixels": "vectors", "filters": "rows"}


class Conv(Kernel):
    """Pixel vectors times broadcast weights, row block by row block."""

    kind = "conv"

    def accepts(self, node: Node, graph: Graph) -> bool:
        """Every convolution with a map as result."""
        return node.op == "Conv" and is_map(graph.shape(node.outputs[0]))

    def needs(self, node: Node, graph: Graph, needs: Needs, target: Target) -> None:
        """Margins for the taps, and one row stride for input, output and fused operands."""
        margins(node, graph, needs)

    def lower(self, node: Node, ctx: Context) -> Step:
        """Pack the weights, choose the schedule, emit the loop."""
        x, y = ctx.view(node.inputs[0]), ctx.view(node.outputs[0])
        assert x.plane and y.plane
        weights = ctx.graph.constants[node.inputs[1]]
        matrix = as_matrix(weights, node.attrs["groups"])
        vectors = flat_vectors([x.plane, y.plane], y.shape[2], ctx.target.vector_floats)
        geometry = schedule.Geometry(vectors, y.shape[2], y.shape[3], x.shape[1], ctx.threads)
        found = schedule.options(matrix, geometry, ctx.target)
        wanted = ctx.choices.get(node.name)
        chosen = next((s for s in found if s.choice == wanted), found[0])
        ctx.options[node.name] = Options(_key(node, matrix, found, geometry), tuple(s.choice for s in found),
                                         chosen.choice)
        gain = schedule.dense_cycles(matrix, geometry, ctx.target) / chosen.cycles
        segments = pack(matrix, chosen.order, chosen.choice.height)
        offsets = column_offsets(node, x, weights.shape[1] * node.attrs["groups"])
        emitted = [_segment(node, s, chosen.choice, offsets, vectors, x, y, ctx) for s in segments]
        return Step(info=_info(node, ctx, matrix, segments, chosen.choice, gain), units=sum(u for u, _, _ in emitted),
                    body=in_sequence([(u, body) for u, body, _ in emitted]),
                    reads=tuple(ctx.view(n).root for n in (node.inputs[0], *operands(node))), writes=(y.root,),
                    helpers={"conv_layer": render("conv_layer.c.j2"), **{k: t for _, _, h in emitted
                                                                         for k, t in h.items()}})


def margins(node: Node, graph: Graph, needs: Needs) -> None:
    """Margins that a stride-1 walk with ``node``'s taps needs; shared with the depthwise kernel."""
    x, y = node.inputs[0], node.outputs[0]
    (h, w), (oh, ow) = graph.shape(x)[2:], graph.shape(y)[2:]
    dys, dxs = [t[1] for t in node.attrs["taps"]], [t[2] for t in node.attrs["taps"]]
    needs.margin(x, Margin(top=max(0, -min(dys)), left=max(0, -min(dxs)), bottom=max(0, oh - 1 + max(dys) - (h - 1)),
                           right=max(0, ow - 1 + max(dxs) - (w - 1))))
    needs.margin(y, Margin(width=ow))
    for other in (x, *operands(node)):
        needs.same_row.append((y, other))


def column_offsets(node: Node, x: View, channels: int) -> Ints:
    """Distance from output pixel to input value for every column (channel, ky, kx) of the weight matrix."""
    taps = np.array(node.attrs["taps"], np.int64)
    inside = taps[:, 0] * channels * x.strides[1] + taps[:, 1] * x.strides[2] + taps[:, 2]
    return (np.arange(channels)[:, None] * x.strides[1] + inside).ravel().astype(np.int32)


def pixel_masks(plane: Plane, h: int, vectors: int, width: int) -> np.ndarray[tuple[int], np.dtype[np.uint16]]:
    """One bit per lane: whether it is a pixel of the map or a part of the margin."""
    flat = np.arange(vectors * width)
    pixel = (flat % plane.row < plane.w) & (flat < h * plane.row)
    return (pixel.reshape(vectors, width) @ (1 << np.arange(width))).astype(np.uint16)


def kernel_epilogue(epilogue: tuple[FusedOp, ...]) -> Callable[[int | str], list[str]]:
    """Epilogue statements for a vector at a distance from the residual pointers ``r0``, ``r1``, ..."""
    count = sum(f.operand is not None for f in epilogue)
    return lambda at: epilogue_code(epilogue, "v_", [f"v_load(r{i} + {at})" for i in range(count)])


def biases(node: Node, ctx: Context, filters: int) -> Floats:
    """The bias of every filter, zeros where the layer has none."""
    core = core_inputs(node)
    if len(core) > 2 and core[2]:
        return np.asarray(ctx.graph.constants[core[2]], np.float32).ravel()
    return np.zeros(filters, np.float32)


def _segment(node: Node, segment: Segment, chosen: Choice, offsets: Ints, vectors: int, x: View, y: View,
             ctx: Context) -> tuple[int, str, dict[str, str]]:
    """(units, C statements, helper functions) of the row blocks of one height."""
    assert y.plane
    residuals = [ctx.view(name) for name in operands(node)]
    columns = np.concatenate([offsets[segment.columns], np.zeros(PREFETCH, np.int32)])
    bias = biases(node, ctx, y.shape[1])[segment.filters]
    fields: dict[str, Any] = {
        "w": ctx.table("float", segment.panel), "bias": ctx.table("float", bias),
        "column": ctx.table("int32_t", columns), "start": ctx.table("int32_t", segment.starts),
        "filter": ctx.table("int32_t", segment.filters), "blocks": segment.blocks,
        "in_image": x.strides[0], "out_image": y.strides[0], "out_plane": y.strides[1], "head": y.plane.origin,
    }
    fields |= strides_of(residuals, res_image=0, res_plane=1)
    emit = _pixel_form if chosen.form == "pixels" else _filter_form
    name, helper, units = emit(node, segment.height, chosen, vectors, x, y, fields, ctx)
    body = call(name, "conv_layer", fields, [x, y, *residuals], ctx)
    return x.shape[0] * units * segment.blocks, body, {name: helper}


def _pixel_form(node: Node, height: int, chosen: Choice, vectors: int, x: View, y: View, fields: dict[str, Any],
                ctx: Context) -> tuple[str, str, int]:
    """(function, its text, units per image and row block); adds to the fields of the layer."""
    assert y.plane
    masked, width = y.plane.zero_margin, ctx.target.vector_floats
    chunks = -(-vectors // chosen.chunk)
    fields |= {"mask": ctx.table("uint16_t", pixel_masks(y.plane, y.shape[2], vectors, width)) if masked else "0",
               "chunks": chunks, "chunk": chosen.chunk, "vectors": vectors,
               "tail": y.plane.stride - y.plane.origin - vectors * width}
    name = f"conv_{height}x{chosen.tile}{epilogue_name(node.epilogue)}{'_margin' if masked else ''}"
    helper = render("conv.c.j2", name=name, height=height, vectors=chosen.tile, width=width, masked=masked,
                    loads=len(operands(node)), prefetch=PREFETCH, by_lane=ctx.target.isa == "neon",
                    epilogue=kernel_epilogue(node.epilogue))
    return name, helper, chunks


def _filter_form(node: Node, height: int, chosen: Choice, vectors: int, x: View, y: View, fields: dict[str, Any],
                 ctx: Context) -> tuple[str, str, int]:
    """As above, with filters along the vectors."""
    assert x.plane and y.plane
    masked, vl, (rows, width) = y.plane.zero_margin, ctx.target.vector_floats, y.shape[2:]
    fields |= {"tail": y.plane.stride - y.plane.origin - rows * y.plane.row}
    name = (f"conv_filters_{height}_{rows}x{width}_{chosen.tile}_rows{x.plane.row}_{y.plane.row}"
            f"{epilogue_name(node.epilogue)}{'_margin' if masked else ''}")
    helper = render("conv_filters.c.j2", name=name, height=height, lanes=min(height, vl), rows=chosen.tile,
                    width=width, map_rows=rows, in_row=x.plane.row, out_row=y.plane.row, masked=masked, vl=vl,
                    lines=-(-width // vl) * vl, loads=len(operands(node)), epilogue=kernel_epilogue(node.epilogue))
    return name, helper, 1


def _key(node: Node, matrix: Floats, found: list[schedule.Schedule], geometry: schedule.Geometry) -> str:
    """What decides how fast each choice is: the layer's shape, and how its zeros pack."""
    zeros = sorted({(s.choice.form, s.choice.height, s.choice.grouped, round(s.cycles)) for s in found})
    text = repr((matrix.shape, node.attrs["taps"], geometry, epilogue_name(node.epilogue), zeros))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _info(node: Node, ctx: Context, matrix: Floats, segments: list[Segment], chosen: Choice,
          gain: float) -> StepInfo:
    shape = ctx.graph.shape(node.outputs[0])
    pixels = shape[0] * shape[2] * shape[3]
    kept, stored = int(np.count_nonzero(matrix)), sum(s.panel.size for s in segments)
    weights = ctx.graph.constants[node.inputs[1]].size
    share = f"{stored / weights:.0%} of the weights stored" if stored < weights else "all weights stored"
    return StepInfo(node.name, "conv", node.path, macs=weights * pixels, kept_macs=kept * pixels,
                    weight_bytes=sum(s.panel.nbytes + s.columns.nbytes for s in segments),
                    packing=f"{chosen.height} filters x {chosen.tile} {_TILE_OF[chosen.form]}, {share}",
                    reason=_reason(kept, stored, weights, gain))


def _reason(kept: int, stored: int, weights: int, gain: float) -> str:
    if kept == weights:
        return "dense: no zeros in the weights"
    if stored >= weights:
        return f"dense: leaving {weights - kept} zeros out would not be faster with this pattern"
    return f"{gain:.1f}x fewer modelled cycles than dense; {stored - kept} zeros stored to fill blocks"
