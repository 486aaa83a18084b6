"""Batches, image by image: what treats every image alike is compiled for one image and run once for each.

Layer by layer, the feature maps of a whole batch would pass through memory between any two layers; image by image they
stay in the caches, and the time for an image is that of a batch of one. Fully connected layers, and what follows them,
still take the batch at once: their time is that of reading their weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from blockpunch.errors import GraphError
from blockpunch.graph.ir import Graph, Node, Value
from blockpunch.graph.operators import OPERATORS
from blockpunch.graph.operators.table import core_inputs


@dataclass(frozen=True)
class Part:
    """A piece of the network.

    Attributes:
        graph: its inputs and outputs are those of the network, or values that one part leaves for the next.
        repeat: how often it runs, each time on the next image.
    """

    graph: Graph
    repeat: int


def parts_of(graph: Graph) -> list[Part]:
    """The parts of a network, in order of execution: one for each image, then one for the batch, or a single one."""
    batch = {shape[0] if len(shape := graph.shape(name)) > 1 else 1 for name in graph.inputs}
    if len(batch) != 1 or (images := batch.pop()) == 1:
        return [Part(graph, 1)]
    single = _single(graph, images)
    if not any(node.op == "Conv" for node in single):
        return [Part(graph, 1)]
    done = {node.name for node in single}
    rest = [node for node in graph if node.name not in done]
    made = {*graph.inputs, *(name for node in single for name in node.outputs)}
    needed = dict.fromkeys(name for node in rest for name in node.inputs if name in made)
    first = _part(graph, single, [n for n in graph.inputs if any(n in node.inputs for node in single)],
                  [name for name in graph.outputs if name in made - {*graph.inputs}]
                  + [name for name in needed if name not in graph.inputs])
    for name in {name for node in single for name in (*node.inputs, *node.outputs) if name in graph.values}:
        first.values[name] = Value(name, (1, *graph.shape(name)[1:]))
    second = _part(graph, rest, list(needed), [n for n in graph.outputs if n not in made or n in graph.inputs])
    return [Part(first, images)] + [Part(second, 1)] * bool(second.outputs)


def _part(graph: Graph, nodes: list[Node], inputs: list[str], outputs: list[str]) -> Graph:
    names = {name for node in nodes for name in (*node.inputs, *node.outputs)} | {*inputs, *outputs}
    return replace(graph, inputs=inputs, outputs=outputs, nodes=nodes,
                   values={n: v for n, v in graph.values.items() if n in names}, constants=dict(graph.constants))


def _single(graph: Graph, images: int) -> list[Node]:
    """The nodes that can run image by image, rewritten for one image; a node follows what it depends on."""
    apart, found = set(graph.inputs), []
    for node in graph:
        values = [name for name in node.inputs if name in graph.values]
        one = _for_one(node, graph, images) if values and apart.issuperset(values) else None
        if one is not None:
            apart.update(node.outputs)
            found.append(one)
    return found


def _for_one(node: Node, graph: Graph, images: int) -> Node | None:
    """``node`` for a batch of one, if every image's result depends on that image alone, and it is no dense product."""
    attrs = node.attrs
    if node.op == "Linear" or attrs.get("axis") == 0 or 0 in attrs.get("axes", ()) or attrs.get("perm", (0,))[0] != 0:
        return None
    shapes = [graph.shape(name) for name in node.inputs + node.outputs if name in graph.values]
    if any(len(shape) < 2 or shape[0] != images for shape in shapes):
        return None
    if node.op == "Reshape":
        node = replace(node, attrs={**attrs, "shape": (1, *attrs["shape"][1:])})
    inputs = [(1, *graph.shape(n)[1:]) if n in graph.values else graph.shape(n) for n in core_inputs(node)]
    try:
        results = OPERATORS[node.op].infer(node, inputs)
    except GraphError:
        return None
    return node if results == [(1, *graph.shape(name)[1:]) for name in node.outputs] else None
