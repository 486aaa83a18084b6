"""The intermediate representation: static shapes, fully typed, nodes in topological order.

A :class:`Graph` is plain data. What operators mean (shape rule, reference, MACs) is in
:mod:`blockpunch.graph.operators`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from blockpunch.errors import GraphError

Array = npt.NDArray[Any]
FLOAT32: np.dtype[Any] = np.dtype(np.float32)


@dataclass(frozen=True)
class Value:
    """A tensor that flows through the graph: its name, static shape and dtype (activations are float32, NCHW)."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any] = FLOAT32

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class FusedOp:
    """An elementwise operator applied to a node's result before it is stored.

    ``operand`` is ``None`` for unary operators (activations), else the index in ``node.inputs`` of the other side
    of a binary operator (always the shape of the result: no broadcasting).
    """

    op: str
    attrs: dict[str, Any] = field(default_factory=dict)
    operand: int | None = None


@dataclass(frozen=True)
class Node:
    """One operator application.

    ``path`` is the module or ONNX node it came from; ``epilogue`` runs in order on the result.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    path: str = ""
    epilogue: tuple[FusedOp, ...] = ()


@dataclass
class Graph:
    """A network: ``values`` holds every tensor that is not a constant, ``constants`` every weight."""

    name: str
    inputs: list[str]
    outputs: list[str]
    nodes: list[Node]
    values: dict[str, Value]
    constants: dict[str, Array]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a value or constant."""
        if name in self.values:
            return self.values[name].shape
        if name in self.constants:
            return tuple(self.constants[name].shape)
        raise GraphError(f"no value named '{name}'", where=self.name)

    def producer(self) -> dict[str, Node]:
        """Value name -> the node that writes it."""
        return {out: node for node in self.nodes for out in node.outputs}

    def consumers(self) -> dict[str, list[Node]]:
        """Value name -> the nodes that read it, in order (a graph output is not a node)."""
        users: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                users.setdefault(name, []).append(node)
        return users

    def node(self, name: str) -> Node:
        """The node called ``name``."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise GraphError(f"no node named '{name}'", where=self.name)

    def copy(self) -> Graph:
        """A graph that can be edited without touching this one (arrays are shared, they are never written in place)."""
        return replace(self, inputs=list(self.inputs), outputs=list(self.outputs), nodes=list(self.nodes),
                       values=dict(self.values), constants=dict(self.constants))

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)
