"""A graph under rewrite, and the loop that applies rules to it until none matches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from blockpunch.graph.ir import Array, Graph, Node, Value


class Editor:
    """Edits a copy of a graph; who reads and who writes a tensor is always up to date."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph.copy()
        self._refresh()

    def _refresh(self) -> None:
        self.producers = self.graph.producer()
        self.readers: dict[str, list[Node]] = {}  # a node that reads a tensor twice is listed twice
        for node in self.graph.nodes:
            for name in node.inputs:
                self.readers.setdefault(name, []).append(node)

    def alive(self, node: Node) -> bool:
        """Whether ``node`` is still part of the graph."""
        return self.producers.get(node.outputs[0]) is node

    def constant(self, name: str) -> Array | None:
        """The array, when ``name`` is a constant."""
        return self.graph.constants.get(name)

    def scalar(self, name: str) -> float | None:
        """The number, when ``name`` is a constant with one element."""
        array = self.graph.constants.get(name)
        return float(array.ravel()[0]) if array is not None and array.size == 1 else None

    def sole_reader(self, name: str) -> Node | None:
        """The one node that reads ``name``, exactly once, when nobody else and no graph output needs it."""
        readers = self.readers.get(name, ())
        return readers[0] if len(readers) == 1 and name not in self.graph.outputs else None

    def swap(self, node: Node, *new: Node) -> None:
        """Put ``new`` where ``node`` is; the last of them writes the same tensor."""
        at = self.position(node)
        self.graph.nodes[at:at + 1] = new
        self._refresh()

    def position(self, node: Node) -> int:
        """Index of ``node`` in the graph's order."""
        return next(index for index, item in enumerate(self.graph.nodes) if item is node)

    def absorb(self, node: Node, user: Node, new: Node) -> None:
        """Replace ``node`` and ``user``, the sole reader of its result, by ``new`` at the place of ``user``."""
        self.graph.nodes[self.position(user)] = new
        del self.graph.nodes[self.position(node)]
        self.graph.values.pop(node.outputs[0])
        self._refresh()

    def bypass(self, node: Node) -> bool:
        """Remove a node whose result equals its first input; False where both must exist as graph inputs or outputs."""
        source, result = node.inputs[0], node.outputs[0]
        graph = self.graph
        if result not in graph.outputs:
            old, new = result, source
        elif source not in graph.values or source in graph.inputs or source in graph.outputs:
            return False
        else:
            old, new = source, result
        graph.nodes.remove(node)
        graph.values.pop(old)
        for index, item in enumerate(graph.nodes):
            if old in item.inputs or old in item.outputs:
                graph.nodes[index] = replace(item, inputs=tuple(new if name == old else name for name in item.inputs),
                                             outputs=tuple(new if name == old else name for name in item.outputs))
        self._refresh()
        return True

    def add_constant(self, base: str, array: Array) -> str:
        """Register a float32 constant under ``base`` or the next free name; returns the name."""
        name = self._free(base)
        self.graph.constants[name] = np.asarray(array, np.float32, order="C")
        return name

    def rescaled(self, name: str, array: Array) -> str:
        """A new version of the constant ``name``; it keeps its name unless another node reads the old version."""
        if len(self.readers.get(name, ())) > 1:
            return self.add_constant(name, array)
        self.graph.constants[name] = np.asarray(array, np.float32, order="C")
        return name

    def add_value(self, base: str, shape: tuple[int, ...]) -> str:
        """Declare a new float32 value under ``base`` or the next free name; returns the name."""
        name = self._free(base)
        self.graph.values[name] = Value(name, shape)
        return name

    def _free(self, base: str) -> str:
        name, number = base, 0
        while name in self.graph.constants or name in self.graph.values:
            number += 1
            name = f"{base}.{number}"
        return name


Rule = Callable[[Editor, Node], bool]


def apply_rules(graph: Graph, rules: Sequence[Rule]) -> Graph:
    """Apply ``rules`` to the nodes in order, over and over, until none of them changes anything."""
    editor = Editor(graph)
    changed = True
    while changed:
        changed = False
        for node in list(editor.graph.nodes):
            changed |= any(editor.alive(node) and rule(editor, node) for rule in rules)
    return remove_dead(editor.graph)


def remove_dead(graph: Graph) -> Graph:
    """Drop nodes whose result nobody needs, and the values and constants that go with them."""
    needed = set(graph.outputs)
    kept = []
    for node in reversed(graph.nodes):
        if needed.intersection(node.outputs):
            needed.update(node.inputs)
            kept.append(node)
    needed.update(graph.inputs)
    return replace(graph, nodes=kept[::-1],
                   values={name: value for name, value in graph.values.items() if name in needed},
                   constants={name: array for name, array in graph.constants.items() if name in needed})


def close(a: float | None, b: float) -> bool:
    """Whether a constant found in a model is the number a pattern asks for."""
    return a is not None and math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-7)


def unary(node: Node, op: str, source: str, **attrs: Any) -> Node:
    """``node`` turned into a unary operator on ``source``; name, path and result stay."""
    return Node(node.name, op, (source,), node.outputs, attrs, node.path)
