"""A network as the mapper sees it: its *items*, the steps whose weights can be pruned, and the rest.

An item is a layer, or several that the compiler merges into one step (:mod:`blockpunch.compiler.merge`: a convolution
in a shortcut and the one that it is added to). What is merged in the dense network is timed together, and gets one
choice together, also where zeros keep it apart.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from blockpunch.compiler import Choice, Program, compile_graph
from blockpunch.compiler.batch import parts_of
from blockpunch.compiler.legalise import legalise, seen
from blockpunch.compiler.merge import merge_sums
from blockpunch.errors import ModelError
from blockpunch.graph.ir import Graph, Node
from blockpunch.graph.operators.table import core_inputs
from blockpunch.graph.passes.shrink import shrink
from blockpunch.graph.summary import node_macs
from blockpunch.layers import Layer, kept_dense_by_default, prunable_layers
from blockpunch.schemes import Scheme
from blockpunch.target import Target
from blockpunch.tuning import Tuner

Cell = tuple[Scheme, float]
"""A scheme and a rate (weights before / weights kept)."""


@dataclass(frozen=True)
class Item:
    """One choice of the mapper.

    Attributes:
        step: the compiled step that computes it.
        layers: what it holds, most often one layer.
        key: its shapes and what is fused into it, readable; items of equal keys run alike, in any network.
        dense_because: why it is left dense by default, or ''.
    """

    step: str
    layers: tuple[Layer, ...]
    key: str
    dense_because: str = ""

    @property
    def name(self) -> str:
        """Of its layers, for people."""
        return " + ".join(layer.name for layer in self.layers)

    def total(self, of_steps: Mapping[str, float]) -> float:
        """The sum over the steps that compute it: one, or one for each of its layers where zeros keep these apart."""
        return sum(of_steps.get(layer.name, 0.0) for layer in self.layers)

    @property
    def weights(self) -> int:
        """Of all its layers."""
        return sum(layer.weights for layer in self.layers)


@dataclass(frozen=True)
class Network:
    """An optimised graph, compiled for one target and so many threads, as items and the rest.

    Raises:
        ModelError: nothing in it can be pruned.
    """

    graph: Graph
    target: Target
    threads: int = 1

    def __post_init__(self) -> None:
        if not self.layers:
            raise ModelError("has no layer that can be pruned", where=self.graph.name)

    @cached_property
    def layers(self) -> list[Layer]:
        """The prunable layers, in the order in which they run."""
        return prunable_layers(self.graph)

    @cached_property
    def schedules(self) -> dict[str, Choice]:
        """What was tuned before for its dense layers: they compile as :func:`blockpunch.compile` compiles them."""
        return Tuner(self.graph, self.target, self.threads).known()

    @cached_property
    def program(self) -> Program:
        """The dense network, compiled."""
        return self.compile(self.graph)

    @cached_property
    def items(self) -> list[Item]:
        """In the order in which they run."""
        layers, reasons = {layer.name: layer for layer in self.layers}, kept_dense_by_default(self.layers)
        nodes = self._nodes
        by_path = {nodes[name].path: name for name in layers}
        found = []
        for step in self._compiled_nodes():
            if step.name not in layers:
                continue
            merged = [by_path[path] for path in step.path.split(" + ") if path in by_path and " + " in step.path]
            names = list(dict.fromkeys([step.name, *merged]))
            key = " & ".join(_key(nodes[name], self.graph) for name in names)
            why = next((reasons[name] for name in names if name in reasons), "")
            found.append(Item(step.name, tuple(layers[name] for name in names), key, why))
        return found

    @cached_property
    def key(self) -> str:
        """Tells this network from others, whatever its weights."""
        rows = [(node.op, [self.graph.shape(name) for name in node.outputs], sorted(map(str, node.attrs.items())))
                for node in self.graph]
        return hashlib.sha256(repr(rows).encode()).hexdigest()[:16]

    def _compiled_nodes(self) -> list[Node]:
        """What becomes a step each, in order: the compiler's own passes, without its packing and schedules."""
        return [node for part in parts_of(shrink(self.graph)) for node in merge_sums(legalise(part.graph))]

    def compile(self, graph: Graph) -> Program:
        """The program of this network's graph with other zeros; layers that have none keep what was tuned for them."""
        nodes = {node.name: node for node in graph}
        tuned = {name: choice for name, choice in self.schedules.items() if name in nodes
                 and all(graph.constants.get(value) is self.graph.constants.get(value) for value in nodes[name].inputs)}
        return compile_graph(graph, self.target, threads_hint=self.threads, choices=tuned)

    def kept_macs(self, item: Item, graph: Graph) -> float:
        """Multiply-accumulates that the non-zero weights of an item need in ``graph``, this one with other weights."""
        nodes = {node.name: node for node in graph}
        found = 0.0
        for node in (nodes[layer.name] for layer in item.layers if layer.name in nodes):
            weight = graph.constants[node.inputs[1]]
            used = weight[:, :, *seen(node, graph)] if node.op == "Conv" else weight
            found += node_macs(graph, node) * float(np.count_nonzero(used)) / weight.size
        return found

    def pruned(self, cells: Mapping[str, Cell]) -> Graph:
        """The graph with the smallest weights of each item (by its step) zeroed; whole filters lose their bias, too."""
        items, out = {item.step: item for item in self.items}, self.graph.copy()
        for step, cell in cells.items():
            for layer in items[step].layers:
                core = core_inputs(self._nodes[layer.name])
                mask = self.mask(layer, cell)
                kept = {core[1]: mask}
                if cell[0].regularity == "filter" and len(core) > 2:
                    kept[core[2]] = np.asarray(mask.reshape(len(mask), -1).any(axis=1))
                for name, stays in kept.items():
                    values = self.graph.constants[name]
                    out.constants[name] = np.where(stays, values, np.zeros((), values.dtype))
        return out

    def mask(self, layer: Layer, cell: Cell) -> npt.NDArray[np.bool_]:
        """What stays of a layer's weight under a cell, by magnitude."""
        shape = self.graph.shape(self._nodes[layer.name].inputs[1])
        return np.unpackbits(self._mask_bits(layer, cell), count=math.prod(shape)).view(np.bool_).reshape(shape)

    @cached_property
    def _mask_bits(self) -> Callable[[Layer, Cell], npt.NDArray[np.uint8]]:
        """Masks in bits; the last ones are kept, since who looks at one that is slow to find wants it again soon."""
        @lru_cache(maxsize=2 * len(self.layers))
        def bits(layer: Layer, cell: Cell) -> npt.NDArray[np.uint8]:
            scheme, rate = cell
            weight = self.graph.constants[self._nodes[layer.name].inputs[1]]
            return np.packbits(scheme.mask(weight, rate, conv_groups=layer.conv_groups))
        return bits

    @cached_property
    def neighbours(self) -> dict[str, frozenset[str]]:
        """Step -> steps of the items that share channels with it, as writers or readers of the same map.

        Depthwise layers hand channels through, as everything does that is no item.
        """
        step_of = {layer.name: item.step for item in self.items for layer in item.layers if not layer.depthwise}
        found: dict[str, set[str]] = {item.step: set() for item in self.items}
        writers: dict[str, frozenset[str]] = {}
        for node in self.graph:
            core = core_inputs(node)
            if node.name not in step_of:
                came = [writers.get(name, frozenset()) for name in node.inputs]
            else:
                step = step_of[node.name]
                for other in writers.get(core[0], frozenset()) - {step}:
                    found[step].add(other)
                    found[other].add(step)
                came = [frozenset((step,)), *(writers.get(name, frozenset()) for name in node.inputs[len(core):])]
            writers |= dict.fromkeys(node.outputs, frozenset().union(*came))
        return {step: frozenset(others) for step, others in found.items()}

    @cached_property
    def _nodes(self) -> dict[str, Node]:
        return {node.name: node for node in self.graph}


def _key(node: Node, graph: Graph) -> str:
    """Shapes and fused operators of a layer: ``64x3x7x7 on 1x3x224x224, stride 2x2, pads 3x3x3x3, Relu``."""
    parts = [f"{_by(graph.shape(node.inputs[1]))} on {_by(graph.shape(node.inputs[0]))}"]
    plain = {"stride": 1, "pads": 0, "dilation": 1, "groups": 1}
    for name, value in sorted(node.attrs.items()):
        sizes = value if isinstance(value, tuple) else (value,)
        if any(size != plain.get(name) for size in sizes):
            parts.append(f"{name} {_by(sizes)}")
    return ", ".join([*parts, *(fused.op for fused in node.epilogue)])


def _by(sizes: Sequence[object]) -> str:
    return "x".join(map(str, sizes))
