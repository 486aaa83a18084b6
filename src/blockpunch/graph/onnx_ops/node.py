"""One ONNX node as the rules see it, and helpers that hide the differences between opsets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from blockpunch.graph.builder import Const, GraphBuilder, Tensor, Unsupported
from blockpunch.graph.ir import Array


@dataclass
class OnnxNode:
    """An ONNX node with its inputs looked up: ``None`` stands for an optional input that is left out."""

    op: str
    opset: int
    inputs: list[Tensor | None]
    outputs: int
    attrs: dict[str, Any] = field(default_factory=dict)

    def tensor(self, index: int) -> Tensor:
        """A required input."""
        tensor = self.optional(index)
        if tensor is None:
            raise Unsupported(f"input {index} is missing")
        return tensor

    def optional(self, index: int) -> Tensor | None:
        """An optional input."""
        return self.inputs[index] if index < len(self.inputs) else None

    def constant(self, index: int, what: str) -> Const:
        """A required input that must be known at import."""
        tensor = self.tensor(index)
        if not isinstance(tensor, Const):
            raise Unsupported(f"its {what} is not a constant")
        return tensor

    def ints(self, attribute: str, index: int | None = None) -> tuple[int, ...] | None:
        """Integers given as an attribute (older opsets) or as a constant input (newer ones); None when absent."""
        if attribute in self.attrs:
            return tuple(int(item) for item in self.attrs[attribute])
        if index is None or self.optional(index) is None:
            return None
        return tuple(int(item) for item in self.constant(index, attribute).array.ravel())

    def number(self, attribute: str, index: int, default: float) -> float:
        """A number given as an attribute or as a constant input."""
        if attribute in self.attrs:
            return float(self.attrs[attribute])
        if self.optional(index) is None:
            return default
        array: Array = self.constant(index, attribute).array
        return float(array.ravel()[0]) if array.size else default


Rule = Callable[[GraphBuilder, OnnxNode], list[Tensor]]
