"""What a row of the operator table is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from blockpunch.errors import GraphError
from blockpunch.graph.ir import Array, Node

Shape = tuple[int, ...]
Infer = Callable[[Node, Sequence[Shape]], list[Shape]]
Reference = Callable[[Node, Sequence[Array]], list[Array]]
Macs = Callable[[Node, Sequence[Shape], Sequence[Shape]], int]


def no_macs(node: Node, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int:
    """Operators that only move or transform elements count no multiply-accumulates."""
    return 0


@dataclass(frozen=True)
class Operator:
    """One operator of the intermediate representation.

    Args:
        name: PascalCase name, as in ``Node.op``.
        arity: least and greatest number of inputs, without the epilogue's operands.
        infer: output shapes from the node's attributes and input shapes; raises GraphError when they do not fit.
        reference: what the operator means, in numpy: float32 arrays in, float32 arrays out.
        macs: multiply-accumulates of one application.
        prunable: whether ``inputs[1]`` is a weight that can be pruned.
        constants: the inputs from this index on (up to ``arity[1]``) must be constants; None where none has to be.
        unary: elementwise with one input, so it can stand in an epilogue as an activation.
        attributes: attributes that a node must carry.
    """

    name: str
    arity: tuple[int, int]
    infer: Infer
    reference: Reference
    macs: Macs = no_macs
    prunable: bool = False
    constants: int | None = None
    unary: bool = False
    attributes: tuple[str, ...] = ()


def core_inputs(node: Node) -> tuple[str, ...]:
    """The inputs of the operator itself: the operands of the epilogue always come after them."""
    operands = [fused.operand for fused in node.epilogue if fused.operand is not None]
    return node.inputs[:min(operands)] if operands else node.inputs


def require(condition: bool, node: Node, message: str) -> None:
    """Raise GraphError at ``node`` unless ``condition`` holds."""
    if not condition:
        raise GraphError(message, where=f"{node.op} '{node.name}'")


def same_shape(node: Node, shapes: Sequence[Shape]) -> list[Shape]:
    """Shape rule of unary elementwise operators."""
    return [shapes[0]]
