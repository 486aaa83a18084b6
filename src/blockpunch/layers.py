"""The prunable layers of a model, and how a user picks some of them: exact name, glob, or type."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from blockpunch.errors import SelectorError
from blockpunch.graph.ir import Graph
from blockpunch.graph.operators import OPERATORS

LAST_LINEAR = "last linear layer"
TYPES_HELP = "an exact name, a glob such as 'layer3.*', or a type: conv, linear, depthwise, conv1x1, conv3x3, ..."


@dataclass(frozen=True)
class Layer:
    """A layer whose weight can be pruned.

    Args:
        name: as in the graph: the ONNX node's name, or the module's path.
        kind: 'conv' or 'linear'.
        shape: of the weight: ``[filters, channels / conv_groups, kh, kw]`` or ``[out, in]``.
        conv_groups: the convolution's own groups.
        output: shape of the result, ``()`` where it is not known.
        macs: multiply-accumulates of the dense layer, 0 where they are not known.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    conv_groups: int = 1
    output: tuple[int, ...] = ()
    macs: int = 0

    @property
    def weights(self) -> int:
        """Number of weights, the bias not counted."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def depthwise(self) -> bool:
        """One input channel per filter, in as many groups."""
        return self.kind == "conv" and self.conv_groups > 1 and self.shape[1] == 1

    @property
    def types(self) -> frozenset[str]:
        """The type selectors that this layer answers to."""
        kernel = "x".join(str(size) for size in self.shape[2:])
        names = [self.kind, f"conv{kernel}" if kernel else "", "depthwise" if self.depthwise else ""]
        return frozenset(name for name in names if name)


def prunable_layers(graph: Graph) -> list[Layer]:
    """Every layer of ``graph`` with a weight that can be pruned, in the order in which they run.

    Convolutions whose weight the importer has rearranged (transposed ones) are none: their zeros would not be the
    file's.
    """
    layers = []
    for node in graph.nodes:
        if OPERATORS[node.op].prunable and node.inputs[1] in graph.constants and not node.attrs.get("rearranged"):
            inputs, output = [graph.shape(name) for name in node.inputs], graph.shape(node.outputs[0])
            macs = OPERATORS[node.op].macs(node, inputs, [output])
            layers.append(Layer(node.name, "conv" if node.op == "Conv" else "linear", inputs[1],
                                int(node.attrs.get("groups", 1)), output, macs))
    return layers


def select(layers: Sequence[Layer], selectors: Iterable[str]) -> list[Layer]:
    """The layers that any of ``selectors`` matches, in the order of ``layers``.

    Raises:
        SelectorError: a selector matches nothing; names the nearest ones.
    """
    chosen = {layer.name for selector in selectors for layer in match(layers, selector)}
    return [layer for layer in layers if layer.name in chosen]


def match(layers: Sequence[Layer], selector: str) -> list[Layer]:
    """The layers that one selector matches: the exact name if there is one, else the type, else the glob.

    Raises:
        SelectorError: it matches nothing; names the nearest ones.
    """
    found = ([layer for layer in layers if layer.name == selector]
             or [layer for layer in layers if selector in layer.types]
             or [layer for layer in layers if fnmatch.fnmatchcase(layer.name, selector)])
    if not found:
        names = [layer.name for layer in layers]
        near = difflib.get_close_matches(selector, names, n=3, cutoff=0.5) or names[:3]
        raise SelectorError(f"no layer matches '{selector}'", where=f"{len(layers)} prunable layers",
                            fix=f"use {TYPES_HELP}; near names: {', '.join(near) or '(the model has no such layers)'}")
    return found


def kept_dense_by_default(layers: Sequence[Layer]) -> dict[str, str]:
    """Name -> reason of the layers that stay dense unless they are asked for.

    The first convolution and the last linear layer hold few weights and much accuracy; depthwise convolutions do
    little work and are sensitive. A 1x1 convolution on a single pixel at the end counts as the last linear layer.
    """
    reasons = {layer.name: "depthwise" for layer in layers if layer.depthwise}
    convolutions = [layer for layer in layers if layer.kind == "conv"]
    if convolutions:
        reasons[convolutions[0].name] = "first convolution"
    linear = [layer for layer in layers if layer.kind == "linear"]
    if linear:
        reasons[linear[-1].name] = LAST_LINEAR
    elif convolutions and convolutions[-1].shape[2:] == (1, 1) and convolutions[-1].output[2:] == (1, 1):
        reasons[convolutions[-1].name] = LAST_LINEAR
    return reasons


def choose(layers: Sequence[Layer], only: Iterable[str] = (),
           skip: Iterable[str] = ()) -> tuple[set[str], dict[str, str]]:
    """Which layers to prune, by ``only`` and ``skip`` selectors and the default rule.

    Layers that are dense by default are asked for by an ``only`` selector that matches none but such layers: the exact
    name, 'depthwise', or 'linear' where there is one linear layer. ``skip`` has the last word.

    Returns:
        The names to prune, and name -> reason of the others.

    Raises:
        SelectorError: a selector matches nothing.
    """
    only, reasons = list(only), kept_dense_by_default(layers)
    matches = [[layer.name for layer in match(layers, selector)] for selector in only]
    asked = {name for names in matches if all(name in reasons for name in names) for name in names}
    reasons = {name: reason for name, reason in reasons.items() if name not in asked}
    if only:
        chosen = {name for names in matches for name in names}
        reasons |= {layer.name: "not selected" for layer in layers if layer.name not in chosen}
    reasons |= {layer.name: "skipped" for layer in select(layers, skip)}
    return {layer.name for layer in layers} - reasons.keys(), reasons
