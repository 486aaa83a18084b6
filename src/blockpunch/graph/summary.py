"""How much work a graph is: multiply-accumulates (MACs), and those left when zero weights are skipped."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from blockpunch.graph.ir import Graph, Node
from blockpunch.graph.operators import OPERATORS, core_inputs


@dataclass(frozen=True)
class LayerSummary:
    """One row: a node with its MACs, the MACs its non-zero weights need, and its weights (zero for the unweighted)."""

    name: str
    op: str
    path: str
    output_shape: tuple[int, ...]
    macs: int
    kept_macs: int
    weights: int
    kept_weights: int

    @property
    def rate(self) -> float:
        """Compression rate: weights before / weights kept (1.0 without weights, inf when nothing is kept)."""
        if not self.weights:
            return 1.0
        return self.weights / self.kept_weights if self.kept_weights else float("inf")


def node_macs(graph: Graph, node: Node) -> int:
    """Multiply-accumulates of one node, zeros included."""
    inputs = [graph.shape(name) for name in core_inputs(node)]
    return OPERATORS[node.op].macs(node, inputs, [graph.shape(name) for name in node.outputs])


def summarize(graph: Graph) -> list[LayerSummary]:
    """One row per node, in order."""
    rows = []
    for node in graph.nodes:
        macs = kept = node_macs(graph, node)
        weights = kept_weights = 0
        if OPERATORS[node.op].prunable:
            weight = graph.constants[node.inputs[1]]
            weights, kept_weights = weight.size, int(np.count_nonzero(weight))
            kept = macs // max(weights, 1) * kept_weights  # every weight is used equally often
        rows.append(LayerSummary(node.name, node.op, node.path, graph.shape(node.outputs[0]), macs, kept, weights,
                                 kept_weights))
    return rows


def total_macs(graph: Graph) -> int:
    """Multiply-accumulates of the whole graph, zeros included."""
    return sum(node_macs(graph, node) for node in graph.nodes)


def kept_macs(graph: Graph) -> int:
    """Multiply-accumulates that non-zero weights need."""
    return sum(row.kept_macs for row in summarize(graph))
