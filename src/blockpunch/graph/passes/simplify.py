"""Rules that remove operators without effect and write the rest in the simplest form."""

from __future__ import annotations

import numpy as np

from blockpunch.graph.ir import Graph, Node
from blockpunch.graph.operators import OPERATORS
from blockpunch.graph.passes.editor import Editor, remove_dead, unary


def drop_no_effect(editor: Editor, node: Node) -> bool:
    """Remove operators that give back their input."""
    if node.epilogue:
        return False
    attrs, shape = node.attrs, editor.graph.shape(node.inputs[0])
    same = shape == editor.graph.shape(node.outputs[0])
    idle = (
        (node.op in ("Reshape", "Slice", "Pad") and same and set(attrs.get("steps", (1,))) == {1})
        or (node.op == "Transpose" and attrs["perm"] == tuple(range(len(shape))))
        or (node.op == "Concat" and len(node.inputs) == 1)
        or (node.op == "Clip" and attrs["min"] == -np.inf and attrs["max"] == np.inf)
        or (node.op == "Resize" and same and attrs["scales"] == (1.0, 1.0))
        or (node.op in ("MaxPool", "AveragePool") and attrs["kernel"] == (1, 1) and same and not any(attrs["pads"]))
        or (node.op in ("ReduceMean", "ReduceMax") and same)
        or (node.op in ("Add", "Mul") and same and _is_neutral(editor, node)))
    return idle and editor.bypass(node)


def _is_neutral(editor: Editor, node: Node) -> bool:
    array = editor.constant(node.inputs[1])
    return array is not None and bool((array == (1 if node.op == "Mul" else 0)).all())


def order_operands(editor: Editor, node: Node) -> bool:
    """Put the constant of a commutative operator second; subtract and divide by a constant as add and multiply."""
    if node.op in ("Add", "Mul", "Min", "Max") and node.inputs[0] in editor.graph.constants:
        if node.inputs[1] in editor.graph.constants:
            return False
        editor.swap(node, Node(node.name, node.op, node.inputs[::-1], node.outputs, {}, node.path, node.epilogue))
        return True
    array = editor.constant(node.inputs[1]) if node.op in ("Sub", "Div") else None
    if array is None or node.epilogue:
        return False
    if node.op == "Div" and (np.abs(array) < 1e-30).any():  # its reciprocal would overflow
        return False
    inverse = -array if node.op == "Sub" else 1 / array.astype(np.float64)
    name = editor.add_constant(f"{node.inputs[1]}.inverse", inverse)
    editor.swap(node, Node(node.name, "Add" if node.op == "Sub" else "Mul", (node.inputs[0], name), node.outputs, {},
                           node.path))
    return True


def merge_pairs(editor: Editor, node: Node) -> bool:
    """A reshape of a reshape, a transpose of a transpose, a slice of a slice along other axes: one operator."""
    first = editor.producers.get(node.inputs[0])
    if first is None or first.op != node.op or node.op not in ("Reshape", "Transpose", "Slice") or first.epilogue:
        return False
    attrs = dict(node.attrs)
    if node.op == "Transpose":
        attrs["perm"] = tuple(first.attrs["perm"][axis] for axis in node.attrs["perm"])
    elif node.op == "Slice":
        if set(first.attrs["axes"]) & set(node.attrs["axes"]):
            return False
        attrs = {key: (*first.attrs[key], *node.attrs[key]) for key in node.attrs}
    editor.swap(node, Node(node.name, node.op, first.inputs, node.outputs, attrs, node.path, node.epilogue))
    return True


def name_global_pool(editor: Editor, node: Node) -> bool:
    """A mean over the whole image is a GlobalAveragePool, with a reshape where the axes are dropped."""
    shape = editor.graph.shape(node.inputs[0])
    if len(shape) != 4 or node.epilogue:
        return False
    if node.op == "AveragePool":
        if node.attrs["kernel"] != shape[2:] or any(node.attrs["pads"]):
            return False
    elif node.op != "ReduceMean" or node.attrs["axes"] != (2, 3):
        return False
    pooled = Node(node.name, "GlobalAveragePool", node.inputs, node.outputs, {}, node.path)
    out = editor.graph.shape(node.outputs[0])
    if out == (*shape[:2], 1, 1):
        editor.swap(node, pooled)
        return True
    value = editor.add_value(f"{node.name}.pooled", (*shape[:2], 1, 1))
    editor.swap(node, Node(f"{node.name}.pool", "GlobalAveragePool", node.inputs, (value,), {}, node.path),
                Node(node.name, "Reshape", (value,), node.outputs, {"shape": out}, node.path))
    return True


def merge_clips(editor: Editor, node: Node) -> bool:
    """Relu, Min and Max with a number, and clips of clips become one Clip (a Clip to [0, inf) is a Relu)."""
    bounds = _bounds(editor, node)
    if bounds is None or node.epilogue:
        return False
    source = node.inputs[0]
    first = editor.producers.get(source)
    inner = _bounds(editor, first) if first is not None and not first.epilogue else None
    if first is not None and inner is not None and editor.sole_reader(source) is node:
        bounds = (min(max(inner[0], bounds[0]), bounds[1]), max(min(inner[1], bounds[1]), bounds[0]))
        source = first.inputs[0]
    op = "Relu" if bounds == (0.0, np.inf) else "Clip"
    if (op, source) == (node.op, node.inputs[0]):
        return False
    attrs = {} if op == "Relu" else {"min": bounds[0], "max": bounds[1]}
    editor.swap(node, unary(node, op, source, **attrs))
    return True


def _bounds(editor: Editor, node: Node) -> tuple[float, float] | None:
    if node.op == "Relu":
        return 0.0, float("inf")
    if node.op == "Clip":
        return node.attrs["min"], node.attrs["max"]
    limit = editor.scalar(node.inputs[1]) if node.op in ("Min", "Max") else None
    if limit is None or editor.graph.shape(node.inputs[0]) != editor.graph.shape(node.outputs[0]):
        return None
    return (-float("inf"), limit) if node.op == "Min" else (limit, float("inf"))


def sink_line(editor: Editor, node: Node) -> bool:
    """What is done element by element on lines [N, C, L] that were images of one row is done on these images, so that
    it meets the convolutions before and behind it."""
    binary = node.op in ("Add", "Sub", "Mul", "Div", "Min", "Max", "Pow", "PRelu")
    if node.epilogue or not (binary or node.op in ("BatchNorm", "Concat") or OPERATORS[node.op].unary):
        return False
    shape = editor.graph.shape(node.outputs[0])
    if len(shape) != 3:  # broadcast to more axes: no line
        return False
    read = [name for name in node.inputs if name in editor.graph.values]
    images = {name: editor.producers[name].inputs[0] for name in read if _is_line(editor, name)}
    if not images or len(images) < len(set(node.inputs if node.op == "Concat" else read)):
        return False
    for name in set(node.inputs) - set(read) if binary else ():
        array = editor.graph.constants[name]
        if array.ndim > 1:
            images[name] = editor.add_constant(name, np.expand_dims(array, -2))
    attrs = dict(node.attrs)
    if node.op == "Concat" and attrs["axis"] == 2:
        attrs["axis"] = 3
    value = editor.add_value(f"{node.name}.image", (*shape[:2], 1, *shape[2:]))
    editor.swap(node, Node(node.name, node.op, tuple(images.get(name, name) for name in node.inputs), (value,), attrs,
                           node.path),
                Node(f"{node.name}.line", "Reshape", (value,), node.outputs, {"shape": shape}, node.path))
    return True


def _is_line(editor: Editor, name: str) -> bool:
    """Whether ``name`` is an image of one row, reshaped to a line."""
    node, shape = editor.producers.get(name), editor.graph.shape(name)
    return (node is not None and node.op == "Reshape" and not node.epilogue and len(shape) == 3
            and editor.graph.shape(node.inputs[0]) == (*shape[:2], 1, *shape[2:]))


def merge_duplicates(graph: Graph) -> Graph:
    """Nodes that compute the same from the same become one."""
    editor = Editor(graph)
    seen: dict[tuple[object, ...], str] = {}
    for original in list(graph.nodes):
        node = editor.producers[original.outputs[0]]
        inputs = tuple(_content(editor, name) for name in node.inputs)
        key = (node.op, inputs, repr(sorted(node.attrs.items())), repr(node.epilogue))
        result = node.outputs[0]
        if key not in seen:
            seen[key] = result
        elif result not in graph.outputs:
            twin = Node(node.name, "Reshape", (seen[key],), node.outputs, {}, node.path)
            editor.swap(node, twin)
            editor.bypass(twin)
    return remove_dead(editor.graph)


def _content(editor: Editor, name: str) -> object:
    array = editor.constant(name)
    if array is None or array.size > 4096:  # equal large weights are one initializer in practice
        return name
    return array.shape, array.tobytes()


RULES = (order_operands, drop_no_effect, merge_pairs, name_global_pool, merge_clips, sink_line)
