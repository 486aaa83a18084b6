"""Appends nodes to a graph under construction: names, constants and shapes, for the importers."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from blockpunch.errors import ModelError, UnsupportedOperatorError
from blockpunch.graph.ir import Array, Graph, Node, Value
from blockpunch.graph.operators import OPERATORS, Shape


@dataclass(frozen=True, eq=False)
class Const:
    """A tensor known at import: any dtype, named when it comes from a named parameter."""

    array: Array
    name: str = ""


Tensor = str | Const  # a value of the graph by name, or a constant


class Unsupported(Exception):
    """Internal signal: a rule cannot express this node; the importer collects the reasons and raises one error."""


class GraphBuilder:
    """A graph under construction; ``emit`` appends a node, infers its shape and returns the name of its value.

    Names in ``reserved`` (those of the graph's outputs) are given to no value on the way.
    """

    def __init__(self, name: str, reserved: Iterable[str] = ()) -> None:
        self._reserved = frozenset(reserved)
        self.graph = Graph(name, [], [], [], {}, {})
        self._names: set[str] = set()  # of nodes
        self.scope, self.path = "", ""  # name and path for the nodes that are emitted next

    def add_input(self, name: str, shape: Shape) -> str:
        """Declare a float32 input of the graph."""
        self.graph.inputs.append(name)
        self.graph.values[name] = Value(name, shape)
        return name

    def shape(self, tensor: Tensor) -> Shape:
        """Shape of a tensor."""
        return tuple(tensor.array.shape) if isinstance(tensor, Const) else self.graph.values[tensor].shape

    def emit(self, op: str, inputs: Sequence[Tensor], **attrs: Any) -> str:
        """Append a node; a shape that does not fit raises GraphError naming the node."""
        roles = ("input", "weight", "bias") if OPERATORS[op].prunable else ("constant",) * len(inputs)
        names = tuple(self._constant(item, role) if isinstance(item, Const) else item
                      for item, role in zip(inputs, roles, strict=False))
        name = self._unique(self.scope or op.lower(), self._names)
        self._names.add(name)
        value = self._unique(name, self.graph.values, self.graph.constants, self._reserved)
        node = Node(name, op, names, (value,), attrs, self.path)
        shape = OPERATORS[op].infer(node, [self.graph.shape(item) for item in names])[0]
        self.graph.nodes.append(node)
        self.graph.values[value] = Value(value, shape)
        return value

    @contextmanager
    def scoped(self, part: str) -> Iterator[None]:
        """Name what is emitted inside ``part`` of the present scope."""
        scope = self.scope
        self.scope = f"{scope}.{part}" if scope else part
        try:
            yield
        finally:
            self.scope = scope

    def rename(self, old: str, new: str, since: int = 0) -> bool:
        """Call the value of a node ``new``; False if that name is taken or ``old`` is an input of the graph.

        ``since`` is the index of a node before which nothing reads or writes ``old``.
        """
        if old in self.graph.inputs or new in self.graph.values or new in self.graph.constants:
            return False
        for index, node in enumerate(self.graph.nodes[since:], since):
            if old in node.inputs or old in node.outputs:
                swap = {old: new}
                self.graph.nodes[index] = Node(
                    node.name, node.op, tuple(swap.get(n, n) for n in node.inputs),
                    tuple(swap.get(n, n) for n in node.outputs), node.attrs, node.path, node.epilogue)
        value = self.graph.values.pop(old)
        self.graph.values[new] = Value(new, value.shape)
        return True

    def finish(self, outputs: Iterable[tuple[str, Tensor]]) -> Graph:
        """The graph, with its outputs under their public names.

        Raises:
            ModelError: an output does not depend on any input.
        """
        renamed: dict[str, str] = {}
        for name, tensor in outputs:
            if isinstance(tensor, Const):
                raise ModelError("is a constant: it does not depend on any input", where=f"output '{name}'",
                                 fix="remove this output from the model")
            tensor = renamed.get(tensor, tensor)
            if tensor in self.graph.outputs or tensor in self.graph.inputs:  # an alias: give it a tensor of its own
                self.scope = self.path = name
                tensor = self.emit("Reshape", [tensor], shape=self.shape(tensor))
            if tensor != name and self.rename(tensor, name):
                renamed[tensor] = name
                tensor = name
            self.graph.outputs.append(tensor)
        return self.graph

    def _constant(self, tensor: Const, role: str) -> str:
        array = np.asarray(tensor.array, dtype=np.float32, order="C")
        base = tensor.name or (f"{self.scope}.{role}" if self.scope else role)
        name, number = base, 0
        while name in self.graph.constants or name in self.graph.values:
            known = self.graph.constants.get(name)
            if known is not None and known.shape == array.shape and np.array_equal(known, array):
                return name
            number += 1
            name = f"{base}.{number}"
        self.graph.constants[name] = array
        return name

    @staticmethod
    def _unique(base: str, *taken: Iterable[str]) -> str:
        name, number = base, 0
        while any(name in names for names in taken):
            number += 1
            name = f"{base}.{number}"
        return name


def refusal(refused: Sequence[str], supported: Iterable[str], where: str, cut: str = "") -> UnsupportedOperatorError:
    """The error that names every node which could not be imported, and what could have been; ``cut`` is a way to do
    without these nodes."""
    count = len(refused)
    known = textwrap.fill(", ".join(sorted(supported)), 110, initial_indent="    ", subsequent_indent="    ")
    return UnsupportedOperatorError(
        f"{count} node{'s' if count > 1 else ''} cannot be imported:\n    " + "\n    ".join(refused), where=where,
        fix=f"replace these operators in the model, or simplify it before the export{cut}; supported are\n{known}")


def check_weights(graph: Graph) -> Graph:
    """Return ``graph``, or raise ModelError naming all constants that no engine can compute with."""
    bad = [name for name, array in graph.constants.items() if not np.isfinite(array).all()]
    if bad:
        shown = ", ".join(f"'{name}'" for name in bad[:8]) + (f" and {len(bad) - 8} more" if len(bad) > 8 else "")
        raise ModelError(f"NaN or infinite weights in {shown}", where=graph.name,
                         fix="check the training run or the export; such a network has no meaningful output")
    for node in graph.nodes:
        if node.op == "BatchNorm" and (graph.constants[node.inputs[4]] + node.attrs["eps"] <= 0).any():
            raise ModelError("its variance is not positive", where=f"{graph.name}, BatchNorm '{node.name}'",
                             fix="the file is damaged, or the training run diverged")
    return graph
