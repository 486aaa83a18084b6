"""The intermediate representation and everything that makes, checks, improves and runs it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blockpunch.errors import ModelError
from blockpunch.graph.ir import FusedOp, Graph, Node, Value
from blockpunch.graph.verify import verify

__all__ = ["FusedOp", "Graph", "Node", "Value", "load_graph", "verify"]


def load_graph(model: Any, example: Any = None, *, shape: Mapping[str, tuple[int, ...]] | None = None) -> Graph:
    """Import a model of any supported kind.

    Args:
        model: path of an ONNX file, ``onnx.ModelProto``, ``torch.nn.Module``, ``torch.export.ExportedProgram``
            or Graph.
        example: example input (tensor or tuple of tensors), needed for a ``torch.nn.Module``.
        shape: input name -> static shape, for ONNX models with dynamic dimensions.

    Raises:
        ModelError: the model cannot be read; see its subclasses for unsupported operators and dynamic shapes.
    """
    if isinstance(model, Graph):
        verify(model)
        return model
    kinds = {f"{kind.__module__.split('.')[0]}.{kind.__name__}" for kind in type(model).__mro__}
    if isinstance(model, str | Path) or "onnx.ModelProto" in kinds:
        from blockpunch.graph.onnx_import import from_onnx
        return from_onnx(model, shape=shape)
    if kinds & {"torch.Module", "torch.ExportedProgram"}:
        from blockpunch.graph.torch_import import from_torch
        return from_torch(model, example)
    raise ModelError(f"a {type(model).__name__} is not a model",
                     fix="give an ONNX path, a torch module with an example input, or an exported program")
