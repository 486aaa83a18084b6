"""The verifier refuses every kind of broken graph; the counts of a summary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from blockpunch.errors import GraphError, InputError
from blockpunch.graph import FusedOp, Graph, Node, Value, load_graph, verify
from blockpunch.graph.interpreter import run
from blockpunch.graph.summary import kept_macs, summarize, total_macs

CONV = {"stride": (1, 1), "pads": (1, 1, 1, 1), "dilation": (1, 1), "groups": 1}


def good() -> Graph:
    nodes = [Node("conv", "Conv", ("x", "w"), ("c",), CONV),
             Node("add", "Add", ("c", "x"), ("y",), epilogue=(FusedOp("Clip", {"min": 0.0, "max": 6.0}),))]
    values = {name: Value(name, (1, 2, 4, 4)) for name in ("x", "c", "y")}
    return Graph("net", ["x"], ["y"], nodes, values, {"w": np.ones((2, 2, 3, 3), np.float32)})


def change(index: int, **fields: object) -> Callable[[Graph], None]:
    def edit(graph: Graph) -> None:
        graph.nodes[index] = replace(graph.nodes[index], **fields)
    return edit


def fuse(*fused: FusedOp, inputs: tuple[str, ...] = ("c", "x")) -> Callable[[Graph], None]:
    return change(1, epilogue=fused, inputs=inputs)


def value(name: str, **fields: object) -> Callable[[Graph], None]:
    return lambda graph: graph.values.update({name: replace(graph.values[name], **fields)})


BROKEN: dict[str, Callable[[Graph], None]] = {
    "this name": change(1, name="conv"),
    "before anything": lambda graph: graph.nodes.reverse(),
    "operator table": change(0, op="Convolution"),
    "lacks the attributes": change(0, attrs={"stride": (1, 1)}),
    "must be constants": change(0, inputs=("x", "x")),
    "is declared": value("c", shape=(1, 2, 4, 5)),
    "positive whole": value("c", shape=(1, 2, 0, 4)),
    "float32 with": value("c", dtype=np.dtype(np.int64)),
    "constants must be float32": lambda graph: graph.constants.update(w=np.ones((2, 2, 3, 3))),
    "3 inputs": change(1, inputs=("c", "x", "x")),
    "nothing writes": lambda graph: graph.values.update(z=Value("z", (1,))),
    "not written": lambda graph: graph.outputs.append("x"),
    "listed twice": lambda graph: graph.outputs.append("y"),
    "at least one": lambda graph: graph.outputs.clear(),
    "both a constant and a value": lambda graph: graph.constants.update(c=np.ones(1, np.float32)),
    "has a writer": change(1, outputs=("c",)),
    "cannot stand in an epilogue": fuse(FusedOp("Softmax", {"axis": 1})),
    "'Div' cannot stand": fuse(FusedOp("Div", {}, 2), inputs=("c", "x", "x")),
    "in the epilogue lacks": fuse(FusedOp("Clip", {"min": 0.0})),
    "should be input 3": fuse(FusedOp("Add", {}, 2), FusedOp("Mul", {}, 2), inputs=("c", "x", "x")),
    "should be input 2": fuse(FusedOp("Add", {}, 3), FusedOp("Mul", {}, 2), inputs=("c", "x", "x", "x")),
    "must be a value of shape": fuse(FusedOp("Add", {}, 2), inputs=("c", "x", "w")),
    "neither the operator": fuse(FusedOp("Add", {}, 2), inputs=("c", "x", "x", "x")),
    "does not fit": lambda graph: graph.constants.update(w=np.ones((2, 2, 9, 9), np.float32)),
    "do not fit a weight": change(0, attrs={**CONV, "groups": 2}),
    "do not broadcast": lambda graph: (change(1, inputs=("c", "w"))(graph)),
    "not be negative|not negative": change(0, attrs={**CONV, "pads": (-1, 1, 1, 1)}),
}


def test_good_graph_passes() -> None:
    verify(good())
    assert load_graph(good()).nodes == good().nodes


@pytest.mark.parametrize("message", BROKEN)
def test_broken_graphs_are_refused(message: str) -> None:
    graph = good()
    BROKEN[message](graph)
    with pytest.raises(GraphError, match=message):
        verify(graph, "a pass")


def test_interpreter_checks_its_inputs() -> None:
    x = np.ones((1, 2, 4, 4), np.float32)
    assert run(good(), [x])["y"].shape == x.shape
    for bad in (x[:, :, 1:], [x, x], {"z": x}, {}):
        with pytest.raises(InputError):
            run(good(), bad)


def test_macs() -> None:
    graph = good()
    graph.constants["w"][0] = 0
    assert total_macs(graph) == 2 * 4 * 4 * 2 * 9
    assert kept_macs(graph) == total_macs(graph) // 2
    conv, add = summarize(graph)
    assert (conv.weights, conv.kept_weights, conv.rate) == (36, 18, 2.0)
    assert (add.macs, add.weights, add.rate) == (0, 0, 1.0)
    graph.constants["w"][:] = 0
    assert summarize(graph)[0].rate == float("inf")
