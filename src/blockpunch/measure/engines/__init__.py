"""The engines that can be measured side by side. To add one: write a file beside these, and add its row here."""

from __future__ import annotations

from blockpunch.errors import BenchmarkError
from blockpunch.measure.engines import blockpunch, deepsparse, mnn, ncnn, onnxruntime, openvino
from blockpunch.measure.engines.base import Array, Engine, LocalRunner, Runner, Shapes, random_inputs

ENGINES: dict[str, Engine] = {row.name: row for row in (
    blockpunch.ENGINE, onnxruntime.ENGINE, openvino.ENGINE, ncnn.ENGINE, mnn.ENGINE, deepsparse.ENGINE)}


def engine(name: str) -> Engine:
    """The engine called ``name``. Raises BenchmarkError for an unknown one."""
    if name not in ENGINES:
        raise BenchmarkError(f"no engine named '{name}'", fix=f"one of: {', '.join(ENGINES)}")
    return ENGINES[name]


__all__ = ["ENGINES", "Array", "Engine", "LocalRunner", "Runner", "Shapes", "engine", "random_inputs"]
