"""Whole networks: import, interpreter and passes against ONNX Runtime and torch, and what the passes must leave."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx_oracle import assert_close, check_model

import networks
from blockpunch.graph import Graph, load_graph
from blockpunch.graph.interpreter import run
from blockpunch.graph.passes import optimize
from blockpunch.graph.summary import total_macs

TRAINED = ("resnet20", "resnet56")
# Smaller images where the network allows it: the arithmetic is the same, and the tests are fast.
SMALL = {"resnet50": (1, 3, 97, 65), "mobilenet-v2": (1, 3, 96, 64), "yolov5s": (1, 3, 64, 96)}
CASES = [pytest.param(name, marks=pytest.mark.slow) if name == "vgg16" else name for name in networks.NETWORKS
         if name not in ("resnet56", "lite0-imagenette")]  # the same blocks as resnet20 and efficientnet-lite0


def expected_operators(name: str) -> set[str]:
    """All that may be left after the passes: no BatchNorm, no activation, no residual addition of its own."""
    usual = {"Conv", "Linear", "Reshape", "GlobalAveragePool"}
    return usual | {"resnet20": {"Slice", "Pad"}, "yolov5s": {"Concat", "MaxPool", "Resize"},
                    "resnet50": {"MaxPool"}, "vgg16": {"MaxPool"}, "vgg16-bn-32": {"MaxPool"}}.get(name, set())


def operators(graph: Graph) -> Counter[str]:
    return Counter(node.op for node in graph)


def image(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)


def shape_of(name: str, request: pytest.FixtureRequest) -> networks.Shape:
    """Input shape for a test; skips it where the network's trained weights are not here."""
    if name in TRAINED:
        request.getfixturevalue("datasets")
    if name == "efficientnet-lite0":
        pytest.importorskip("efficientnet_lite_pytorch")
    return SMALL.get(name, networks.NETWORKS[name].shape)


@pytest.mark.parametrize("name", CASES)
def test_onnx_network(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    shape = shape_of(name, request)
    path = networks.export(name, tmp_path / "net.onnx", shape)
    graph, better = check_model(str(path), tolerance=1e-4, feeds={"input": image(shape)})
    assert total_macs(better) == total_macs(graph)
    assert set(operators(better)) <= expected_operators(name)
    weights = {name for name in graph.constants if name.endswith("weight")}
    prunable = {node.inputs[1] for node in better if node.op in ("Conv", "Linear")}
    assert prunable <= weights, "weights keep the names of their parameters"


@pytest.mark.parametrize("name", ["resnet20", "yolov5s", "efficientnet-lite0"])
def test_torch_network(name: str, request: pytest.FixtureRequest) -> None:
    shape = shape_of(name, request)
    model, x = networks.build(name), image(shape)
    graph = load_graph(model, torch.from_numpy(x))
    with torch.no_grad():
        result = model(torch.from_numpy(x))
    reference = [item.numpy() for item in (result if isinstance(result, tuple) else (result,))]
    better = optimize(graph)
    assert_close(run(graph, x), reference, 1e-4)
    assert_close(run(better, x), reference, 1e-4)
    assert set(operators(better)) <= expected_operators(name)
    modules = dict(model.named_modules())
    for node in better:
        if node.op in ("Conv", "Linear"):
            assert node.name == node.path and isinstance(modules[node.name], torch.nn.Conv2d | torch.nn.Linear)
            assert node.inputs[1] == f"{node.name}.weight"


def test_same_graph_from_torch_and_onnx(tmp_path: Path) -> None:
    """Both importers lead to the same optimised network."""
    model = networks.build("mobilenet-v2-32")
    ours = optimize(load_graph(model, torch.zeros(1, 3, 32, 32)))
    other = optimize(load_graph(networks.export("mobilenet-v2-32", tmp_path / "net.onnx")))
    assert [(a.op, a.attrs, a.epilogue) for a in ours] == [(b.op, b.attrs, b.epilogue) for b in other]
    assert all(np.array_equal(other.constants[name], array) for name, array in ours.constants.items()
               if name.endswith("weight"))


def test_resnet50_is_fully_fused(tmp_path: Path) -> None:
    graph = optimize(load_graph(networks.export("resnet50", tmp_path / "net.onnx", (1, 3, 64, 64))))
    assert operators(graph) == {"Conv": 53, "MaxPool": 1, "GlobalAveragePool": 1, "Reshape": 1, "Linear": 1}
    fused = Counter("+".join(item.op for item in node.epilogue) for node in graph if node.op == "Conv")
    assert fused == {"Relu": 33, "Add+Relu": 16, "": 4}


@pytest.mark.parametrize("opset", [11, 13, 20])
def test_opsets_of_a_whole_network(opset: int, tmp_path: Path) -> None:
    path = networks.export("yolov5s", tmp_path / "net.onnx", (1, 3, 64, 64), opset=opset)
    check_model(str(path), tolerance=1e-4, feeds={"input": image((1, 3, 64, 64))})


def test_dynamo_export(tmp_path: Path) -> None:
    """The other exporter of torch writes other nodes for the same network."""
    pytest.importorskip("onnxscript")
    path, x = tmp_path / "net.onnx", image((1, 3, 32, 32))
    torch.onnx.export(networks.build("mobilenet-v2-32"), (torch.from_numpy(x),), str(path), dynamo=True, verbose=False)
    _, graph = check_model(str(path), tolerance=1e-4, feeds={"x": x})
    assert set(operators(graph)) <= expected_operators("mobilenet-v2")


def test_shared_mobilenet_has_no_padding_chain(datasets: Path) -> None:
    path = datasets / "models" / "mobilenet_v2_1.0_224.onnx"
    _, graph = check_model(str(path), tolerance=1e-4, low=-1, high=1)
    assert operators(graph) == {"Conv": 53, "GlobalAveragePool": 1, "Reshape": 1}
    assert {node.attrs["pads"] for node in graph if node.op == "Conv"} == {(0, 0, 0, 0), (1, 1, 1, 1), (0, 0, 1, 1)}


def test_shared_yolox(datasets: Path) -> None:
    path = datasets / "models" / "yolox_nano.onnx"
    graph, better = check_model(str(path), tolerance=1e-4, low=0, high=255)
    assert set(operators(better)) == {"Conv", "Concat", "Slice", "MaxPool", "Reshape", "Resize", "Transpose"}
    assert total_macs(better) == total_macs(graph)
