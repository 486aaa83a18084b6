"""From the operators of the graph to what the kernels compute: the last graph-to-graph step, with its own operators.

* ``Repack(x)`` step=(sh, sw): every (sh x sw) phase of a map as channels of its own, phase after phase, a planar value.
  A strided convolution reads phases with stride 1; step (1, 1) just brings a graph input into planar form.
* ``Conv`` gets ``taps``: for each kernel position (phase, dy, dx) of its stride-1 input. Depthwise convolutions keep
  their stride and have no phases. Kernel rows and columns that only ever see padding are cut off.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from blockpunch.compiler.layout import is_map
from blockpunch.graph.ir import Graph, Node, Value

_DEPTHWISE_TAPS = 25

_LARGEST_POWER = 64


def legalise(graph: Graph) -> Graph:
    """Rewrite ``graph`` (optimised, verified) into the operators that kernels take; the meaning stays."""
    out = graph.copy()
    out.nodes = []
    for node in graph:
        node = _simplify(node, out)
        if node.op == "Conv":
            node = _conv(node, out)
        elif node.op == "Linear":
            node = _linear(node, out)
        elif node.op == "Reshape" and is_map(out.shape(node.inputs[0])) and is_map(out.shape(node.outputs[0])):
            node = _through_flat(node, out)
        out.nodes.append(node)
    _copy_outputs(out)
    return out


def _simplify(node: Node, out: Graph) -> Node:
    """Powers by a constant become products and roots: cheaper than an exponential, and right for negative numbers."""
    if node.op != "Pow" or node.inputs[1] not in out.constants or out.constants[node.inputs[1]].size != 1:
        return node
    exponent = float(out.constants[node.inputs[1]].ravel()[0])
    if out.shape(node.inputs[0]) != out.shape(node.outputs[0]):
        return node
    if exponent == 0.5:
        return replace(node, op="Sqrt", inputs=node.inputs[:1])
    if not exponent.is_integer() or not 1 <= abs(exponent) <= _LARGEST_POWER:
        return node
    if exponent > 0:
        return _product(node, int(exponent), out)
    one = f"{node.name}/one"
    out.constants[one] = np.ones((), np.float32)
    power = node.inputs[0]
    if exponent != -1:
        power = _add(f"{node.name}/power", out.shape(power), out)
        out.nodes.append(_product(Node(power, "Pow", node.inputs[:1], (power,), {}, node.path), -int(exponent), out))
    return replace(node, op="Div", inputs=(one, power))


def _product(node: Node, exponent: int, out: Graph) -> Node:
    """The positive whole power of a value, by squaring; ``node`` becomes the last of the products."""
    x = node.inputs[0]
    if exponent == 1:
        return replace(node, op="Copy", inputs=(x,))
    if exponent == 2:
        return replace(node, op="Mul", inputs=(x, x))
    odd = exponent % 2
    lower = exponent - 1 if odd else exponent // 2
    part = _add(f"{node.name}/power{lower}", out.shape(x), out)
    out.nodes.append(_product(Node(part, "Pow", (x,), (part,), {}, node.path), lower, out))
    return replace(node, op="Mul", inputs=(part, x if odd else part))


def _add(name: str, shape: tuple[int, ...], out: Graph) -> str:
    """Declare a new value."""
    out.values[name] = Value(name, shape)
    return name


def _linear(node: Node, out: Graph) -> Node:
    """Linear layers walk rows; a map that goes in or comes out is copied to or from rows."""
    result = node.outputs[0]
    if not is_map(out.shape(node.inputs[0])) and not is_map(out.shape(result)):
        return node
    inputs = list(node.inputs)
    for at in (0, *(f.operand for f in node.epilogue if f.operand is not None)):
        shape = out.shape(inputs[at])
        rows = _add(f"{node.name}/rows{at}", (prod(shape[:-1]), shape[-1]), out)
        out.nodes.append(Node(rows, "Reshape", (inputs[at],), (rows,), {"shape": out.shape(rows)}, node.path))
        inputs[at] = rows
    shape = out.shape(result)
    flat = _add(f"{node.name}/rows", (prod(shape[:-1]), shape[-1]), out)
    out.nodes.append(replace(node, inputs=tuple(inputs), outputs=(flat,)))
    return Node(f"{node.name}/map", "Reshape", (flat,), (result,), {"shape": shape}, node.path)


def seen(node: Node, graph: Graph) -> tuple[slice, slice]:
    """Rows and columns of a convolution's kernel that ever lie on the map; others meet padding alone, as those of a
    3x3 kernel of dilation 24 on a map of 16 x 16, or of any on a map of one pixel."""
    kernel, size, results = (graph.shape(name)[2:] for name in (*node.inputs[1::-1], node.outputs[0]))
    found = []
    for axis in (0, 1):
        stride, dilation, pad = (node.attrs[name][axis] for name in ("stride", "dilation", "pads"))
        on_map = [k for k in range(kernel[axis])
                  if any(0 <= i * stride + k * dilation - pad < size[axis] for i in range(results[axis]))]
        found.append(slice(on_map[0], on_map[-1] + 1) if on_map else slice(kernel[axis]))
    return found[0], found[1]


def _cut(node: Node, out: Graph) -> Node:
    """The convolution without the rows and columns of its kernel that are never :func:`seen`."""
    w, rows_columns = node.inputs[1], seen(node, out)
    weights = out.constants[w][:, :, *rows_columns]
    if weights.shape == out.shape(w):
        return node
    cut = f"{w}/seen_{'_'.join(map(str, weights.shape[2:]))}"
    out.constants[cut] = np.ascontiguousarray(weights)
    begin = [part.start * dilation for part, dilation in zip(rows_columns, node.attrs["dilation"], strict=True)]
    top, left, bottom, right = node.attrs["pads"]
    return replace(node, inputs=(node.inputs[0], cut, *node.inputs[2:]),
                   attrs={**node.attrs, "pads": (top - begin[0], left - begin[1], bottom, right)})


def _conv(node: Node, out: Graph) -> Node:
    """Bring input and fused operands into planar form, and turn stride into phases."""
    node = _cut(node, out)
    x, w = node.inputs[:2]
    kernel = out.shape(w)[2:]
    (sh, sw), (dh, dw) = node.attrs["stride"], node.attrs["dilation"]
    top, left = node.attrs["pads"][:2]
    positions = [(ky * dh - top, kx * dw - left) for ky in range(kernel[0]) for kx in range(kernel[1])]
    if not is_map(out.shape(node.outputs[0])):  # one output pixel: a dot product over a window, any layout will do
        return replace(node, attrs={**node.attrs, "taps": tuple((0, y, x_) for y, x_ in positions)})
    phases = sorted({(y % sh, x_ % sw) for y, x_ in positions})
    if is_depthwise(node, out):  # strides over its input in place
        (sh, sw), phases = (1, 1), [(0, 0)]
    taps = tuple((phases.index((y % sh, x_ % sw)), y // sh, x_ // sw) for y, x_ in positions)
    inputs = list(node.inputs)
    if (sh, sw) != (1, 1) or x in out.inputs or not is_map(out.shape(x)):
        inputs[0] = _repack(x, (sh, sw), tuple(phases), out)
    for fused in node.epilogue:
        if fused.operand is not None and inputs[fused.operand] in out.inputs:
            inputs[fused.operand] = _repack(inputs[fused.operand], (1, 1), ((0, 0),), out)
    return replace(node, inputs=tuple(inputs), attrs={**node.attrs, "taps": taps})


def is_depthwise(node: Node, graph: Graph) -> bool:
    """Whether a convolution has one filter of few taps per channel, and a stride that whole vectors can follow."""
    filters, inner, *kernel = graph.shape(node.inputs[1])
    return (node.attrs["groups"] == filters and inner == 1 and prod(kernel) <= _DEPTHWISE_TAPS
            and node.attrs["stride"][1] <= 2)


def _repack(x: str, step: tuple[int, int], phases: tuple[tuple[int, int], ...], out: Graph) -> str:
    """Add a Repack of ``x`` (once), and return its value."""
    name = f"{x}/phases{step[0]}x{step[1]}_" + "_".join(f"{a}{b}" for a, b in phases)
    if name not in out.values:
        n, c, h, w = out.shape(x)
        # at least two pixels, so that the value is a map for every kernel that asks
        shape = (n, c * len(phases), -(-h // step[0]), max(-(-w // step[1]), 1))
        if shape[2] * shape[3] == 1:
            shape = (*shape[:3], 2)
        out.values[name] = Value(name, shape)
        out.nodes.append(Node(name, "Repack", (x,), (name,), {"step": step, "phases": phases}, path=name))
    return name


def _through_flat(node: Node, out: Graph) -> Node:
    """A reshape between two maps goes through a contiguous copy."""
    flat = f"{node.outputs[0]}/flat"
    out.values[flat] = Value(flat, (out.values[node.inputs[0]].size,))
    out.nodes.append(Node(flat, "Reshape", node.inputs[:1], (flat,), {"shape": out.values[flat].shape}, node.path))
    return replace(node, inputs=(flat, *node.inputs[1:]))


def _copy_outputs(out: Graph) -> None:
    """A graph output that is a map, a graph input, a constant or a name twice is copied out at the end."""
    producer = out.producer()
    seen: set[str] = set()
    for i, name in enumerate(out.outputs):
        consumed = any(name in n.inputs for n in out.nodes)
        direct = name in producer and not is_map(out.shape(name)) and not consumed and name not in seen
        seen.add(name)
        if not direct:
            copy = f"{name}/output{i}"
            out.values[copy] = Value(copy, out.shape(name))
            out.nodes.append(Node(copy, "Copy", (name,), (copy,), {}, path=copy))
            out.outputs[i] = copy


def as_matrix(weights: np.ndarray[Any, np.dtype[np.float32]], groups: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Convolution weights [F, C/g, kh, kw] as [F, C * kh * kw], groups as diagonal blocks."""
    filters = weights.shape[0]
    if groups == 1:
        return np.ascontiguousarray(weights.reshape(filters, -1))
    inner = weights[0].size
    out = np.zeros((groups, filters // groups, groups, inner), np.float32)
    out[np.arange(groups), :, np.arange(groups)] = weights.reshape(groups, filters // groups, inner)
    return out.reshape(filters, groups * inner)
