"""The rules of a graph, as an executable check that runs after every import and every pass."""

from __future__ import annotations

import math

import numpy as np

from blockpunch.errors import GraphError
from blockpunch.graph.ir import Graph, Node
from blockpunch.graph.operators import OPERATORS, core_inputs

EPILOGUE_BINARY = ("Add", "Mul", "Sub")  # what an epilogue can do with a second tensor: result OP operand


def verify(graph: Graph, after: str = "") -> None:
    """Raise GraphError at the first rule that ``graph`` breaks.

    Rules: names are unique; every input is written before it is read; shapes agree with the operator table; weights are
    constants; everything is float32; every graph output is written by a node; epilogues fit their node.

    Args:
        graph: the graph to check.
        after: the pass that made it, for the message.
    """
    where = f"{graph.name} after {after}" if after else graph.name
    ready = _check_tensors(graph, where)
    names: set[str] = set()
    for node in graph.nodes:
        at = f"{where}, {node.op} '{node.name}'"
        if node.name in names:
            raise GraphError("two nodes have this name", where=at)
        names.add(node.name)
        missing = [name for name in node.inputs if name not in ready and name not in graph.constants]
        if missing:
            raise GraphError(f"reads {missing} before anything writes it", where=at)
        _check_node(graph, node, at)
        if node.outputs[0] in ready or node.outputs[0] in graph.constants:
            raise GraphError(f"writes '{node.outputs[0]}', which has a writer already", where=at)
        ready.update(node.outputs)
    unwritten = [name for name in graph.values if name not in ready]
    if unwritten:
        raise GraphError(f"values that nothing writes: {unwritten[:5]}", where=where)
    for name in graph.outputs:
        if name not in ready or name in graph.inputs:
            raise GraphError(f"output '{name}' is not written by any node", where=where)


def _check_tensors(graph: Graph, where: str) -> set[str]:
    if not graph.outputs or not graph.inputs:
        raise GraphError("a graph needs at least one input and one output", where=where)
    if len(set(graph.inputs)) != len(graph.inputs) or len(set(graph.outputs)) != len(graph.outputs):
        raise GraphError("an input or output is listed twice", where=where)
    for name, value in graph.values.items():
        if name != value.name or value.dtype != np.float32 or not all(
                type(size) is int and size > 0 for size in value.shape):
            raise GraphError(f"value {value} must be float32 with positive whole sizes", where=f"{where}, '{name}'")
    for name, array in graph.constants.items():
        if name in graph.values:
            raise GraphError("is both a constant and a value", where=f"{where}, '{name}'")
        if array.dtype != np.float32:
            raise GraphError(f"constants must be float32, this is {array.dtype}", where=f"{where}, '{name}'")
    missing = [name for name in graph.inputs if name not in graph.values]
    if missing:
        raise GraphError(f"inputs without a value: {missing}", where=where)
    return set(graph.inputs)


def _check_node(graph: Graph, node: Node, at: str) -> None:
    operator = OPERATORS.get(node.op)
    if operator is None:
        raise GraphError("is not in the operator table", where=at)
    inputs = core_inputs(node)
    least, most = operator.arity
    if not least <= len(inputs) <= most or len(node.outputs) != 1:
        raise GraphError(f"has {len(inputs)} inputs and {len(node.outputs)} outputs", where=at)
    absent = [name for name in operator.attributes if name not in node.attrs]
    if absent:
        raise GraphError(f"lacks the attributes {absent}", where=at)
    if operator.constants is not None:
        loose = [name for name in inputs[operator.constants:] if name not in graph.constants]
        if loose:
            raise GraphError(f"inputs {loose} must be constants", where=at)
    shape = operator.infer(node, [graph.shape(name) for name in inputs])[0]
    declared = graph.shape(node.outputs[0])
    if math.prod(shape) == 0 or shape != declared:
        raise GraphError(f"computes {shape}, but '{node.outputs[0]}' is declared {declared}", where=at)
    _check_epilogue(graph, node, shape, at)


def _check_epilogue(graph: Graph, node: Node, shape: tuple[int, ...], at: str) -> None:
    expected = len(core_inputs(node))
    for fused in node.epilogue:
        if fused.operand is None:
            if fused.op not in OPERATORS or not OPERATORS[fused.op].unary:
                raise GraphError(f"'{fused.op}' cannot stand in an epilogue", where=at)
            absent = [name for name in OPERATORS[fused.op].attributes if name not in fused.attrs]
            if absent:
                raise GraphError(f"'{fused.op}' in the epilogue lacks the attributes {absent}", where=at)
            continue
        if fused.op not in EPILOGUE_BINARY:
            raise GraphError(f"'{fused.op}' cannot stand in an epilogue", where=at)
        if fused.operand != expected or expected >= len(node.inputs):
            raise GraphError(f"operand {fused.operand} of the epilogue should be input {expected}", where=at)
        name = node.inputs[fused.operand]
        if name not in graph.values or graph.shape(name) != shape:
            raise GraphError(f"operand '{name}' of the epilogue must be a value of shape {shape}", where=at)
        expected += 1
    if expected != len(node.inputs):
        raise GraphError("has inputs that neither the operator nor the epilogue reads", where=at)
