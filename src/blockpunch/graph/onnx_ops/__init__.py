"""How each ONNX operator becomes operators of the table: one rule per row, opset differences inside the rule."""

from __future__ import annotations

from blockpunch.graph.onnx_ops import elementwise, layout, window
from blockpunch.graph.onnx_ops.node import OnnxNode, Rule

RULES: dict[str, Rule] = {**window.RULES, **elementwise.RULES, **layout.RULES}

__all__ = ["RULES", "OnnxNode"]
