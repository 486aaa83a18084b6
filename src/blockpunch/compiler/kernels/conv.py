"""Convolutions on planar maps: any kernel, dilation and groups, any zeros."""

from __future__ import annotations

import hashlib

import numpy as np

from blockpunch.compiler.forms import FORMS
from blockpunch.compiler.forms.base import Emitted, Layer, Schedule
from blockpunch.compiler.kernels.base import Context, Kernel, Step, epilogue_name, operands, together
from blockpunch.compiler.layout import Layout, Margin, Needs, is_map
from blockpunch.compiler.legalise import as_matrix
from blockpunch.compiler.program import Options, StepInfo
from blockpunch.graph.ir import Graph, Node
from blockpunch.target import Target


class Conv(Kernel):
    """The form with the fewest modelled cycles, or the one that measurement has decided on."""

    kind = "conv"

    def accepts(self, node: Node, graph: Graph) -> bool:
        """Every convolution with a map as result."""
        return node.op == "Conv" and is_map(graph.shape(node.outputs[0]))

    def needs(self, node: Node, graph: Graph, needs: Needs, target: Target) -> None:
        """Margins for the taps, and one row stride for input, output and fused operands."""
        x, y = node.inputs[0], node.outputs[0]
        (h, w), (oh, ow) = graph.shape(x)[2:], graph.shape(y)[2:]
        dys, dxs = [t[1] for t in node.attrs["taps"]], [t[2] for t in node.attrs["taps"]]
        left, right = max(0, -min(dxs)), max(0, ow + max(dxs) - w)
        needs.margin(x, Margin(top=max(0, -min(dys)), left=left, bottom=max(0, oh + max(dys) - h), right=right,
                               row=0 if node.name in needs.sideless else w + max(left, right)))
        needs.margin(y, Margin(row=ow))
        for other in (x, *operands(node)):
            needs.same_row.append((y, other))

    def lower(self, node: Node, ctx: Context) -> Step:
        """Choose the form and its schedule, pack the weights, emit the loop."""
        layer = layer_of(node, ctx.graph, ctx.layout, ctx.target, ctx.threads)
        found = ctx.schedules.options(layer)
        wanted = ctx.choices.get(node.name)
        chosen = next((s for s in found if s.choice == wanted), found[0])
        ctx.options[node.name] = Options(_key(layer, found), tuple(s.choice for s in found), chosen.choice,
                                         float(chosen.cycles))
        emitted = FORMS[chosen.choice.form].emit(layer, chosen, ctx)
        units, body = together(emitted.parts)
        return Step(info=_info(layer, chosen, emitted, ctx), units=units, body=body, helpers=emitted.helpers,
                    reads=tuple(ctx.view(n).root for n in (node.inputs[0], *operands(node))), writes=(layer.y.root,),
                    thread_floats=emitted.thread_floats, grain=emitted.grain)


def layer_of(node: Node, graph: Graph, layout: Layout, target: Target, threads: int) -> Layer:
    """All that the forms ask about a convolution."""
    matrix = as_matrix(graph.constants[node.inputs[1]], node.attrs["groups"])
    return Layer(node, matrix, layout.views[node.inputs[0]], layout.views[node.outputs[0]], target, threads)


def _key(layer: Layer, found: list[Schedule]) -> str:
    """What decides how fast each choice is: the layer's shape, and how its zeros pack."""
    zeros = sorted({(s.choice.form, s.choice.height, s.choice.grouped, round(s.cycles)) for s in found})
    shape = (layer.vectors, layer.rows, layer.width, layer.channels, layer.threads)
    text = repr((layer.weights.shape, layer.node.attrs["taps"], shape, epilogue_name(layer.node.epilogue), zeros))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _info(layer: Layer, chosen: Schedule, emitted: Emitted, ctx: Context) -> StepInfo:
    node, choice = layer.node, chosen.choice
    pixels = layer.y.shape[0] * layer.rows * layer.width
    kept, weights = int(np.count_nonzero(layer.weights)), ctx.graph.constants[node.inputs[1]].size
    share = f"{emitted.stored / weights:.0%} of the" if emitted.stored < weights else "all"
    tile = f"{choice.height} filters x {choice.tile} {FORMS[choice.form].tile_unit}"
    gain = ctx.schedules.dense_cycles(layer) / chosen.cycles
    return StepInfo(node.name, "conv", node.path, macs=weights * pixels, kept_macs=kept * pixels,
                    weight_bytes=emitted.weight_bytes,
                    packing=f"{tile}, {share} weights stored",
                    reason=_reason(kept, emitted.stored, weights, gain))


def _reason(kept: int, stored: int, weights: int, gain: float) -> str:
    if kept == weights:
        return "dense: no zeros in the weights"
    if stored >= weights:
        return f"dense: leaving {weights - kept} zeros out would not be faster with this pattern"
    return f"{gain:.1f}x fewer modelled cycles than dense; {stored - kept} zeros stored to fill blocks"
