"""Fixtures that all tests share: small networks, the data folder, one thread for torch."""
# ruff: noqa: E402 - the environment has to be set before numpy is imported

import os

# One computing thread per test process: they run side by side, and results must not depend on how many there are.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

from pathlib import Path

import numpy as np
import pytest

from blockpunch.data import data_root


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the user has tuned must not change what the tests compile."""
    os.environ["BLOCKPUNCH_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture(scope="session")
def datasets() -> Path:
    """The folder of data sets; a test that needs it is skipped where there is none."""
    root = data_root()
    if root is None:
        pytest.skip("no data sets here: set BLOCKPUNCH_DATA")
    return root


def write_network(path: Path, *, channels: int = 8, filters: int = 16, size: int = 12, batch: int | str = 1,
                  seed: int = 3) -> Path:
    """An ONNX file of conv, relu, conv, global pool and a linear layer with random weights, for any opset-13 reader."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(seed)
    weights = {"w1": (channels, 3, 3, 3), "b1": (channels,), "w2": (filters, channels, 3, 3), "w3": (5, filters)}
    arrays = {name: (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
              for name, shape in weights.items()}
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "act"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], "second", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c2"], ["g"], "pool"),
        helper.make_node("Flatten", ["g"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "w3"], ["y"], "last", transB=1),
    ]
    graph = helper.make_graph(
        nodes, "small", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 5])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(path))
    return path


@pytest.fixture
def small_onnx(tmp_path: Path) -> Path:
    """A network of three layers as an ONNX file."""
    return write_network(tmp_path / "small.onnx")


@pytest.fixture(scope="session")
def small_bp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network, compiled for this machine."""
    from blockpunch.build import compile as compile_model

    folder = tmp_path_factory.mktemp("small")
    return compile_model(write_network(folder / "small.onnx")).save(folder / "small.bp")
