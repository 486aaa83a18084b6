"""What ``inspect`` shows of a model that is not compiled yet."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from blockpunch.cli import show
from blockpunch.graph import load_graph
from blockpunch.graph.operators import OPERATORS
from blockpunch.layers import Layer, kept_dense_by_default, prunable_layers


def inspect_onnx(model: Path, shapes: dict[str, tuple[int, ...]] | None, json_: str | None) -> None:
    """Table or JSON of the layers that can be pruned: weights, zeros, work."""
    graph = load_graph(model, shape=shapes)
    layers = prunable_layers(graph)
    dense = kept_dense_by_default(layers)
    facts = []
    for node in graph.nodes:
        layer = next((known for known in layers if known.name == node.name), None)
        if layer is None or not OPERATORS[node.op].prunable:
            continue
        weight = graph.constants[node.inputs[1]]
        kept = int(np.count_nonzero(weight))
        facts.append((layer, kept, dense.get(layer.name, "")))
    if json_ is not None:
        show.write_json({"model": str(model), "inputs": {n: list(graph.shape(n)) for n in graph.inputs},
                         "outputs": {n: list(graph.shape(n)) for n in graph.outputs},
                         "layers": [_as_json(*fact) for fact in facts]}, json_)
    if json_ == "-":
        return
    show.table(f"{model.name}: {len(graph.nodes)} nodes, {sum(layer.macs for layer in layers) / 1e6:.1f} MMAC",
               ("layer", "kind", "weight", "output", "MMAC", "weights", "rate now", "dense by default"),
               [(layer.name, layer.kind, "x".join(map(str, layer.shape)), "x".join(map(str, layer.output)),
                 layer.macs / 1e6, layer.weights, layer.weights / kept if kept else None, why)
                for layer, kept, why in facts])
    for kind, names in (("input", graph.inputs), ("output", graph.outputs)):
        for name in names:
            show.line(f"{kind} {name}: {list(graph.shape(name))}")


def _as_json(layer: Layer, kept: int, why: str) -> dict[str, object]:
    return {"name": layer.name, "kind": layer.kind, "shape": list(layer.shape), "output": list(layer.output),
            "macs": layer.macs, "weights": layer.weights, "kept_weights": kept, "dense_by_default": why or None}
