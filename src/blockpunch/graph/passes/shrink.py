"""Structured zeros as smaller layers: channels that nobody needs to compute leave the graph, weights and all.

A channel need not be computed when each of its readers can do without it: a layer whose weights for it are zero, or
any layer when it is known to be constant, since what it adds is then a number that moves into the layer's bias.
(Padding spoils that: next to the border a kernel sees fewer constants and more zeros. So a constant channel of a
padded layer must be zero.) Filters of zeros give constants; they stay constant through activations and pooling. Where
operators work channel by channel (activations, pools, depthwise layers, sums, concatenations), a channel can only go
from all inputs and results at once. Channels that are left keep their order, every value keeps at least one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from blockpunch.graph.ir import Array, FusedOp, Graph, Node, Value
from blockpunch.graph.operators import OPERATORS, core_inputs
from blockpunch.graph.passes.editor import Editor, remove_dead
from blockpunch.graph.summary import node_macs
from blockpunch.graph.verify import verify

Flags = npt.NDArray[np.bool_]
Dead = dict[str, Flags]

REMOVED_MACS = "removed_macs"
"""Attribute of a smaller layer: multiply-accumulates that the layer had before and has not now."""

_BINARY = ("Add", "Sub", "Mul", "Div", "Min", "Max")


def shrink(graph: Graph) -> Graph:
    """Remove every channel that need not be computed; the outputs stay the same up to rounding.

    Raises:
        GraphError: the result breaks the rules of the representation.
    """
    constants = _constant_channels(graph)
    dead = _dead_channels(graph, constants)
    if not any(flags.any() for flags in dead.values()):
        return graph
    small = _without(graph, dead, constants)
    verify(small, "removal of dead channels")
    return small


def _channels(graph: Graph, name: str) -> int:
    shape = graph.shape(name)
    return shape[1] if len(shape) > 1 else 1


def is_layer(node: Node, graph: Graph) -> bool:
    """Whether every result channel is a weighted sum over all input channels."""
    return ((node.op == "Conv" and node.attrs["groups"] == 1)
            or (node.op == "Linear" and len(graph.shape(node.inputs[0])) == 2))


def is_depthwise(node: Node, graph: Graph) -> bool:
    """Whether it is a convolution with one filter for each channel."""
    return node.op == "Conv" and graph.shape(node.inputs[1])[:2] == (node.attrs["groups"], 1)


def is_channelwise(node: Node, graph: Graph) -> bool:
    """Whether result channel c (or its run of features, of a Reshape) depends on channel c of every input alone."""
    x, y = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])
    if len(x) < 2 or len(y) < 2:
        return False
    if node.op in _BINARY:
        return len(x) == len(y) and all(_fits(graph, name, y) for name in node.inputs)
    if node.op == "Reshape":
        return len(y) == 2 and x[0] == y[0]
    if node.op in ("ReduceMean", "ReduceMax"):
        return len(x) == 4 and node.attrs["axes"] == (2, 3)
    return (OPERATORS[node.op].unary or node.op in ("MaxPool", "AveragePool", "GlobalAveragePool", "Resize")
            or is_depthwise(node, graph))


def _fits(graph: Graph, name: str, shape: tuple[int, ...]) -> bool:
    """Whether an operand has the result's channels, or is a constant with one number, for each channel or for all."""
    if name in graph.values:
        return graph.shape(name)[:2] == shape[:2] and len(graph.shape(name)) == len(shape)
    own = (1,) * (len(shape) - len(graph.shape(name))) + graph.shape(name)
    return all(size == 1 for axis, size in enumerate(own) if axis != 1)


def _fused_operands(node: Node) -> list[str]:
    return [node.inputs[f.operand] for f in node.epilogue if f.operand is not None]


# ---- channels that are the same number everywhere: one number per channel, or not a number


def _constant_channels(graph: Graph) -> dict[str, Array]:
    known = {name: np.full(_channels(graph, name), np.nan) for name in graph.values}
    for node in graph:
        out, values = node.outputs[0], [known.get(name) for name in node.inputs]
        if is_layer(node, graph):
            found = _layer_constants(graph, node, known[node.inputs[0]])
        elif node.op == "Concat" and node.attrs["axis"] == 1:
            found = np.concatenate([v for v in values if v is not None])
        elif is_channelwise(node, graph):
            found = _channelwise_constants(graph, node, known)
        else:
            continue
        if len(found) == len(known[out]):
            known[out] = _after_epilogue(node, found, known)
    return known


def _bias(graph: Graph, node: Node) -> Array:
    core = core_inputs(node)
    return (graph.constants[core[2]].astype(np.float64).ravel() if len(core) > 2
            else np.zeros(graph.shape(node.inputs[1])[0]))


def _usable(node: Node, numbers: Array) -> Flags:
    """Which of these constant channels add the same number to every pixel of a layer's result."""
    padded = any(node.attrs.get("pads", ()))
    return np.asarray(numbers == 0 if padded else np.isfinite(numbers))


def _sums(weight: Array) -> Array:
    """[filters, channels] sum of the taps."""
    return np.asarray(weight.sum(axis=tuple(range(2, weight.ndim)), dtype=np.float64))


def _layer_constants(graph: Graph, node: Node, numbers: Array) -> Array:
    weight = graph.constants[node.inputs[1]]
    usable = _usable(node, numbers)
    varies = (weight[:, ~usable] != 0).any(axis=tuple(range(1, weight.ndim)))
    found = _bias(graph, node) + _sums(weight[:, usable]) @ numbers[usable]
    return np.where(varies, np.nan, found)


def _channelwise_constants(graph: Graph, node: Node, known: dict[str, Array]) -> Array:
    numbers, rank = known[node.inputs[0]] if node.inputs[0] in known else np.zeros(0), len(graph.shape(node.outputs[0]))
    if is_depthwise(node, graph):
        weight = graph.constants[node.inputs[1]]
        if len(weight) != len(numbers):
            return np.full(len(weight), np.nan)
        sums = _sums(weight)[:, 0]
        zero = ~weight.any(axis=(1, 2, 3))
        exact = np.where(_usable(node, numbers), numbers, np.nan)
        return np.where(zero, _bias(graph, node), sums * exact + _bias(graph, node))
    if node.op == "Reshape":
        return np.repeat(numbers, graph.shape(node.outputs[0])[1] // max(len(numbers), 1))
    if node.op in ("MaxPool", "AveragePool"):
        return np.where(_pool_keeps(node, numbers), numbers, np.nan)
    if node.op in ("GlobalAveragePool", "ReduceMean", "ReduceMax", "Resize"):
        return numbers
    arrays = [known[name].reshape(1, -1, *(1,) * (rank - 2)) if name in known else graph.constants[name]
              for name in core_inputs(node)]
    with np.errstate(all="ignore"):
        return np.asarray(OPERATORS[node.op].reference(node, arrays)[0], np.float64).ravel()


def _pool_keeps(node: Node, numbers: Array) -> Flags:
    """Whether a window over a constant gives this constant, at the border too."""
    pads, kernel = node.attrs["pads"], node.attrs["kernel"]
    inside = (all(pad < kernel[axis % 2] for axis, pad in enumerate(pads))
              and node.attrs.get("dilation", (1, 1)) == (1, 1))
    if not any(pads) or (inside and (node.op == "MaxPool" or not node.attrs["count_include_pad"])):
        return np.isfinite(numbers)
    return np.asarray((numbers == 0) & (node.op == "AveragePool"))


def _after_epilogue(node: Node, numbers: Array, known: dict[str, Array]) -> Array:
    for fused in node.epilogue:
        step = Node(node.name, fused.op, (), (), fused.attrs)
        operands = [numbers] if fused.operand is None else [numbers, known[node.inputs[fused.operand]]]
        with np.errstate(all="ignore"):
            numbers = np.asarray(OPERATORS[fused.op].reference(step, operands)[0], np.float64)
    return np.where(np.isfinite(numbers), numbers, np.nan)


# ---- channels that can go


def _dead_channels(graph: Graph, constants: dict[str, Array]) -> Dead:
    """The largest sets of channels that all readers and writers can do without."""
    dead = {name: np.ones(_channels(graph, name), np.bool_) for name in graph.values}
    for name in (*graph.inputs, *graph.outputs):
        dead[name][:] = False
    for node in graph:
        if is_layer(node, graph):
            x = node.inputs[0]
            weight = graph.constants[node.inputs[1]]
            unread = ~weight.any(axis=(0, *range(2, weight.ndim)))
            dead[x] &= unread | _usable(node, constants[x])
    while True:
        before = sum(int(flags.sum()) for flags in dead.values())
        for node in (*graph.nodes[::-1], *graph.nodes):
            _agree(graph, node, dead)
        if before == sum(int(flags.sum()) for flags in dead.values()):
            whole = [flags for flags in dead.values() if flags.all()]
            if not whole:
                return dead
            whole[0][0] = False


def _agree(graph: Graph, node: Node, dead: Dead) -> None:
    """Let a node's inputs and result lose the same channels."""
    out = node.outputs[0]
    if is_layer(node, graph):
        _intersect(dead, [out, *_fused_operands(node)])
    elif node.op == "Concat" and node.attrs["axis"] == 1 and not node.epilogue and _distinct_values(graph, node):
        ends = np.cumsum([len(dead[name]) for name in node.inputs])
        for name, part in zip(node.inputs, np.split(dead[out], ends[:-1]), strict=True):
            part &= dead[name]
            dead[name] &= part
    elif node.op == "Reshape" and is_channelwise(node, graph) and not node.epilogue:
        runs = dead[out].reshape(len(dead[node.inputs[0]]), -1)
        dead[node.inputs[0]] &= runs.all(axis=1)
        runs &= dead[node.inputs[0]][:, None]
    elif is_channelwise(node, graph) and len(dead[node.inputs[0]]) == len(dead[out]):
        _intersect(dead, [out, *(name for name in node.inputs if name in dead)])
    else:
        for name in (out, *(name for name in node.inputs if name in dead)):
            dead[name][:] = False


def _distinct_values(graph: Graph, node: Node) -> bool:
    return all(name in graph.values for name in node.inputs) and len(graph.shape(node.outputs[0])) > 1


def _intersect(dead: Dead, names: list[str]) -> None:
    common = np.logical_and.reduce([dead[name] for name in names])
    for name in names:
        dead[name] &= common


# ---- the smaller graph


def _without(graph: Graph, dead: Dead, constants: dict[str, Array]) -> Graph:
    editor = Editor(graph)
    small = editor.graph
    for name, flags in dead.items():
        if flags.any():
            shape = graph.shape(name)
            small.values[name] = Value(name, (shape[0], int((~flags).sum()), *shape[2:]))
    for at, node in enumerate(graph):
        names = [name for name in (*node.inputs, *node.outputs) if name in dead]
        if any(dead[name].any() for name in names):
            small.nodes[at] = _smaller(editor, graph, node, dead, constants)
    return remove_dead(small)


def _smaller(editor: Editor, graph: Graph, node: Node, dead: Dead, constants: dict[str, Array]) -> Node:
    kept = ~dead[node.outputs[0]]
    if node.op == "Reshape":
        return replace(node, attrs={**node.attrs, "shape": editor.graph.shape(node.outputs[0])})
    if is_layer(node, graph):
        gone = dead[node.inputs[0]]
        weight, bias = graph.constants[node.inputs[1]], _bias(graph, node)
        numbers = np.nan_to_num(constants[node.inputs[0]][gone])  # what is not a number is not read either
        bias = bias + _sums(weight[:, gone]) @ numbers
        new = _with_weights(editor, node, weight[kept][:, ~gone], bias[kept], node.attrs)
    elif is_depthwise(node, graph):
        weight, bias = graph.constants[node.inputs[1]], _bias(graph, node)
        new = _with_weights(editor, node, weight[kept], bias[kept], {**node.attrs, "groups": int(kept.sum())})
    else:
        return replace(node, inputs=tuple(_sliced(editor, graph, name, kept) for name in node.inputs))
    removed = node_macs(graph, node) - node_macs(editor.graph, new)
    return replace(new, attrs={**new.attrs, REMOVED_MACS: node.attrs.get(REMOVED_MACS, 0) + removed})


def _sliced(editor: Editor, graph: Graph, name: str, kept: Flags) -> str:
    """A constant operand for the channels that are left; values and single numbers as they are."""
    array = graph.constants.get(name)
    if array is None or array.size == 1:
        return name
    return editor.add_constant(f"{name}/kept", np.compress(kept, array, axis=list(array.shape).index(array.size)))


def _with_weights(editor: Editor, node: Node, weight: Array, bias: Array, attrs: dict[str, Any]) -> Node:
    had_bias = len(core_inputs(node)) > 2
    inputs = [node.inputs[0], editor.add_constant(f"{node.inputs[1]}/kept", weight)]
    shift = 0
    if had_bias or bias.any():
        inputs.append(editor.add_constant(f"{node.name}/bias", bias))
        shift = 0 if had_bias else 1
    epilogue = tuple(_moved(node.epilogue, shift))
    return replace(node, inputs=(*inputs, *_fused_operands(node)), attrs=attrs, epilogue=epilogue)


def _moved(epilogue: tuple[FusedOp, ...], shift: int) -> Iterator[FusedOp]:
    for fused in epilogue:
        yield fused if fused.operand is None else replace(fused, operand=fused.operand + shift)
