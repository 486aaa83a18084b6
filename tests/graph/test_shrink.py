"""Dead channels leave the graph: the outputs stay, the layers get smaller exactly where that is allowed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx_oracle import model_of, session

from blockpunch.graph import FusedOp, Graph, Node, Value
from blockpunch.graph.interpreter import run
from blockpunch.graph.onnx_import import from_onnx
from blockpunch.graph.operators import OPERATORS
from blockpunch.graph.passes import optimize
from blockpunch.graph.passes.shrink import REMOVED_MACS, shrink
from blockpunch.graph.summary import node_macs, total_macs

SAME = {"stride": (1, 1), "pads": (1, 1, 1, 1), "dilation": (1, 1), "groups": 1}
PLAIN = SAME | {"pads": (0, 0, 0, 0)}


class Maker:
    """A graph in the making, with structured zeros in its weights."""

    def __init__(self, seed: int, batch: int = 1, channels: int = 5, size: tuple[int, int] = (7, 6)) -> None:
        self.rng = np.random.default_rng(seed)
        self.graph = Graph("dead", ["x"], [], [], {"x": Value("x", (batch, channels, *size))}, {})

    def constant(self, array: Any) -> str:
        name = f"c{len(self.graph.constants)}"
        self.graph.constants[name] = np.asarray(array, np.float32)
        return name

    def node(self, op: str, *inputs: str, epilogue: tuple[FusedOp, ...] = (), operands: tuple[str, ...] = (),
             **attrs: Any) -> str:
        name = f"{op.lower()}{len(self.graph.nodes)}"
        core = Node(name, op, inputs, (name,), attrs)
        shape = OPERATORS[op].infer(core, [self.graph.shape(item) for item in inputs])[0]
        self.graph.nodes.append(Node(name, op, (*inputs, *operands), (name,), attrs, name, epilogue))
        self.graph.values[name] = Value(name, shape)
        return name

    def weights(self, *shape: int, filters: float = 0.4, channels: float = 0.3) -> np.ndarray:
        """Random weights of which these shares of filters and channels are zero."""
        w = self.rng.normal(size=shape) / math.sqrt(max(math.prod(shape[1:]), 1))
        w[self.rng.random(shape[0]) < filters] = 0
        w[:, self.rng.random(shape[1]) < channels] = 0
        return w.astype(np.float32)

    def conv(self, x: str, w: np.ndarray, bias: Any = None, epilogue: tuple[FusedOp, ...] = (),
             operands: tuple[str, ...] = (), **attrs: Any) -> str:
        extra = () if bias is None else (self.constant(bias),)
        return self.node("Conv", x, self.constant(w), *extra, epilogue=epilogue, operands=operands,
                         **({**SAME, **attrs} if w.shape[2] == 3 else {**PLAIN, **attrs}))

    def finish(self, *outputs: str) -> Graph:
        self.graph.outputs = list(outputs)
        return self.graph


def check(graph: Graph) -> Graph:
    """Shrink, compare, and return the smaller graph."""
    x = np.random.default_rng(3).normal(size=graph.shape("x")).astype(np.float32)
    expected, small = run(graph, [x]), shrink(graph)
    found = run(small, [x])
    for name, array in expected.items():
        assert found[name].shape == array.shape
        np.testing.assert_allclose(found[name], array, rtol=2e-5, atol=2e-5 * max(float(np.abs(array).max()), 1))
    macs = sum(node_macs(small, node) + node.attrs.get(REMOVED_MACS, 0) for node in small)
    assert macs <= total_macs(graph) and (len(small.nodes) < len(graph.nodes) or macs == total_macs(graph))
    return small


def channels(graph: Graph, name: str) -> int:
    return graph.shape(name)[1]


def test_constant_channels_move_into_the_bias() -> None:
    m = Maker(1)
    w = m.weights(8, 5, 3, 3, filters=0, channels=0)
    w[[1, 4, 5]] = 0
    y = m.node("Relu", m.conv("x", w, np.linspace(-1, 2, 8)))
    pooled = m.node("MaxPool", y, kernel=(2, 2), stride=(2, 2), pads=(0, 0, 0, 0), dilation=(1, 1))
    small = check(m.finish(m.conv(pooled, m.weights(3, 8, 1, 1, filters=0, channels=0))))
    assert channels(small, y) == 5 and [small.shape(node.inputs[1])[:2] for node in small if node.op == "Conv"] == [
        (5, 5), (3, 5)]


def test_a_padded_reader_keeps_constants_other_than_zero() -> None:
    m = Maker(2)
    w = m.weights(6, 5, 3, 3, filters=0, channels=0)
    w[[0, 2, 3]] = 0
    y = m.node("Relu", m.conv("x", w, [-1, 1, 2, 0, 1, 1]))  # dead filters: 0, 2 and 0 after the activation
    small = check(m.finish(m.conv(y, m.weights(4, 6, 3, 3, filters=0, channels=0))))
    assert channels(small, y) == 4


@pytest.mark.parametrize(("op", "include", "kept"), [("MaxPool", False, 3), ("AveragePool", False, 3),
                                                     ("AveragePool", True, 4)])
def test_pooling_keeps_a_constant_except_among_counted_zeros(op: str, include: bool, kept: int) -> None:
    m = Maker(8)
    w = m.weights(5, 5, 1, 1, filters=0, channels=0)
    w[[0, 2]] = 0
    y = m.conv("x", w, [0, 1, 2, 0, 1])  # dead filters: 0 and 2
    pooled = m.node(op, y, kernel=(3, 3), stride=(1, 1), pads=(1, 1, 1, 1), dilation=(1, 1), count_include_pad=include)
    small = check(m.finish(m.conv(pooled, m.weights(4, 5, 1, 1, filters=0, channels=0))))
    assert channels(small, pooled) == kept


def test_channels_that_nobody_reads() -> None:
    m = Maker(3)
    y = m.conv("x", m.weights(6, 5, 3, 3, filters=0, channels=0), epilogue=(FusedOp("Silu"),))
    w, v = (m.weights(4, 6, k, k, filters=0, channels=0) for k in (3, 1))
    w[:, [0, 1, 5]] = 0
    v[:, [1, 2, 5]] = 0
    small = check(m.finish(m.conv(y, w), m.conv(y, v)))
    assert channels(small, y) == 4


def test_sums_lose_a_channel_together() -> None:
    m = Maker(4, channels=4)
    a, b = (m.weights(4, 4, 3, 3, filters=0, channels=0) for _ in range(2))
    a[[0, 1]] = 0
    b[[1, 2]] = 0
    left = m.conv("x", a)
    total = m.conv("x", b, epilogue=(FusedOp("Add", {}, 2), FusedOp("Relu")), operands=(left,))
    small = check(m.finish(m.conv(total, m.weights(3, 4, 3, 3, filters=0, channels=0))))
    assert channels(small, left) == channels(small, total) == 3
    m.graph.outputs.append(left)  # what the caller gets stays whole
    assert channels(check(m.graph), total) == 4


def test_depthwise_concat_and_flatten() -> None:
    m = Maker(5)
    a = m.weights(6, 5, 1, 1, filters=0, channels=0)
    a[[0, 3]] = 0
    wide = m.conv("x", a, np.zeros(6), epilogue=(FusedOp("Relu"),))
    deep = m.conv(wide, m.weights(6, 1, 3, 3, filters=0, channels=0), np.zeros(6), groups=6)
    both = m.node("Concat", deep, "x", axis=1)
    flat = m.node("Reshape", m.node("AveragePool", both, kernel=(2, 2), stride=(2, 2), pads=(0, 0, 0, 0),
                                    count_include_pad=False), shape=(1, 11 * 9))
    small = check(m.finish(m.node("Linear", flat, m.constant(m.weights(4, 99, filters=0, channels=0)))))
    assert (channels(small, deep), channels(small, both), channels(small, flat)) == (4, 9, 81)
    assert next(node for node in small if node.outputs[0] == deep).attrs["groups"] == 4


def test_nothing_dead_changes_nothing() -> None:
    m = Maker(6)
    graph = m.finish(m.conv(m.conv("x", m.weights(4, 5, 3, 3, filters=0, channels=0)), m.weights(
        4, 4, 3, 3, filters=0, channels=0)))
    assert shrink(graph) is graph


def test_all_filters_dead() -> None:
    m = Maker(7)
    y = m.conv("x", m.weights(4, 5, 3, 3, filters=1.0))
    small = check(m.finish(m.conv(m.conv(y, m.weights(4, 4, 3, 3)), m.weights(3, 4, 3, 3), np.ones(3))))
    assert channels(small, y) == 1


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2 ** 32 - 1), st.integers(3, 14))
def test_random_networks_compute_the_same(seed: int, steps: int) -> None:
    check(random_network(seed, steps))


def test_random_networks_do_shrink() -> None:
    graphs = [random_network(seed, 9) for seed in range(40)]
    assert sum(total_macs(shrink(graph)) for graph in graphs) < 0.8 * sum(total_macs(graph) for graph in graphs)


def random_network(seed: int, steps: int) -> Graph:
    m = Maker(seed, batch=1 + seed % 2)
    maps = ["x"]
    for _ in range(steps):
        x = maps[int(m.rng.integers(max(len(maps) - 3, 0), len(maps)))]
        maps.append(random_step(m, x, maps))
    last = maps[-1]
    pooled = m.node("GlobalAveragePool", last)
    flat = m.node("Reshape", pooled, shape=(m.graph.shape(pooled)[:2]))
    hidden = m.node("Linear", flat, m.constant(m.weights(6, m.graph.shape(flat)[1])), m.constant(m.rng.normal(size=6)),
                    epilogue=(FusedOp("Relu"),))
    return m.finish(m.node("Linear", hidden, m.constant(m.weights(4, 6, filters=0))),
                    *([maps[-2]] if m.rng.random() < 0.2 and maps[-2] != "x" else []))


def random_step(m: Maker, x: str, maps: list[str]) -> str:
    rng, (_, c, h, w) = m.rng, m.graph.shape(x)
    alike = [name for name in maps if m.graph.shape(name) == m.graph.shape(x)]
    kind = rng.integers(0, 12)
    if kind < 5:
        k, filters = int(rng.choice([1, 3])), c if rng.random() < 0.5 else int(rng.integers(1, 8))
        same = [name for name in alike if filters == c]
        fused = (FusedOp("Add", {}, 3), FusedOp("Relu")) if same and rng.random() < 0.5 else (FusedOp("HardSwish"),)
        pads = (0, 0, 0, 0) if k == 1 or (min(h, w) > 3 and len(fused) == 1 and rng.random() < 0.5) else (1, 1, 1, 1)
        bias = rng.normal(size=filters) * (rng.random() < 0.7)
        return m.conv(x, m.weights(filters, c, k, k), bias, fused, (str(rng.choice(same)),) if len(fused) == 2 else (),
                      pads=pads)
    if kind == 5:
        return m.conv(x, m.weights(c, 1, 3, 3, channels=0), groups=c)
    if kind == 6:
        return m.node(str(rng.choice(["Relu", "Sigmoid", "Neg"])), x)
    if kind == 7:
        padded = rng.random() < 0.5
        return m.node("MaxPool" if rng.random() < 0.5 else "AveragePool", x, kernel=(3, 3) if padded else (1, 1),
                      stride=(1, 1), pads=(1, 1, 1, 1) if padded else (0, 0, 0, 0), dilation=(1, 1),
                      count_include_pad=bool(rng.random() < 0.5))
    if kind == 8:
        return m.node(str(rng.choice(["Add", "Mul"])), x, str(rng.choice(alike)))
    if kind == 9:
        shape = [(1, c, 1, 1), (), (1, 1, h, w)][int(rng.integers(0, 3))]
        return m.node(str(rng.choice(["Add", "Mul"])), x, m.constant(rng.normal(size=shape)))
    if kind == 10 and c < 20:
        others = [name for name in maps if m.graph.shape(name)[2:] == (h, w) and m.graph.shape(name)[1] < 20]
        return m.node("Concat", x, str(rng.choice(others)), axis=1)
    return m.node("Resize", x, mode="nearest", coordinates="asymmetric", nearest_rounding="floor", size=(h, w),
                  scales=(1.0, 1.0)) if rng.random() < 0.5 else m.node("Slice", x, starts=(0,), stops=(max(c // 2, 1),),
                                                                       axes=(1,), steps=(1,))


@pytest.mark.parametrize("seed", range(3))
def test_same_as_onnxruntime(seed: int) -> None:
    """A bottleneck with dead filters in every layer, from the file on."""
    rng = np.random.default_rng(seed)
    shapes = {"w0": (8, 5, 1, 1), "w1": (8, 8, 3, 3), "w2": (5, 8, 1, 1)}
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for w in weights.values():
        w[rng.random(len(w)) < 0.4] = 0
    biases = {f"b{i}": (rng.normal(size=len(w)) * (i != seed)).astype(np.float32)
              for i, w in enumerate(weights.values())}

    def conv(x: str, i: int, y: str) -> list[onnx.NodeProto]:
        pads = [1] * 4 if i == 1 else [0] * 4
        return [helper.make_node("Conv", [x, f"w{i}", f"b{i}"], [f"c{i}"], pads=pads),
                helper.make_node("Relu", [f"c{i}"], [y])]

    nodes = [*conv("x", 0, "r0"), *conv("r0", 1, "r1"), *conv("r1", 2, "r2"),
             helper.make_node("Add", ["r2", "x"], ["y"])]
    model = model_of(nodes, {"x": (2, 5, 8, 9)}, ["y"], weights | biases)
    x = rng.normal(size=(2, 5, 8, 9)).astype(np.float32)
    small = shrink(optimize(from_onnx(model)))
    assert any(REMOVED_MACS in node.attrs for node in small)
    np.testing.assert_allclose(run(small, [x])["y"], session(model).run(None, {"x": x})[0], rtol=1e-4, atol=1e-4)
