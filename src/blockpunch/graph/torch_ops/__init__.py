"""How each aten operator becomes operators of the table: both the composite ones and those of core aten."""

from __future__ import annotations

from blockpunch.graph.torch_ops import elementwise, layers, layout
from blockpunch.graph.torch_ops.node import Rule, TorchNode

RULES: dict[str, Rule] = {**layers.RULES, **elementwise.RULES, **layout.RULES}

__all__ = ["RULES", "TorchNode"]
