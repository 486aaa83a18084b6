"""Rewrites that make a graph smaller and faster without changing what it computes."""

from __future__ import annotations

from blockpunch.graph.ir import Graph
from blockpunch.graph.verify import verify


def optimize(graph: Graph) -> Graph:
    """Apply all passes, verifying after each."""
    result = graph.copy()
    verify(result, "optimize")
    return result
