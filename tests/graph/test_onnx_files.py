"""Reading ONNX files: names, shapes, external data, functions, and every kind of file that cannot be used."""

from __future__ import annotations

import ast
import contextlib
import random
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.utils
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_oracle import check_model, model_of

from blockpunch.errors import (
    BlockpunchError,
    DynamicShapeError,
    MissingExtraError,
    ModelError,
    UnsupportedOperatorError,
)
from blockpunch.graph import Graph, load_graph
from blockpunch.graph.onnx_ops import RULES
from blockpunch.graph.passes import optimize

WEIGHT = np.random.default_rng(2).uniform(-1, 1, (40, 3, 3, 3)).astype(np.float32)


def small_model(shape: tuple[int | str, ...] = (1, 3, 8, 8)) -> onnx.ModelProto:
    nodes = [helper.make_node("Conv", ["image", "weight"], ["c"], name="first/Conv"),
             helper.make_node("Relu", ["c"], ["result"])]
    return model_of(nodes, {"image": shape}, ["result"], {"weight": WEIGHT})


def test_names_are_kept() -> None:
    graph, _ = check_model(small_model())
    assert (graph.inputs, graph.outputs) == (["image"], ["result"])
    assert [(node.name, node.path) for node in graph] == [("first/Conv", "first/Conv"), ("result", "result")]
    assert list(graph.constants) == ["weight"]


def test_repeated_node_names_are_replaced() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["a"], name="same"), helper.make_node("Exp", ["a"], ["y"], name="same")]
    graph = load_graph(model_of(nodes, {"x": (2,)}, ["y"]))
    assert [node.name for node in graph] == ["a", "y"]


def test_output_keeps_its_name_when_a_node_is_called_like_it() -> None:
    nodes = [helper.make_node("Softmax", ["x"], ["a"], name="y", axis=1), helper.make_node("Relu", ["a"], ["y"])]
    graph, _ = check_model(model_of(nodes, {"x": (2, 3, 4)}, ["y"], opset=11))
    assert graph.outputs == ["y"]


def test_initializers_listed_as_inputs_are_weights() -> None:
    model = small_model()
    model.graph.input.append(helper.make_tensor_value_info("weight", TensorProto.FLOAT, WEIGHT.shape))
    graph, _ = check_model(model, feeds={"image": np.ones((1, 3, 8, 8), np.float32)})
    assert graph.inputs == ["image"]


def test_half_and_double_weights_become_float() -> None:
    for dtype in (np.float16, np.float64):
        nodes = [helper.make_node("Cast", ["w"], ["f"], to=1), helper.make_node("Add", ["x", "f"], ["y"])]
        graph, _ = check_model(model_of(nodes, {"x": (2, 3)}, ["y"], {"w": np.arange(3, dtype=dtype)}))
        assert all(array.dtype == np.float32 for array in graph.constants.values())


def test_local_functions_are_inlined() -> None:
    body = [helper.make_node("Sigmoid", ["a"], ["s"]), helper.make_node("Mul", ["a", "s"], ["b"])]
    function = helper.make_function("mine", "Swish", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    graph = helper.make_graph([helper.make_node("Swish", ["x"], ["y"], domain="mine")], "g",
                              [helper.make_tensor_value_info("x", TensorProto.FLOAT, (2, 3))],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, (2, 3))])
    model = helper.make_model(graph, functions=[function], ir_version=8,
                              opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)])
    _, better = check_model(model)
    assert [node.op for node in better] == ["Silu"]


def test_external_data(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(small_model(), str(path), save_as_external_data=True, location="model.data", size_threshold=0)
    graph, _ = check_model(str(path))
    assert np.array_equal(graph.constants["weight"], WEIGHT)
    (tmp_path / "model.data").write_bytes((tmp_path / "model.data").read_bytes()[:100])
    with pytest.raises(ModelError, match="data"):
        load_graph(path)
    (tmp_path / "model.data").unlink()
    with pytest.raises(ModelError, match="data"):
        load_graph(path)


@pytest.mark.parametrize("shape", [("batch", 3, 8, 8), (1, 3, "height", "width"), (0, 3, 8, 8)])
def test_dynamic_shape_asks_for_it(shape: tuple[int | str, ...]) -> None:
    model = small_model(shape)
    with pytest.raises(DynamicShapeError) as caught:
        load_graph(model)
    assert "'image'" in str(caught.value) and "--shape image=1,3," in str(caught.value)
    graph = load_graph(model, shape={"image": (2, 3, 8, 8)})
    assert graph.shape("result") == (2, 40, 6, 6)


def test_missing_shape_asks_for_it() -> None:
    model = small_model()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(DynamicShapeError, match="--shape image="):
        load_graph(model)
    assert isinstance(load_graph(model, shape={"image": (1, 3, 5, 5)}), Graph)


def test_given_shape_must_fit() -> None:
    with pytest.raises(ModelError, match="inputs are"):
        load_graph(small_model(), shape={"picture": (1, 3, 8, 8)})
    with pytest.raises(ModelError, match="does not fit"):
        load_graph(small_model(), shape={"image": (3, 8, 8)})
    with pytest.raises(ModelError, match="whole numbers"):
        load_graph(small_model(), shape={"image": (1, "channels", 8, 8)})  # type: ignore[dict-item]
    with pytest.raises(ModelError, match="4 input channels"):
        load_graph(small_model(), shape={"image": (1, 4, 8, 8)})


def test_constants_are_folded_by_the_rules_of_the_opset() -> None:
    """Before opset 13 axes are an attribute."""
    nodes = [helper.make_node("Unsqueeze", ["w"], ["tall"], axes=[3]), helper.make_node("Conv", ["x", "tall"], ["y"])]
    model = model_of(nodes, {"x": (1, 3, 5, 5)}, ["y"], {"w": np.ones((2, 3, 1), np.float32)}, 11)
    assert load_graph(model).shape("y") == (1, 2, 5, 5)


def test_files_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        load_graph(tmp_path / "missing.onnx")
    data = small_model().SerializeToString()
    for name, content in (("text", b"this is a text file, not a network\n" * 20), ("empty", b""),
                          ("short", data[:len(data) // 2]), ("cut", data[:-9]), ("noise", bytes(range(256)) * 40)):
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(content)
        with pytest.raises(ModelError):
            load_graph(path)
    with pytest.raises(ModelError, match="not a model"):
        load_graph(12)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(number: float) -> None:
    model, bad = small_model(), WEIGHT.copy()
    bad[3, 1, 0, 0] = number
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(bad, "weight"))
    with pytest.raises(ModelError, match="'weight'"):
        load_graph(model)


def test_negative_variance() -> None:
    node = helper.make_node("BatchNormalization", ["x", "one", "one", "one", "minus"], ["y"], name="norm")
    constants = {"one": np.ones(3, np.float32), "minus": np.array([1, -1, 1], np.float32)}
    with pytest.raises(ModelError, match="'norm': its variance"):
        load_graph(model_of([node], {"x": (1, 3, 2, 2)}, ["y"], constants))


def test_damaged_weight() -> None:
    model = small_model()
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-8]
    with pytest.raises(ModelError, match="'weight'"):
        load_graph(model)


def test_unsupported_operators_are_all_listed() -> None:
    nodes = [helper.make_node("Conv", ["image", "weight"], ["c"]),
             helper.make_node("Tan", ["c"], ["s"], name="my_tangent"), helper.make_node("Relu", ["s"], ["r"]),
             helper.make_node("Shape", ["r"], ["shape"]), helper.make_node("Reshape", ["r", "shape"], ["q"]),
             helper.make_node("CumSum", ["q", "axis"], ["u"], name="my_sum"),
             helper.make_node("Resize", ["image", "", "scales"], ["v"], name="my_resize", mode="cubic"),
             helper.make_node("Custom", ["image"], ["w"], name="my_own", domain="com.example")]
    model = model_of(nodes, {"image": (1, 3, 8, 8)}, ["u", "v", "w"],
                     {"weight": WEIGHT, "axis": np.array(1), "scales": np.array([1, 1, 2, 2], np.float32)})
    with pytest.raises(UnsupportedOperatorError) as caught:
        load_graph(model)
    text = str(caught.value)
    assert all(name in text for name in ("Tan 'my_tangent'", "CumSum 'my_sum'", "Resize 'my_resize': ", "my_own"))
    nodes_named, supported = text.split("supported are")
    assert "4 nodes" in text and "Reshape" not in nodes_named and "Reshape" in supported


def test_a_tail_that_is_not_supported_can_be_cut_off(tmp_path: Path) -> None:
    """The error says how, and what it says works."""
    model = small_model()
    model.graph.node.append(helper.make_node("TopK", ["result", "k"], ["best", "where"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([3]), "k"))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("best", TensorProto.FLOAT, (1, 40, 6, 3)))
    onnx.save(model, str(tmp_path / "whole.onnx"))
    with pytest.raises(UnsupportedOperatorError) as caught:
        load_graph(tmp_path / "whole.onnx")
    call = re.search(r"onnx\.utils\.extract_model\((.*)\)", str(caught.value))
    assert call is not None
    source, _, inputs, outputs = ast.literal_eval(f"({call[1]})")
    onnx.utils.extract_model(source, str(tmp_path / "cut.onnx"), inputs, outputs)
    assert load_graph(tmp_path / "cut.onnx").outputs == ["result"]


def _damage(model: onnx.ModelProto, draw: random.Random) -> None:
    """Change one attribute, input, operator or weight of a model to something that is likely wrong."""
    node, kind = draw.choice(model.graph.node), draw.randrange(5)
    if kind == 0 and node.attribute:
        attribute = draw.choice(node.attribute)
        if attribute.ints:
            attribute.ints[0] = draw.choice((-1, 0, 7, 10 ** 12))
        else:
            attribute.i = draw.choice((-1, 0, 3, 100))
    elif kind == 1 and node.attribute:
        del node.attribute[draw.randrange(len(node.attribute))]
    elif kind == 2:
        del node.input[draw.randrange(len(node.input))]
    elif kind == 3:
        node.op_type = draw.choice(sorted(RULES))
    else:
        names = [item.name for item in model.graph.initializer] + [item.output[0] for item in model.graph.node]
        node.input[draw.randrange(len(node.input))] = draw.choice(names)


@pytest.mark.parametrize("seed", range(150))
def test_damaged_models_raise_our_errors(seed: int, damaged_source: bytes) -> None:
    """Whatever is wrong in a file, the answer is a graph that holds together or an error of our own tree."""
    draw = random.Random(seed)
    model = onnx.load_from_string(damaged_source)
    for _ in range(draw.randint(1, 2)):
        _damage(model, draw)
    with contextlib.suppress(BlockpunchError):
        optimize(load_graph(model))


@pytest.fixture(scope="module")
def damaged_source() -> bytes:
    """A model with one node of most kinds."""
    make = helper.make_node
    nodes = [make("Pad", ["x", "pads"], ["p"]), make("Conv", ["p", "w", "b"], ["c"], group=2),
             make("BatchNormalization", ["c", "b", "b", "b", "b"], ["n"]),
             make("Split", ["n"], ["s1", "s2"], axis=1), make("Concat", ["s2", "s1"], ["j"], axis=1),
             make("Slice", ["j", "starts", "ends"], ["k"]), make("Gather", ["k", "zero"], ["g"]),
             make("Unsqueeze", ["g", "zero1"], ["u"]), make("Resize", ["u", "", "scales"], ["r"]),
             make("MaxPool", ["r"], ["m"], kernel_shape=[2, 2], strides=[2, 2]),
             make("Transpose", ["m"], ["t"], perm=[0, 2, 3, 1]), make("Softmax", ["t"], ["o"], axis=-1),
             make("ReduceMean", ["o"], ["q"], axes=[1, 2], keepdims=0), make("Shape", ["q"], ["h"]),
             make("Reshape", ["q", "h"], ["f"]), make("Gemm", ["f", "matrix", "b"], ["y"], transB=1)]
    constants = {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "w": WEIGHT[:4, :2], "b": np.ones(4, np.float32),
                 "starts": np.array([0, 0]), "ends": np.array([1, 99]), "zero": np.array(0), "zero1": np.array([0]),
                 "scales": np.array([1, 1, 2, 2], np.float32), "matrix": np.ones((4, 4), np.float32)}
    model = model_of(nodes, {"x": (1, 4, 6, 6)}, ["y"], constants)
    check_model(model)
    return model.SerializeToString()


@pytest.mark.parametrize("package, model", [("onnx", "net.onnx"), ("torch", torch.nn.Identity())])
def test_missing_package(package: str, model: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a model without the package for it names the extra to install."""
    monkeypatch.setitem(sys.modules, package, None)
    for module in ("onnx_import", "torch_import"):
        monkeypatch.delitem(sys.modules, f"blockpunch.graph.{module}", raising=False)
    with pytest.raises(MissingExtraError, match=f"'{package}'.*not installed(.|\n)*pip install"):
        load_graph(model, None)


def test_integer_input_is_refused() -> None:
    model = small_model()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    with pytest.raises(ModelError, match="UINT8"):
        load_graph(model)


def test_constant_output_is_refused() -> None:
    with pytest.raises(ModelError, match="constant"):
        load_graph(model_of([helper.make_node("Neg", ["w"], ["y"])], {"x": (1,)}, ["y"], {"w": np.ones(3, np.float32)}))


def test_dangling_tensor_is_refused() -> None:
    with pytest.raises(ModelError, match="nothing writes 'nowhere'"):
        load_graph(model_of([helper.make_node("Relu", ["nowhere"], ["y"])], {"x": (1,)}, ["y"]))
    with pytest.raises(ModelError, match="nothing writes 'y'"):
        load_graph(model_of([helper.make_node("Relu", ["x"], ["z"])], {"x": (1,)}, ["y"]))
