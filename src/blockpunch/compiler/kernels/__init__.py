"""The kernel families, in order of preference: the first that accepts a node computes it."""

from __future__ import annotations

from blockpunch.compiler.kernels.base import Context, Kernel, Step
from blockpunch.compiler.kernels.conv import Conv
from blockpunch.compiler.kernels.depthwise import Depthwise
from blockpunch.compiler.kernels.dot import Dot
from blockpunch.compiler.kernels.elementwise import Elementwise, Move, Pad
from blockpunch.compiler.kernels.matmul import MatMul
from blockpunch.compiler.kernels.pool import Pool
from blockpunch.compiler.kernels.reduce import Reduce, Softmax
from blockpunch.compiler.kernels.repack import Repack
from blockpunch.compiler.kernels.resize import Resize
from blockpunch.errors import UnsupportedOperatorError
from blockpunch.graph.ir import Graph, Node

KERNELS: tuple[Kernel, ...] = (Depthwise(), Conv(), Dot(), Pool(), Reduce(), Softmax(), Resize(), Repack(), MatMul(),
                               Elementwise(), Move(), Pad())


def kernels_for(graph: Graph) -> list[tuple[Node, Kernel]]:
    """Each node with its kernel family.

    Raises:
        UnsupportedOperatorError: lists every node that no family takes.
    """
    pairs = [(node, next((k for k in KERNELS if k.accepts(node, graph)), None)) for node in graph]
    missing = [f"{node.op} ({node.path or node.name})" for node, kernel in pairs if kernel is None]
    if missing:
        raise UnsupportedOperatorError(f"no kernel for: {', '.join(missing)}", where=graph.name,
                                       fix="these forms of the operators are not compiled yet; please report the model")
    return [(node, kernel) for node, kernel in pairs if kernel is not None]


__all__ = ["KERNELS", "Context", "Kernel", "Step", "kernels_for"]
