"""Which layers make each other smaller: filters that one loses are channels less for its reader, and vice versa.

A *link* joins two layers where nothing else writes or reads the map between them; depthwise layers and whatever else
works channel by channel may lie between. A filter of the writer need not be computed where the reader has no weights
for it, and the reader's weights for a filter without weights go into its bias
(:mod:`blockpunch.graph.passes.shrink`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from blockpunch.graph.ir import Graph, Node
from blockpunch.graph.operators import core_inputs
from blockpunch.graph.passes.shrink import is_channelwise, is_depthwise, is_layer


@dataclass(frozen=True)
class Link:
    """Two layers, by name, that share the channels of a map with no one else.

    Attributes:
        writer, reader: their names.
        between: names of the depthwise layers between them, from the reader's side.
        padded: whether a filter of the writer can only go where it puts out zero.
    """

    writer: str
    reader: str
    between: tuple[str, ...]
    padded: bool


def links(graph: Graph) -> list[Link]:
    """All links, in the order of their readers."""
    writers = {name: node for node in graph for name in node.outputs}
    readers: dict[str, int] = dict.fromkeys(graph.outputs, 2)  # what goes out has another reader
    for node in graph:
        for name in node.inputs:
            readers[name] = readers.get(name, 0) + 1
    found = []
    for node in graph:
        if is_layer(node, graph):
            link = _behind(node, graph, writers, readers)
            if link is not None:
                found.append(link)
    return found


def _behind(reader: Node, graph: Graph, writers: Mapping[str, Node], readers: Mapping[str, int]) -> Link | None:
    """The link that ends in a layer."""
    name, padded = reader.inputs[0], any(reader.attrs.get("pads", ()))
    between: list[str] = []
    channels = graph.shape(name)[1]
    while readers[name] == 1 and name in writers:
        node = writers[name]
        if graph.shape(node.outputs[0])[1] != channels or any(part in graph.values for part in node.inputs[1:]):
            return None
        if is_layer(node, graph):
            return Link(node.name, reader.name, tuple(between), padded)
        if not is_channelwise(node, graph):
            return None
        if is_depthwise(node, graph):
            between.append(node.name)
            padded = padded or any(node.attrs["pads"])
        name = core_inputs(node)[0]
    return None
