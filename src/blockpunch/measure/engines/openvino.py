"""OpenVINO's CPU plug-in in float32 (its own default is bfloat16 where the core has it)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blockpunch.measure.engines.base import Array, Engine, LocalRunner, Shapes, guarded, require


class OpenVinoRunner(LocalRunner):
    """One stream, ``threads`` threads, float32; the benchmark does the pinning."""

    def __init__(self, path: Path, threads: int, shapes: Shapes | None) -> None:
        openvino = require("openvino", "openvino", "openvino", "measuring against OpenVINO")
        self.version = str(openvino.__version__).split("-")[0]
        self._compiled: Any = guarded("openvino", path, lambda: self._compile(openvino, path, threads, shapes))
        self._request: Any = self._compiled.create_infer_request()

    @staticmethod
    def _compile(openvino: Any, path: Path, threads: int, shapes: Shapes | None) -> Any:
        core = openvino.Core()
        model = core.read_model(str(path))
        if shapes:
            model.reshape({name: list(shape) for name, shape in shapes.items()})
        return core.compile_model(model, "CPU", {
            "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": str(threads),
            "ENABLE_CPU_PINNING": "NO"})

    def run(self, inputs: Mapping[str, Array]) -> Sequence[Array]:
        """One inference; inputs are shared, not copied."""
        results = self._request.infer(dict(inputs), share_inputs=True, share_outputs=True)
        return [results[output] for output in self._compiled.outputs]

    def close(self) -> None:
        """Drop the compiled model and its threads."""
        self._request = self._compiled = None


ENGINE = Engine("openvino", "openvino", "openvino", OpenVinoRunner, suffixes=(".onnx", ".xml"))
