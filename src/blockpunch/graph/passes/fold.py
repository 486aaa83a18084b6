"""Rules that fold constants and padding into the operators next to them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from blockpunch.graph.ir import Array, Node
from blockpunch.graph.passes.editor import Editor, unary

_NEVER_NEGATIVE = ("Relu", "Sigmoid", "HardSigmoid", "Abs", "Exp", "Softmax")


def split_batch_norm(editor: Editor, node: Node) -> bool:
    """A BatchNorm is a multiplication and an addition per channel (then often folded into a convolution)."""
    if node.op != "BatchNorm" or node.epilogue:
        return False
    scale, bias, mean, variance = (editor.graph.constants[name].astype(np.float64) for name in node.inputs[1:])
    factor = scale / np.sqrt(variance + node.attrs["eps"])
    shape = editor.graph.shape(node.inputs[0])
    column = (1, -1, *(1,) * (len(shape) - 2))
    multiplier = editor.add_constant(f"{node.name}.scale", factor.reshape(column))
    offset = editor.add_constant(f"{node.name}.shift", (bias - mean * factor).reshape(column))
    scaled = editor.add_value(f"{node.name}.scaled", shape)
    editor.swap(node, Node(f"{node.name}.mul", "Mul", (node.inputs[0], multiplier), (scaled,), {}, node.path),
                Node(node.name, "Add", (scaled, offset), node.outputs, {}, node.path))
    return True


def fold_affine(editor: Editor, node: Node) -> bool:
    """Fold a multiplication or addition by constants per filter into the Conv or Linear before it."""
    if node.op not in ("Mul", "Add") or node.epilogue:
        return False
    layer = editor.producers.get(node.inputs[0])
    if layer is None or layer.op not in ("Conv", "Linear") or layer.epilogue:
        return False
    if editor.sole_reader(layer.outputs[0]) is not node:
        return False
    numbers = _per_filter(editor, layer, node)
    if numbers is None:
        return False
    weight = editor.graph.constants[layer.inputs[1]]
    bias = np.zeros(len(weight))
    if len(layer.inputs) > 2:
        bias += editor.graph.constants[layer.inputs[2]]
    inputs = list(layer.inputs[:2])
    if node.op == "Mul":
        scaled = weight * numbers.reshape(-1, *(1,) * (weight.ndim - 1))
        inputs[1] = editor.rescaled(layer.inputs[1], scaled)
        bias = bias * numbers
    else:
        bias = bias + numbers
    if len(layer.inputs) > 2:
        inputs.append(editor.rescaled(layer.inputs[2], bias))
    elif node.op == "Add":
        inputs.append(editor.add_constant(f"{layer.name}.bias", bias))
    editor.absorb(layer, node, replace(layer, inputs=tuple(inputs), outputs=node.outputs))
    return True


def name_affine(editor: Editor, node: Node) -> bool:
    """Multiplications by numbers and additions of them that no layer took in become one Affine, which can stand in an
    epilogue behind an activation."""
    number = editor.scalar(node.inputs[1]) if node.op in ("Mul", "Add") else None
    same = editor.graph.shape(node.inputs[0]) == editor.graph.shape(node.outputs[0])
    if number is not None and same and not node.epilogue:
        scale, shift = (number, 0.0) if node.op == "Mul" else (1.0, number)
        editor.swap(node, unary(node, "Affine", node.inputs[0], scale=scale, shift=shift))
        return True
    first = editor.producers.get(node.inputs[0])
    if node.op != "Affine" or node.epilogue or first is None or first.op != "Affine" or first.epilogue:
        return False
    scale, shift = node.attrs["scale"], node.attrs["shift"]
    editor.swap(node, unary(node, "Affine", first.inputs[0], scale=scale * first.attrs["scale"],
                            shift=scale * first.attrs["shift"] + shift))
    return True


def _per_filter(editor: Editor, layer: Node, node: Node) -> Array | None:
    """The constant operand of ``node`` as one float64 number per filter of ``layer``, if that is what it is."""
    array, shape = editor.constant(node.inputs[1]), editor.graph.shape(layer.outputs[0])
    if array is None or editor.graph.shape(node.outputs[0]) != shape:
        return None
    axis = 1 if layer.op == "Conv" else len(shape) - 1
    aligned = (1,) * (len(shape) - array.ndim) + array.shape
    if any(size != 1 for position, size in enumerate(aligned) if position != axis):
        return None
    return np.broadcast_to(array.reshape(-1), (shape[axis],)).astype(np.float64)


def merge_pad(editor: Editor, node: Node) -> bool:
    """Merge a Pad of the image's borders into the convolution or pool that alone reads it."""
    if node.op not in ("Conv", "MaxPool", "AveragePool"):
        return False
    pad = editor.producers.get(node.inputs[0])
    if pad is None or pad.op != "Pad" or pad.epilogue or editor.sole_reader(node.inputs[0]) is not node:
        return False
    pads = pad.attrs["pads"]
    if len(pads) != 8 or any((*pads[:2], *pads[4:6])) or not _pads_alike(editor, node, pad):
        return False
    extra = (*pads[2:4], *pads[6:8])
    attrs = dict(node.attrs, pads=tuple(a + b for a, b in zip(node.attrs["pads"], extra, strict=True)))
    if node.op == "AveragePool":
        attrs["count_include_pad"] = True
    inputs = (pad.inputs[0], *node.inputs[1:])
    editor.absorb(pad, node, replace(node, inputs=inputs, attrs=attrs))
    return True


def _pads_alike(editor: Editor, node: Node, pad: Node) -> bool:
    """Whether the window operator's own padding means the same as ``pad``."""
    value = pad.attrs["value"]
    if node.op == "Conv":
        return bool(value == 0)
    if node.op == "AveragePool":
        return value == 0 and (node.attrs["count_include_pad"] or not any(node.attrs["pads"]))
    if value == -np.inf:
        return True
    # Zeros do not win a maximum over numbers that are never negative, as long as every window holds one of these.
    before = editor.producers.get(pad.inputs[0])
    own, added, kernel = node.attrs["pads"], pad.attrs["pads"], node.attrs["kernel"]
    inside = all(own[axis] + added[axis + 2] < kernel[axis] and own[axis + 2] + added[axis + 6] < kernel[axis]
                 for axis in (0, 1)) and node.attrs["dilation"] == (1, 1)
    return value == 0 and inside and before is not None and _never_negative(before)


def _never_negative(node: Node) -> bool:
    last = node.epilogue[-1] if node.epilogue else node
    return last.op in _NEVER_NEGATIVE or (last.op == "Clip" and last.attrs["min"] >= 0)


RULES = (fold_affine, split_batch_norm, merge_pad)
