"""Depthwise convolutions: one filter per channel; few multiply-adds per value moved, so weights stay in registers."""

from __future__ import annotations

import numpy as np

from blockpunch.compiler.kernels.base import Context, Kernel, Step, epilogue_name, operands, render
from blockpunch.compiler.kernels.conv import biases, kernel_epilogue, margins, pixel_masks
from blockpunch.compiler.layout import Needs, flat_vectors, is_map
from blockpunch.compiler.program import StepInfo
from blockpunch.graph.ir import Graph, Node
from blockpunch.target import Target

_MAX_TAPS = 25


class Depthwise(Kernel):
    """Convolution with as many groups as input channels and filters."""

    kind = "depthwise"

    def accepts(self, node: Node, graph: Graph) -> bool:
        """One filter per channel, at most 5 x 5 taps; anything else is left to the general convolution."""
        if node.op != "Conv" or not is_map(graph.shape(node.outputs[0])):
            return False
        weights = graph.shape(node.inputs[1])
        return node.attrs["groups"] == weights[0] and weights[2] * weights[3] <= _MAX_TAPS

    def needs(self, node: Node, graph: Graph, needs: Needs, target: Target) -> None:
        """The same margins and row stride as the general convolution."""
        margins(node, graph, needs)

    def lower(self, node: Node, ctx: Context) -> Step:
        """All taps are kept: skipping single zero taps would cost more than it saves."""
        x, y = ctx.view(node.inputs[0]), ctx.view(node.outputs[0])
        assert x.plane and y.plane
        weights = ctx.graph.constants[node.inputs[1]]
        channels, taps = weights.shape[0], weights[0].size
        residuals = [ctx.view(name) for name in operands(node)]
        vectors = flat_vectors([x.plane, y.plane], y.shape[2], ctx.target.vector_floats)
        masked = y.plane.zero_margin
        tile = 4 if ctx.target.registers - taps >= 6 else 2
        name = f"depthwise_{taps}x{tile}{epilogue_name(node.epilogue)}{'_margin' if masked else ''}"
        helper = render("depthwise.c.j2", name=name, taps=taps, vectors=tile, width=ctx.target.vector_floats,
                        masked=masked, loads=len(residuals), epilogue=kernel_epilogue(node.epilogue))
        where = np.array(node.attrs["taps"], np.int64)
        tap = where[:, 0] * channels * x.strides[1] + where[:, 1] * x.strides[2] + where[:, 2]
        fields = {
            "w": ctx.table("float", weights), "bias": ctx.table("float", biases(node, ctx, channels)),
            "tap": ctx.table("int32_t", tap.astype(np.int32)),
            "mask": ctx.table("uint16_t", pixel_masks(y.plane, y.shape[2], vectors, ctx.target.vector_floats)),
            "channels": channels, "vectors": vectors, "in_image": x.strides[0], "in_plane": x.strides[1],
            "out_image": y.strides[0], "out_plane": y.strides[1], "head": y.plane.origin,
            "tail": y.plane.stride - y.plane.origin - vectors * ctx.target.vector_floats,
        }
        for key, axis in (("res_image", 0), ("res_plane", 1)):
            if residuals:
                fields[key] = "{" + ", ".join(str(r.strides[axis]) for r in residuals) + "}"
        layer = ", ".join(f".{k} = {v}" for k, v in fields.items())
        pointers = ", ".join(["&layer", *(ctx.pointer(view) for view in (x, y, *residuals))])
        pixels = y.shape[0] * y.shape[2] * y.shape[3]
        info = StepInfo(node.name, self.kind, node.path, macs=weights.size * pixels,
                        kept_macs=int(np.count_nonzero(weights)) * pixels, weight_bytes=weights.nbytes,
                        packing=f"1 filter x {tile} vectors, all {taps} taps", reason="dense: depthwise")
        return Step(info, x.shape[0] * channels,
                    f"const depthwise_layer layer = {{{layer}}};\n{name}({pointers}, begin, end);",
                    reads=tuple(v.root for v in (x, *residuals)), writes=(y.root,),
                    helpers={"depthwise_layer": render("depthwise_layer.c.j2"), name: helper})

