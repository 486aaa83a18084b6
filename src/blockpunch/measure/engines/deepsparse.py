"""DeepSparse 1.8.0, the last release with an engine in it. It needs older packages than ours: another environment."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np

from blockpunch.measure.engines.base import Array, Engine, LocalRunner, Shapes, guarded, require


class DeepSparseRunner(LocalRunner):
    """One engine with ``threads`` cores; the batch is the model's own or that of ``shapes``."""

    def __init__(self, path: Path, threads: int, shapes: Shapes | None) -> None:
        os.environ.setdefault("NM_DISABLE_ANALYTICS", "True")
        deepsparse = require("deepsparse", "deepsparse", "deepsparse", "measuring DeepSparse")
        onnx = require("onnx", "onnx", "deepsparse", "measuring DeepSparse")
        self.version = metadata.version("deepsparse")
        graph = onnx.load(str(path), load_external_data=False).graph
        constants = {tensor.name for tensor in graph.initializer}
        self._names = [value.name for value in graph.input if value.name not in constants]
        own = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in graph.input}
        wanted = [list((shapes or {}).get(name, own[name])) for name in self._names]
        # DeepSparse writes batch and shapes into the file that it is given: it gets a copy, for as long as it runs.
        self._folder = tempfile.TemporaryDirectory(prefix="blockpunch-")
        copy = shutil.copy(path, self._folder.name)
        self._engine = guarded("deepsparse", path, lambda: deepsparse.Engine(
            model=str(copy), batch_size=wanted[0][0], num_cores=threads, input_shapes=wanted if shapes else None))

    def run(self, inputs: Mapping[str, Array]) -> Sequence[Array]:
        """One inference."""
        outputs: Sequence[Array] = self._engine.run([np.ascontiguousarray(inputs[name]) for name in self._names])
        return outputs

    def close(self) -> None:
        """Drop the engine and its copy of the model."""
        self._engine = None
        self._folder.cleanup()


ENGINE = Engine("deepsparse", "deepsparse", None, DeepSparseRunner, isolated=True, requirement="deepsparse==1.8.0")
