"""Fusion of activations and residual additions into the epilogue of the node that makes their input."""

from __future__ import annotations

from dataclasses import replace

from blockpunch.graph.ir import FusedOp, Node
from blockpunch.graph.operators import OPERATORS
from blockpunch.graph.passes.editor import Editor
from blockpunch.graph.verify import EPILOGUE_BINARY

_LAYERS = ("Conv", "Linear")
_ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Min", "Max",
                *(name for name, operator in OPERATORS.items() if operator.unary))


def fuse_layer_activation(editor: Editor, node: Node) -> bool:
    """Append an activation to the epilogue of the Conv or Linear before it."""
    return _fuse_activation(editor, node, _LAYERS)


def fuse_activation(editor: Editor, node: Node) -> bool:
    """Append an activation to the epilogue of the Conv, Linear or elementwise node before it (after the residuals:
    an Add that holds an activation can no longer move into a convolution)."""
    return _fuse_activation(editor, node, (*_LAYERS, *_ELEMENTWISE))


def _fuse_activation(editor: Editor, node: Node, hosts: tuple[str, ...]) -> bool:
    if not OPERATORS[node.op].unary or node.epilogue:
        return False
    host = editor.producers.get(node.inputs[0])
    if host is None or host.op not in hosts or editor.sole_reader(host.outputs[0]) is not node:
        return False
    fused = FusedOp(node.op, dict(node.attrs))
    editor.absorb(host, node, replace(host, outputs=node.outputs, epilogue=(*host.epilogue, fused)))
    return True


def fuse_residual(editor: Editor, node: Node) -> bool:
    """Turn an Add, Mul or Sub of two like tensors into the epilogue of the later Conv or Linear that makes one."""
    if node.op not in EPILOGUE_BINARY or node.epilogue or node.inputs[0] == node.inputs[1]:
        return False
    shape = editor.graph.shape(node.outputs[0])
    if any(name not in editor.graph.values or editor.graph.shape(name) != shape for name in node.inputs):
        return False
    sides = node.inputs[:1] if node.op == "Sub" else node.inputs  # an epilogue subtracts from its own result
    hosts = [editor.producers[name] for name in sides if _can_host(editor, name, node)]
    if not hosts:
        return False
    host = max(hosts, key=editor.position)
    other = node.inputs[1] if node.inputs[0] == host.outputs[0] else node.inputs[0]
    fused = FusedOp(node.op, {}, len(host.inputs))
    editor.absorb(host, node, replace(host, inputs=(*host.inputs, other), outputs=node.outputs,
                                      epilogue=(*host.epilogue, fused)))
    return True


def _can_host(editor: Editor, name: str, node: Node) -> bool:
    host = editor.producers.get(name)
    return (host is not None and host.op in _LAYERS and editor.sole_reader(name) is node
            and all(fused.operand is None for fused in host.epilogue))
