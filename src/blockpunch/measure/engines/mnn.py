"""MNN in float32, converted with its detection of sparse weights, which finds zeros in blocks of four filters."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from blockpunch.measure.engines.base import Array, Engine, LocalRunner, Shapes, guarded, require


class MnnRunner(LocalRunner):
    """One session with ``threads`` threads, ``precision: high`` (float32)."""

    def __init__(self, path: Path, threads: int, shapes: Shapes | None) -> None:
        self._mnn: Any = require("MNN", "MNN", "mnn", "measuring MNN")
        self.version = metadata.version("MNN")
        guarded("mnn", path, lambda: self._load(path, threads, shapes))

    def _load(self, path: Path, threads: int, shapes: Shapes | None) -> None:
        with tempfile.TemporaryDirectory(prefix="blockpunch-") as folder:
            file = Path(folder) / "net.mnn"
            convert(path, file)
            self._net = self._mnn.Interpreter(str(file))
        self._session = self._net.createSession({"backend": "CPU", "numThread": threads, "precision": "high"})
        if shapes:
            for name, tensor in self._net.getSessionInputAll(self._session).items():
                self._net.resizeTensor(tensor, shapes[name])
            self._net.resizeSession(self._session)
        self._inputs = self._net.getSessionInputAll(self._session)
        names = output_names(path)
        found = self._net.getSessionOutputAll(self._session)
        self._outputs = [found[name] for name in names] if names and set(names) <= set(found) else list(found.values())
        self._results = [self._host(np.empty(t.getShape(), np.float32)) for t in self._outputs]

    def _host(self, array: Array) -> Any:
        """A tensor of MNN's in NCHW order with a copy of ``array``."""
        return self._mnn.Tensor(array.shape, self._mnn.Halide_Type_Float, array, self._mnn.Tensor_DimensionType_Caffe)

    def run(self, inputs: Mapping[str, Array]) -> Sequence[Array]:
        """One inference."""
        for name, array in inputs.items():
            self._inputs[name].copyFrom(self._host(array))
        self._net.runSession(self._session)
        outputs = []
        for tensor, result in zip(self._outputs, self._results, strict=True):
            tensor.copyToHostTensor(result)
            outputs.append(np.array(result.getNumpyData()))
        return outputs


def convert(path: Path, output: Path) -> None:
    """ONNX -> MNN by the converter's function; its command line also installs and calls a telemetry package."""
    tools = require("_tools", "MNN", "mnn", "converting a model for MNN")
    tools.mnnconvert(["mnnconvert", "-f", "ONNX", "--modelFile", str(path), "--MNNModel", str(output),
                      "--detectSparseSpeedUp"])
    if not output.exists():
        raise RuntimeError("its converter failed")


def output_names(path: Path) -> list[str]:
    """The model's outputs in their own order, which MNN does not keep; empty where ``onnx`` is not installed."""
    try:
        import onnx
    except ImportError:
        return []
    return [output.name for output in onnx.load(str(path), load_external_data=False).graph.output]


ENGINE = Engine("mnn", "MNN", "mnn", MnnRunner, isolated=True)
