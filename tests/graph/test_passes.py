"""Passes: what they must fuse and fold, and what they must leave alone. ``check_model`` compares with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx_oracle import assert_close, check_model, model_of

from blockpunch.graph import FusedOp, Graph, Node, Value
from blockpunch.graph.interpreter import run
from blockpunch.graph.passes import optimize

X = {"x": (1, 4, 6, 6)}
RNG = np.random.default_rng(5)
WEIGHTS = {f"w{index}": RNG.uniform(-0.5, 0.5, (4, 4, 3, 3)).astype(np.float32) for index in range(3)}
NUMBERS = {"six": np.float32(6), "three": np.float32(3), "zero": np.float32(0), "one": np.float32(1),
           "half": np.float32(0.5), "sixth": np.float32(1 / 6), "root": np.float32(np.sqrt(2)),
           "column": RNG.uniform(0.5, 1, (1, 4, 1, 1)).astype(np.float32), "row": np.arange(6, dtype=np.float32)}


def op(kind: str, inputs: str, output: str, **attrs: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attrs)


def conv(source: str, output: str, index: int = 0, **attrs: Any) -> onnx.NodeProto:
    return op("Conv", f"{source} w{index}", output, **{"pads": [1, 1, 1, 1], **attrs})


def optimized(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str] = ("y",), opset: int = 17,
              **more: np.ndarray) -> list[str]:
    """What remains of the nodes: operators joined with what is in their epilogue."""
    used = {name for node in nodes for name in node.input}
    constants = {name: array for name, array in {**WEIGHTS, **NUMBERS, **more}.items() if name in used}
    _, graph = check_model(model_of(nodes, X, outputs, constants, opset))
    return ["+".join([node.op, *(fused.op for fused in node.epilogue)]) for node in graph]


def test_batch_norm_is_folded() -> None:
    statistics = {name: RNG.uniform(0.5, 1.5, 4).astype(np.float32) for name in ("s", "b", "m", "v")}
    norm = op("BatchNormalization", "c s b m v", "y")
    assert optimized([conv("x", "c"), norm], **statistics) == ["Conv"]
    assert optimized([op("Relu", "x", "c"), norm], **statistics) == ["Relu", "Mul", "Add"]
    # Another reader of the convolution still needs the result without batch-norm.
    assert optimized([conv("x", "c"), norm, op("Relu", "c", "z")], ("y", "z"), **statistics) == [
        "Conv", "Mul", "Add", "Relu"]


def test_zero_weights_stay_zero() -> None:
    """Folding must not fill in what pruning removed."""
    weight = WEIGHTS["w0"] * (RNG.uniform(size=(4, 4, 3, 3)) > 0.5)
    statistics = {name: RNG.uniform(0.5, 1.5, 4).astype(np.float32) for name in ("s", "b", "m", "v")}
    nodes = [conv("x", "c"), op("BatchNormalization", "c s b m v", "y")]
    _, graph = check_model(model_of(nodes, X, ["y"], {"w0": weight, **statistics}))
    assert np.array_equal(graph.constants["w0"] == 0, weight == 0)


def test_constants_are_folded_into_layers() -> None:
    assert optimized([conv("x", "c"), op("Mul", "c column", "m"), op("Add", "column m", "y")]) == ["Conv"]
    assert optimized([conv("x", "c"), op("Div", "c three", "m"), op("Sub", "m half", "y")]) == ["Conv"]
    assert optimized([conv("x", "c"), op("Add", "c row", "y")]) == ["Conv", "Add"]  # one number per column of pixels
    assert optimized([op("Mul", "x column", "m"), conv("m", "y")]) == ["Mul", "Conv"]  # input normalisation stays
    matrix = RNG.uniform(-1, 1, (6, 4)).astype(np.float32)
    assert optimized([op("MatMul", "x matrix", "m"), op("Add", "m bias", "y")], matrix=matrix,
                     bias=np.arange(4, dtype=np.float32)) == ["Linear"]


def test_shared_weight_is_scaled_for_one_reader_only() -> None:
    nodes = [conv("x", "a"), op("Mul", "a three", "y"), conv("x", "z", strides=[2, 2])]
    assert optimized(nodes, ("y", "z")) == ["Conv", "Conv"]


def test_padding_is_merged() -> None:
    pads = np.array([0, 0, 1, 2, 0, 0, 0, 1])
    pad = op("Pad", "x pads", "p")
    assert optimized([pad, conv("p", "y", strides=[2, 2])], pads=pads) == ["Conv"]
    assert optimized([pad, op("AveragePool", "p", "y", kernel_shape=[3, 3])], pads=pads) == ["AveragePool"]
    assert optimized([pad, op("AveragePool", "p", "y", kernel_shape=[3, 3], pads=[1, 1, 1, 1])], pads=pads) == [
        "Pad", "AveragePool"]  # the pool's own padding does not count, the Pad's does
    assert optimized([pad, op("MaxPool", "p", "y", kernel_shape=[3, 3])], pads=pads) == ["Pad", "MaxPool"]
    relu = [op("Relu", "x", "r"), op("Pad", "r pads", "p")]
    assert optimized([*relu, op("MaxPool", "p", "y", kernel_shape=[3, 3])], pads=pads) == ["Relu", "MaxPool"]
    assert optimized([*relu, op("MaxPool", "p", "y", kernel_shape=[2, 2])], pads=pads) == ["Relu", "Pad", "MaxPool"]
    ones = op("Pad", "x pads one", "p")
    assert optimized([ones, conv("p", "y")], pads=pads) == ["Pad", "Conv"]
    infinite = op("Pad", "x pads infinite", "p")
    assert optimized([infinite, op("MaxPool", "p", "y", kernel_shape=[3, 3])], pads=pads,
                     infinite=np.float32(-np.inf)) == ["MaxPool"]
    channels = np.array([0, 1, 1, 1, 0, 0, 0, 0])
    assert optimized([op("Pad", "x pads", "p"), op("MaxPool", "p", "y", kernel_shape=[2, 2])], pads=channels) == [
        "Pad", "MaxPool"]


def test_activations_are_recognised() -> None:
    sigmoid = op("Sigmoid", "x", "s")
    assert optimized([sigmoid, op("Mul", "x s", "y")]) == ["Silu"]
    assert optimized([sigmoid, op("Mul", "s x", "y")]) == ["Silu"]
    clip = [op("Add", "x three", "a"), op("Clip", "a zero six", "c")]
    assert optimized([*clip, op("Div", "c six", "y")]) == ["HardSigmoid"]
    assert optimized([*clip, op("Mul", "x c", "m"), op("Div", "m six", "y")]) == ["HardSwish"]
    assert optimized([*clip, op("Mul", "c sixth", "g"), op("Mul", "x g", "y")]) == ["HardSwish"]
    shifted = [op("Mul", "x half", "w"), op("Add", "w one", "v"), op("Add", "v three", "a"),
               op("Clip", "a zero six", "c")]
    assert optimized([*shifted, op("Mul", "v c", "m"), op("Div", "m six", "y")]) == ["Affine+HardSwish"]
    assert optimized([*shifted, op("Div", "c six", "g"), op("Mul", "v g", "y")]) == ["Affine+HardSwish"]
    other = [op("Add", "x one", "a"), op("Clip", "a zero six", "c")]
    assert optimized([*other, op("Mul", "x c", "m"), op("Div", "m six", "y")]) == ["Affine+Clip", "Mul+Affine"]
    assert optimized([op("HardSigmoid", "x", "h", alpha=1 / 6), op("Mul", "x h", "y")]) == ["HardSwish"]
    assert optimized([op("HardSigmoid", "x", "h"), op("Mul", "x h", "y")]) == ["HardSigmoid", "Mul"]  # alpha is 0.2
    assert optimized([op("Softplus", "x", "s"), op("Tanh", "s", "t"), op("Mul", "x t", "y")]) == ["Mish"]
    gelu = [op("Div", "x root", "d"), op("Erf", "d", "e"), op("Add", "e one", "a")]
    assert optimized([*gelu, op("Mul", "x a", "m"), op("Mul", "m half", "y")]) == ["Gelu"]
    assert optimized([*gelu, op("Mul", "x half", "h"), op("Mul", "h a", "y")]) == ["Gelu"]
    assert optimized([op("Max", "x zero", "m"), op("Min", "m six", "y")]) == ["Clip"]
    assert optimized([op("Max", "x zero", "y")]) == ["Relu"]
    assert optimized([op("PRelu", "x half", "y")]) == ["LeakyRelu"]


def test_no_effect_is_removed() -> None:
    shape, axes = np.array([1, 4, 6, 6]), np.array([0])
    assert optimized([op("Reshape", "x shape", "r"), op("Transpose", "r", "t", perm=[0, 1, 2, 3]),
                      op("Mul", "t one", "m"), op("Add", "m zero", "a"), op("Relu", "a", "y")], shape=shape) == ["Relu"]
    assert optimized([op("Transpose", "x", "t", perm=[0, 2, 3, 1]), op("Transpose", "t", "u", perm=[0, 3, 1, 2]),
                      op("Relu", "u", "y")]) == ["Relu"]
    assert optimized([op("Unsqueeze", "x axes", "u"), op("Squeeze", "u axes", "s"), op("Relu", "s", "y")],
                     axes=axes) == ["Relu"]
    assert optimized([op("Relu", "x", "a"), op("Relu", "a", "b"), op("Clip", "b zero six", "y")]) == ["Clip"]
    assert optimized([op("Relu", "x", "r"), op("Identity", "r", "y"), op("Exp", "x", "dead")]) == ["Relu"]


def test_slices_are_merged_along_different_axes() -> None:
    numbers = {"one": np.array([1]), "end": np.array([99]), "two": np.array([2]), "three": np.array([3])}
    rows, columns = op("Slice", "x one end two two", "r"), op("Slice", "r one end three two", "y")
    assert optimized([rows, columns], **numbers) == ["Slice"]
    assert optimized([rows, op("Slice", "r one end two two", "y")], **numbers) == ["Slice", "Slice"]


def test_output_that_is_the_input() -> None:
    """It needs a tensor of its own, so something has to copy it."""
    assert optimized([op("Identity", "x", "y")]) == ["Reshape"]
    assert optimized([op("Relu", "x", "r"), op("Identity", "r", "y"), op("Identity", "r", "z")], ("y", "z")) == [
        "Relu", "Reshape"]


def test_means_are_global_pools() -> None:
    assert optimized([op("ReduceMean", "x", "y", axes=[2, 3])]) == ["GlobalAveragePool"]
    assert optimized([op("ReduceMean", "x", "y", axes=[-1, -2], keepdims=0)]) == ["GlobalAveragePool", "Reshape"]
    assert optimized([op("AveragePool", "x", "y", kernel_shape=[6, 6])]) == ["GlobalAveragePool"]
    assert optimized([op("ReduceMean", "x", "y", axes=[1])]) == ["ReduceMean"]


def test_duplicates_are_merged() -> None:
    nodes = [conv("x", "a"), conv("x", "b"), conv("x", "c", 1), op("Add", "a b", "d"), op("Add", "d c", "y")]
    assert optimized(nodes).count("Conv") == 1  # of a and b; c goes into the epilogue of an addition's convolution


def test_lines_are_computed_as_images() -> None:
    """What stands between convolutions of lines is done on images of one row: nothing is reshaped on the way."""
    weights = {"w": np.ones((4, 4, 3), np.float32), "slope": np.full((4, 1), 0.1, np.float32),
               **{name: np.full(4, 0.5, np.float32) for name in ("scale", "shift", "mean", "variance")}}

    def line_conv(source: str, result: str) -> onnx.NodeProto:
        return op("Conv", f"{source} w", result, pads=[1, 1])

    nodes = [line_conv("x", "a"), op("BatchNormalization", "a scale shift mean variance", "b"),
             op("PRelu", "b slope", "c"), line_conv("c", "d"), op("Add", "d c", "e"), op("Sigmoid", "e", "f"),
             op("Concat", "f c", "g", axis=2), op("MaxPool", "g", "h", kernel_shape=[2]), op("Exp", "h", "y")]
    _, graph = check_model(model_of(nodes, {"x": (2, 4, 9)}, ["y"], weights))
    assert [node.op for node in graph] == ["Reshape", "Conv", "PRelu", "Conv", "Concat", "MaxPool", "Exp", "Reshape"]


def test_a_line_broadcast_to_more_axes_stays_one() -> None:
    weights = {"w": np.ones((4, 4, 3), np.float32), "many": np.ones((3, 1, 1, 1), np.float32)}
    nodes = [op("Conv", "x w", "a"), op("Add", "a many", "y")]
    _, graph = check_model(model_of(nodes, {"x": (2, 4, 9)}, ["y"], weights))
    assert [node.op for node in graph] == ["Reshape", "Conv", "Reshape", "Add"]


def test_numbers_behind_an_activation_are_fused() -> None:
    """As in layers with a learned scale and shift behind the activation."""
    nodes = [conv("x", "a"), op("Relu", "a", "b"), op("Mul", "three b", "c"), op("Add", "c half", "d"),
             op("Mul", "d half", "e"), op("Add", "e x", "y")]
    numbers = {"three": np.full(1, 3, np.float32), "half": np.array(0.5, np.float32)}
    assert optimized(nodes, **numbers) == ["Conv+Relu+Affine+Add"]
    assert optimized([op("Add", "x half", "a"), op("Mul", "a x", "b"), op("Mul", "a half", "c"), op("Sub", "b c", "y")],
                     **numbers) == ["Affine", "Mul", "Affine", "Sub"]


def test_residuals() -> None:
    relu = op("Relu", "s", "y")
    assert optimized([conv("x", "a"), op("Add", "a x", "s"), relu]) == ["Conv+Add+Relu"]
    assert optimized([conv("x", "a"), op("Add", "x a", "s"), relu]) == ["Conv+Add+Relu"]
    # Of two convolutions the later one takes the addition.
    assert optimized([conv("x", "a"), conv("x", "b", 1), op("Add", "a b", "s"), relu]) == ["Conv", "Conv+Add+Relu"]
    nodes = [conv("x", "a"), conv("x", "b", 1), op("Add", "a b", "y")]
    _, graph = check_model(model_of(nodes, X, ["y"], {name: WEIGHTS[name] for name in ("w0", "w1")}))
    assert [node.inputs for node in graph] == [("x", "w0"), ("x", "w1", "a")]
    assert optimized([conv("x", "a"), op("Relu", "a", "r"), op("Add", "r x", "s"), relu]) == ["Conv+Relu+Add+Relu"]
    assert optimized([conv("x", "a"), op("Sub", "a x", "y")]) == ["Conv+Sub"]
    assert optimized([conv("x", "a"), op("Sub", "x a", "y")]) == ["Conv", "Sub"]
    assert optimized([conv("x", "a"), op("Sigmoid", "a", "r"), op("Mul", "r x", "y")]) == ["Conv+Sigmoid+Mul"]


def test_what_must_not_be_fused() -> None:
    relu = op("Relu", "a", "y")
    assert optimized([conv("x", "a"), relu], ("y", "a")) == ["Conv", "Relu"]  # an output of the graph
    assert optimized([conv("x", "a"), relu, op("Exp", "a", "z")], ("y", "z")) == ["Conv", "Relu", "Exp"]
    assert optimized([conv("x", "a"), op("Add", "a a", "y")]) == ["Conv", "Add"]
    pooled = op("GlobalAveragePool", "x", "g")
    assert optimized([pooled, conv("x", "a"), op("Mul", "a g", "y")]) == ["GlobalAveragePool", "Conv", "Mul"]
    # The second addition stays: one operand per epilogue.
    assert optimized([conv("x", "a"), op("Add", "a x", "s"), op("Exp", "x", "e"), op("Add", "s e", "y")]) == [
        "Conv+Add", "Exp", "Add"]


def test_fused_convolution_moves_after_its_operand() -> None:
    nodes = [conv("x", "a"), op("Exp", "x", "e"), op("Tanh", "e", "t"), op("Add", "a t", "y")]
    assert optimized(nodes) == ["Exp+Tanh", "Conv+Add"]


def test_elementwise_takes_activation() -> None:
    assert optimized([op("Exp", "x", "e"), op("Add", "x e", "s"), op("Relu", "s", "y")]) == ["Exp", "Add+Relu"]


def test_passes_leave_their_input_alone() -> None:
    model = model_of([conv("x", "a"), op("Mul", "a three", "m"), op("Relu", "m", "y")], X, ["y"],
                     {"w0": WEIGHTS["w0"], "three": NUMBERS["three"]})
    graph, _ = check_model(model)
    assert [node.op for node in graph] == ["Conv", "Mul", "Relu"]
    assert np.array_equal(graph.constants["w0"], WEIGHTS["w0"])


def test_optimize_twice_changes_nothing() -> None:
    model = model_of([conv("x", "a"), op("Relu", "a", "r"), op("Add", "r x", "y")], X, ["y"], {"w0": WEIGHTS["w0"]})
    _, graph = check_model(model)
    assert optimize(graph) == graph


UNARY = ("Relu", "Sigmoid", "Tanh", "Neg", "Abs", "Silu", "Softplus")


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_random_graphs_keep_their_meaning(data: st.DataObject) -> None:
    """Graphs of random convolutions, activations, arithmetic and reshapes compute the same after all passes."""
    graph = Graph("random", ["x"], [], [], {"x": Value("x", (1, 4, 6, 6))}, dict(WEIGHTS))
    graph.constants |= {"column": NUMBERS["column"], "number": np.full((1,), 0.7, np.float32)}
    names = ["x"]
    for index in range(data.draw(st.integers(1, 12))):
        kind = data.draw(st.sampled_from(("Conv", "Add", "Mul", "Sub", "Constant", "Pad", *UNARY)))
        source = data.draw(st.sampled_from(names[-4:]))
        attrs: dict[str, Any] = {}
        inputs: tuple[str, ...] = (source,)
        if kind == "Conv":
            inputs += (f"w{data.draw(st.integers(0, 2))}",)
            attrs = {"stride": (1, 1), "pads": (1, 1, 1, 1), "dilation": (1, 1), "groups": 1}
        elif kind in ("Add", "Mul", "Sub"):
            inputs += (data.draw(st.sampled_from(names)),)
        elif kind == "Constant":
            kind = data.draw(st.sampled_from(("Add", "Mul", "Sub", "Div", "Max", "Min")))
            inputs += (data.draw(st.sampled_from(("column", "number"))),)
        elif kind == "Pad":
            kind, attrs = "Slice", {"starts": (0,), "stops": (6,), "axes": (2,), "steps": (1,)}
        name = f"n{index}"
        graph.nodes.append(Node(name, kind, inputs, (name,), attrs))
        graph.values[name] = Value(name, (1, 4, 6, 6))
        names.append(name)
    graph.outputs = sorted({names[-1], *data.draw(st.sets(st.sampled_from(names[1:]), max_size=2))})
    x = np.random.default_rng(3).uniform(-1, 1, (1, 4, 6, 6)).astype(np.float32)
    expected = run(graph, x)
    assert_close(run(optimize(graph), x), [expected[name] for name in graph.outputs], 1e-4)


@pytest.mark.parametrize("operand", [None, 2])
def test_interpreter_applies_epilogues(operand: int | None) -> None:
    """By hand: relu(2 * x) + x, against numpy."""
    fused = (FusedOp("Relu"),) if operand is None else (FusedOp("Relu"), FusedOp("Add", {}, operand))
    node = Node("n", "Mul", ("x", "two", *(("x",) if operand else ())), ("y",), {}, "", fused)
    graph = Graph("g", ["x"], ["y"], [node], {"x": Value("x", (3,)), "y": Value("y", (3,))},
                  {"two": np.full(1, 2, np.float32)})
    x = np.array([-1, 0, 2], np.float32)
    assert np.array_equal(run(graph, x)["y"], np.maximum(2 * x, 0) + (0 if operand is None else x))
