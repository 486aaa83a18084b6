"""ONNX Runtime: a peer, and the reference that outputs are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blockpunch.measure.engines.base import Array, Engine, LocalRunner, Shapes, guarded, require, static_shape


class OnnxRuntimeRunner(LocalRunner):
    """One inference session on the CPU, all graph optimisations, ``threads`` computing threads that spin."""

    def __init__(self, path: Path, threads: int) -> None:
        ort = require("onnxruntime", "onnxruntime", "bench", "measuring against ONNX Runtime")
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        self.version = str(ort.__version__)
        self._session: Any = guarded("onnxruntime", path, lambda: ort.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]))

    def shapes(self, given: Shapes | None) -> dict[str, tuple[int, ...]]:
        """Input names and static shapes, as the file has them or as ``given``."""
        return {i.name: static_shape(i.name, i.shape, given) for i in self._session.get_inputs()}

    def run(self, inputs: Mapping[str, Array]) -> Sequence[Array]:
        """One inference."""
        outputs: Sequence[Array] = self._session.run(None, dict(inputs))
        return outputs

    def close(self) -> None:
        """Drop the session and its threads."""
        self._session = None


def _prepare(path: Path, threads: int, shapes: Shapes | None) -> OnnxRuntimeRunner:
    return OnnxRuntimeRunner(path, threads)


ENGINE = Engine("onnxruntime", "onnxruntime", "bench", _prepare)
