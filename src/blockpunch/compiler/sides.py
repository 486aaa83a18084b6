"""Which convolutions do without margins at the sides of their maps.

A margin lets a tap read beyond the side of a map without asking; but every layer of the stride group then walks over
gaps: at 14 pixels a row a fifteenth of its work, at 7 an eighth. Without it, the loads of the shifted taps clear the
lanes that would come from the neighbouring row, for which the columns are sorted by their shift, and not every form can
do that. So a stride group goes without where the model finds its convolutions faster in sum.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from blockpunch.compiler.kernels import Kernel
from blockpunch.compiler.kernels.conv import Conv, layer_of
from blockpunch.compiler.layout import Layout, Needs, assign
from blockpunch.compiler.schedule import Schedules
from blockpunch.graph.ir import Graph, Node
from blockpunch.target import Target


def lay_out(pairs: Sequence[tuple[Node, Kernel]], graph: Graph, target: Target, threads: int,
            schedules: Schedules) -> Layout:
    """The layout of a legalised graph, whose nodes the kernels of ``pairs`` compute."""
    wide = layout_without(pairs, graph, target, frozenset())
    convolutions = [node for node, kernel in pairs if isinstance(kernel, Conv)]
    shifted = {node.name: wide.groups[node.outputs[0]] for node in convolutions
               if any(dx for _, _, dx in node.attrs["taps"])}
    narrow = layout_without(pairs, graph, target, frozenset(shifted))
    saved: dict[str, float] = defaultdict(float)
    for node in convolutions:
        group = wide.groups[node.outputs[0]]
        if group in shifted.values():
            before, after = (schedules.options(layer_of(node, graph, layout, target, threads))[0].cycles
                             for layout in (wide, narrow))
            saved[group] += before - after
    return layout_without(pairs, graph, target, frozenset(name for name, group in shifted.items() if saved[group] > 0))


def layout_without(pairs: Sequence[tuple[Node, Kernel]], graph: Graph, target: Target,
                   sideless: frozenset[str]) -> Layout:
    """The layout in which these convolutions have no margins at the sides of their maps, unless others ask for them."""
    needs = Needs(sideless)
    for node, kernel in pairs:
        kernel.needs(node, graph, needs, target)
    return assign(graph, needs, target.vector_floats)
