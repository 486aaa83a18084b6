"""Runs a graph in numpy with the table's reference semantics: the oracle for the compiler and the passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from blockpunch.errors import InputError
from blockpunch.graph.ir import Array, Graph, Node
from blockpunch.graph.operators import OPERATORS, core_inputs


def run(graph: Graph, inputs: Mapping[str, Array] | Sequence[Array] | Array) -> dict[str, Array]:
    """Compute the outputs of ``graph``.

    Args:
        graph: the network.
        inputs: arrays by name, in the graph's order, or one array for a network with one input.

    Returns:
        Output name -> float32 array.

    Raises:
        InputError: wrong names, count or shapes of arrays.
    """
    live = _bind(graph, inputs)
    last_use = {name: index for index, node in enumerate(graph.nodes) for name in node.inputs}
    for index, node in enumerate(graph.nodes):
        arrays = [live[name] if name in live else graph.constants[name] for name in node.inputs]
        live[node.outputs[0]] = run_node(node, arrays)
        for name in set(node.inputs):
            if last_use[name] == index and name in live and name not in graph.outputs:
                del live[name]
    return {name: np.asarray(live[name], order="C") for name in graph.outputs}


def run_node(node: Node, arrays: Sequence[Array]) -> Array:
    """The result of one node with its epilogue; ``arrays`` in the order of ``node.inputs``."""
    result = OPERATORS[node.op].reference(node, arrays[:len(core_inputs(node))])[0]
    for fused in node.epilogue:
        step = Node(node.name, fused.op, (), (), fused.attrs)
        operands = [result] if fused.operand is None else [result, arrays[fused.operand]]
        result = OPERATORS[fused.op].reference(step, operands)[0]
    return result


def _bind(graph: Graph, inputs: Mapping[str, Array] | Sequence[Array] | Array) -> dict[str, Array]:
    if isinstance(inputs, np.ndarray):
        inputs = [inputs]
    if not isinstance(inputs, Mapping):
        if len(inputs) != len(graph.inputs):
            raise InputError(f"{len(inputs)} arrays for {len(graph.inputs)} inputs", where=graph.name)
        inputs = dict(zip(graph.inputs, inputs, strict=True))
    if set(inputs) != set(graph.inputs):
        raise InputError(f"arrays {sorted(inputs)} given, inputs are {graph.inputs}", where=graph.name)
    for name, array in inputs.items():
        if tuple(array.shape) != graph.shape(name):
            raise InputError(f"has shape {tuple(array.shape)}, expected {graph.shape(name)}",
                             where=f"{graph.name}, input '{name}'")
    return {name: np.asarray(array, np.float32) for name, array in inputs.items()}
