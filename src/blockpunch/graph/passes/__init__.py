"""Rewrites that make a graph smaller and faster without changing what it computes.

Every rule looks at one node and its neighbours and says whether it changed something; a pass applies its rules until
none matches. The graph is verified after every pass.
"""

from __future__ import annotations

from collections.abc import Callable

from blockpunch.graph.ir import Graph
from blockpunch.graph.passes import activations, fold, fuse, simplify
from blockpunch.graph.passes.editor import apply_rules, remove_dead
from blockpunch.graph.verify import verify

PASSES: tuple[tuple[str, Callable[[Graph], Graph]], ...] = (
    ("dead code", remove_dead),
    ("duplicates", simplify.merge_duplicates),
    ("simplification", lambda graph: apply_rules(graph, simplify.RULES)),
    ("activation patterns", lambda graph: apply_rules(graph, (*activations.RULES, *simplify.RULES))),
    ("folding", lambda graph: apply_rules(graph, (*fold.RULES, *simplify.RULES))),
    ("numbers", lambda graph: apply_rules(graph, (fold.name_affine,))),
    ("activation fusion", lambda graph: apply_rules(graph, (fuse.fuse_layer_activation,))),
    ("residual fusion", lambda graph: apply_rules(graph, (fuse.fuse_residual,))),
    ("activation fusion after residuals", lambda graph: apply_rules(graph, (fuse.fuse_activation,))),
)


def optimize(graph: Graph) -> Graph:
    """Simplify, fold and fuse; the result computes the same outputs from the same inputs.

    Raises:
        GraphError: the graph, or what a pass made of it, breaks the rules of the representation.
    """
    verify(graph, "import")
    for name, rewrite in PASSES:
        graph = rewrite(graph)
        verify(graph, name)
    return graph
