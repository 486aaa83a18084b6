"""Sums of convolutions as one: conv(a) + conv(b) is one convolution over the channels of a and of b.

A residual block with a convolution in its shortcut adds two maps of which neither is needed by itself. Over one buffer
that holds the channels of both inputs, the sum is a single convolution: one map less is written and read back. Blocked
compressed storage takes different zeros in the two halves, as long as the same filters have like ones in both: where
each half has row blocks of its own, the sum would have none, and stays two convolutions. Runs on a legalised graph,
where strided 1x1 layers already read a repacked input with stride 1.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from blockpunch.compiler.layout import is_map
from blockpunch.compiler.packing import row_orders, stored_columns
from blockpunch.graph.ir import Array, FusedOp, Graph, Node, Value
from blockpunch.graph.passes.shrink import REMOVED_MACS

HEIGHT = 4
"""Filters of the row blocks that are compared: as many as fill the registers of a tile on most targets."""
MOST_PADDING = 1.1
"""Times the stored weights of both that a sum may store."""


def merge_sums(graph: Graph) -> Graph:
    """Replace every convolution that starts its epilogue by adding another one's result, where no copy is needed."""
    out = graph.copy()
    for node in graph:
        other = _addend(node, out)
        if other is not None:
            _merge(node, other, out)
    return out


def _addend(node: Node, graph: Graph) -> Node | None:
    """The convolution whose result ``node`` adds first, if both can be one."""
    first = node.epilogue[0] if node.epilogue else None
    if node.op != "Conv" or first is None or first.op != "Add" or first.operand is None:
        return None
    name = node.inputs[first.operand]
    other = graph.producer().get(name)
    if other is None or other.op != "Conv" or other.epilogue or name in graph.outputs:
        return None
    alike = (other.attrs.get("taps") == node.attrs.get("taps") and other.attrs["groups"] == node.attrs["groups"] == 1
             and all(phase == 0 for phase, _, _ in node.attrs["taps"]))
    once = len(graph.consumers()[name]) == 1 and node.inputs.count(name) == 1
    beside = alike and once and _side_by_side(node.inputs[0], other.inputs[0], graph)
    return other if beside and _share_blocks(*(graph.constants[part.inputs[1]] for part in (node, other))) else None


def _share_blocks(a: Array, b: Array) -> bool:
    """Whether the weights of both pack about as well side by side as each by itself."""
    alone = [weight.reshape(len(weight), -1) for weight in (a, b)]
    return _stored(np.concatenate(alone, 1)) <= MOST_PADDING * sum(map(_stored, alone))


def _stored(weights: Array) -> int:
    """Weights that row blocks store, zeros that fill them included, filters as they come or grouped."""
    return min(sum(height * int(columns.sum()) for height, columns in stored_columns(weights[order.rows] != 0, HEIGHT))
               for order in row_orders(weights, [HEIGHT]))


def _side_by_side(a: str, b: str, graph: Graph) -> bool:
    """Whether two maps can be written next to each other: computed here, of one size, in no other buffer of several."""
    producer, consumers = graph.producer(), graph.consumers()
    shapes = graph.shape(a), graph.shape(b)
    free = all(name in producer and name not in graph.outputs and is_map(graph.shape(name))
               and producer[name].op not in ("Slice", "Concat")
               and not any(user.op in ("Concat", "Slice") for user in consumers[name]) for name in (a, b))
    return a != b and free and shapes[0][0] == shapes[1][0] and shapes[0][2:] == shapes[1][2:]


def _merge(node: Node, other: Node, graph: Graph) -> None:
    """Put one convolution over both inputs in the place of ``node``."""
    a, b = node.inputs[0], other.inputs[0]
    both, weights, bias = (f"{node.name}/{part}" for part in ("inputs", "weights", "bias"))
    (n, ca, h, w), cb = graph.shape(a), graph.shape(b)[1]
    graph.values[both] = Value(both, (n, ca + cb, h, w))
    graph.constants[weights] = np.concatenate([graph.constants[node.inputs[1]], graph.constants[other.inputs[1]]], 1)
    graph.constants[bias] = _bias(node, graph) + _bias(other, graph)
    operands = [node.inputs[f.operand] for f in node.epilogue[1:] if f.operand is not None]
    epilogue, operand = [], 3
    for fused in node.epilogue[1:]:
        epilogue.append(FusedOp(fused.op, fused.attrs, None if fused.operand is None else operand))
        operand += fused.operand is not None
    removed = sum(part.attrs.get(REMOVED_MACS, 0) for part in (node, other))
    merged = replace(node, inputs=(both, weights, bias, *operands), epilogue=tuple(epilogue),
                     path=f"{node.path} + {other.path}", attrs={**node.attrs, REMOVED_MACS: removed})
    place = graph.nodes.index(node)
    graph.nodes[place:place + 1] = [Node(both, "Concat", (a, b), (both,), {"axis": 1}, node.path), merged]
    graph.nodes.remove(other)
    del graph.values[other.outputs[0]]


def _bias(node: Node, graph: Graph) -> Array:
    fused = {f.operand for f in node.epilogue}
    if len(node.inputs) > 2 and 2 not in fused and node.inputs[2]:
        return np.asarray(graph.constants[node.inputs[2]], np.float32).ravel()
    return np.zeros(graph.shape(node.inputs[1])[0], np.float32)
