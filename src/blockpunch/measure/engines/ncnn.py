"""ncnn in float32, converted by pnnx. It knows no batches: one image at a time."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from blockpunch.errors import BenchmarkError
from blockpunch.measure.engines.base import Array, Engine, LocalRunner, Shapes, guarded, require

_OFF = ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_packed", "use_bf16_storage",
        "use_vulkan_compute")


class NcnnRunner(LocalRunner):
    """One network with ``threads`` threads and every storage below 32 bits switched off."""

    def __init__(self, path: Path, threads: int, shapes: Shapes | None) -> None:
        ncnn = require("ncnn", "ncnn", "ncnn", "measuring ncnn")
        self.version = str(ncnn.__version__)
        self._ncnn, self._net = ncnn, ncnn.Net()
        self._net.opt.num_threads = threads
        for name in _OFF:
            if hasattr(self._net.opt, name):
                setattr(self._net.opt, name, False)
        guarded("ncnn", path, lambda: self._load(path, shapes))

    def _load(self, path: Path, shapes: Shapes | None) -> None:
        with tempfile.TemporaryDirectory(prefix="blockpunch-") as folder:
            parts = convert(path, Path(folder), shapes)
            if any(part(str(file)) for part, file in
                   zip((self._net.load_param, self._net.load_model), parts, strict=True)):
                raise RuntimeError("the converted network cannot be loaded")

    def run(self, inputs: Mapping[str, Array]) -> Sequence[Array]:
        """One inference; the batch dimension of one is taken off and put back."""
        extractor: Any = self._net.create_extractor()
        for name, array in zip(self._net.input_names(), inputs.values(), strict=True):
            if array.shape[0] != 1:
                raise BenchmarkError(f"ncnn runs one image at a time, not {array.shape[0]}", fix="use a batch of 1")
            extractor.input(name, self._ncnn.Mat(array[0]))
        return [np.array(extractor.extract(name)[1])[None] for name in self._net.output_names()]

    def close(self) -> None:
        """Drop the network."""
        self._net = None


def convert(path: Path, folder: Path, shapes: Shapes | None) -> tuple[Path, Path]:
    """ONNX -> ncnn's two files in ``folder``. pnnx is a program; its Python side needs torch and is not used."""
    found = importlib.util.find_spec("pnnx")
    if found is None or not found.submodule_search_locations:
        raise RuntimeError("its converter is missing (pip install --no-deps pnnx)")
    program = Path(found.submodule_search_locations[0]) / ("pnnx.exe" if os.name == "nt" else "pnnx")
    parts = folder / "net.param", folder / "net.bin"
    names = ("pnnxparam", "pnnxbin", "pnnxpy", "pnnxonnx", "ncnnpy")
    copy = shutil.copy(path, folder / "net.onnx")  # pnnx writes a simplified model beside the one it reads
    command = [str(program), str(copy), f"ncnnparam={parts[0]}", f"ncnnbin={parts[1]}", "fp16=0",
               *(f"{name}={folder / name}" for name in names)]
    if shapes:
        command.append("inputshape=" + ",".join(f"[{','.join(map(str, shape))}]f32" for shape in shapes.values()))
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode or not parts[0].exists():
        raise RuntimeError(f"pnnx failed: {(done.stderr or done.stdout).strip().splitlines()[-1:]}")
    return parts


ENGINE = Engine("ncnn", "ncnn", "ncnn", NcnnRunner, isolated=True)
