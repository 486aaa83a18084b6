"""Rules that recognise activations written out as several operators."""

from __future__ import annotations

import math

from blockpunch.graph.ir import Node
from blockpunch.graph.passes.editor import Editor, close, unary


def _source(editor: Editor, name: str, op: str, **attrs: float) -> str | None:
    """The input of the node that writes ``name``, if that node is ``op`` with these attributes."""
    node = editor.producers.get(name)
    if node is None or node.op != op or node.epilogue:
        return None
    return node.inputs[0] if all(close(node.attrs[key], value) for key, value in attrs.items()) else None


def _affine(editor: Editor, name: str) -> tuple[str, float, float]:
    """``name`` as ``source * scale + shift`` with constant numbers, through at most two operators that nothing else
    reads (the source is often read twice: it is what the activation gates)."""
    scale, shift = 1.0, 0.0
    for _ in range(2):
        node = editor.producers.get(name)
        number = editor.scalar(node.inputs[1]) if node is not None and node.op in ("Add", "Mul") else None
        if node is None or number is None or node.epilogue or editor.sole_reader(name) is None:
            break
        if editor.graph.shape(node.inputs[0]) != editor.graph.shape(name):
            break
        shift += scale * number if node.op == "Add" else 0.0
        scale *= number if node.op == "Mul" else 1.0
        name = node.inputs[0]
    return name, scale, shift


def find_hard_sigmoid(editor: Editor, node: Node) -> bool:
    """``clip(x + 3, 0, 6) / 6`` and ``clip(a * x + b, 0, 1)`` are HardSigmoid."""
    if node.epilogue:
        return False
    if node.op == "Mul" and close(editor.scalar(node.inputs[1]), 1 / 6):
        clipped = _source(editor, node.inputs[0], "Clip", min=0.0, max=6.0)
        factor = 1 / 6
    elif node.op == "Clip" and (node.attrs["min"], node.attrs["max"]) == (0.0, 1.0):
        clipped, factor = node.inputs[0], 1.0
    else:
        return False
    if clipped is None:
        return False
    source, scale, shift = _affine(editor, clipped)
    if (scale, shift) == (1.0, 0.0) or editor.graph.shape(source) != editor.graph.shape(node.outputs[0]):
        return False
    editor.swap(node, unary(node, "HardSigmoid", source, alpha=scale * factor, beta=shift * factor))
    return True


def find_gated(editor: Editor, node: Node) -> bool:
    """``x * sigmoid(x)`` is Silu, ``x * hard_sigmoid(x)`` HardSwish, ``x * tanh(softplus(x))`` Mish."""
    if node.op != "Mul" or node.epilogue:
        return False
    for x, gate in (node.inputs, node.inputs[::-1]):
        op = None
        if _source(editor, gate, "Sigmoid") == x:
            op = "Silu"
        elif _source(editor, gate, "HardSigmoid", alpha=1 / 6, beta=0.5) == x:
            op = "HardSwish"
        elif (inner := _source(editor, gate, "Tanh")) is not None and _source(editor, inner, "Softplus") == x:
            op = "Mish"
        if op is not None:
            editor.swap(node, unary(node, op, x))
            return True
    return False


def find_hard_swish(editor: Editor, node: Node) -> bool:
    """``x * clip(x + 3, 0, 6) / 6``, with the division last."""
    if node.op != "Mul" or node.epilogue or not close(editor.scalar(node.inputs[1]), 1 / 6):
        return False
    product = editor.producers.get(node.inputs[0])
    if product is None or product.op != "Mul" or product.epilogue:
        return False
    for x, gate in (product.inputs, product.inputs[::-1]):
        clipped = _source(editor, gate, "Clip", min=0.0, max=6.0)
        if clipped is None:
            continue
        source, scale, shift = _affine(editor, clipped)
        if source == x and close(scale, 1.0) and close(shift, 3.0):
            editor.swap(node, unary(node, "HardSwish", x))
            return True
    return False


def find_gelu(editor: Editor, node: Node) -> bool:
    """``0.5 * x * (1 + erf(x / sqrt(2)))``, whichever way it is multiplied out."""
    if node.op != "Mul" or node.epilogue:
        return False
    half, factors = _factors(editor, node)
    if not close(half, 0.5) or len(factors) != 2:
        return False
    for x, gate in (factors, factors[::-1]):
        node_add = editor.producers.get(gate)
        if node_add is None or node_add.op != "Add" or not close(editor.scalar(node_add.inputs[1]), 1.0):
            continue
        inner = _source(editor, node_add.inputs[0], "Erf")
        if inner is None:
            continue
        source, scale, shift = _affine(editor, inner)
        if source == x and close(scale, math.sqrt(0.5)) and close(shift, 0.0):
            editor.swap(node, unary(node, "Gelu", x, approximate="none"))
            return True
    return False


def _factors(editor: Editor, node: Node) -> tuple[float, list[str]]:
    """A product of up to three factors as a number and the names of the rest."""
    number, names = 1.0, []
    queue = [(name, 1) for name in node.inputs]
    while queue:
        name, depth = queue.pop()
        scalar = editor.scalar(name)
        inner = editor.producers.get(name)
        if scalar is not None:
            number *= scalar
        elif depth and inner is not None and inner.op == "Mul" and not inner.epilogue:
            queue += [(part, depth - 1) for part in inner.inputs]
        else:
            names.append(name)
    return number, names


def find_leaky_relu(editor: Editor, node: Node) -> bool:
    """A PRelu with one slope for all channels is a LeakyRelu."""
    slope = editor.scalar(node.inputs[1]) if node.op == "PRelu" and not node.epilogue else None
    if slope is None:
        return False
    editor.swap(node, unary(node, "LeakyRelu", node.inputs[0], alpha=slope))
    return True


RULES = (find_hard_swish, find_hard_sigmoid, find_gated, find_gelu, find_leaky_relu)
