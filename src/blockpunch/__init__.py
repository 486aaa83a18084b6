"""blockpunch: prune each layer the way that suits it best, compile what is left into the fastest native code.

The public names. Each is imported on first use, so that ``blockpunch.Session`` needs numpy alone.
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blockpunch.artifact import Artifact
    from blockpunch.build import compile
    from blockpunch.errors import (
        ArtifactError,
        BenchmarkError,
        BlockpunchError,
        ClusterError,
        DataError,
        DynamicShapeError,
        GraphError,
        InputError,
        MissingExtraError,
        ModelError,
        OutputError,
        PlanError,
        SchemeError,
        SelectorError,
        TargetError,
        TargetMismatchError,
        ToolchainError,
        TrainingError,
        UnsupportedOperatorError,
    )
    from blockpunch.graph import load_graph
    from blockpunch.graph.ir import Graph
    from blockpunch.plan import Plan
    from blockpunch.pruning import Pruner
    from blockpunch.runtime.session import Session
    from blockpunch.schemes import Scheme
    from blockpunch.target import Target

__version__ = metadata.version("blockpunch")

__all__ = [
    "Artifact",
    "ArtifactError",
    "BenchmarkError",
    "BlockpunchError",
    "ClusterError",
    "DataError",
    "DynamicShapeError",
    "Graph",
    "GraphError",
    "InputError",
    "MissingExtraError",
    "ModelError",
    "OutputError",
    "Plan",
    "PlanError",
    "Pruner",
    "Scheme",
    "SchemeError",
    "SelectorError",
    "Session",
    "Target",
    "TargetError",
    "TargetMismatchError",
    "ToolchainError",
    "TrainingError",
    "UnsupportedOperatorError",
    "__version__",
    "compile",
    "load_graph",
]

_HOME = {
    "Artifact": "artifact",
    "Graph": "graph.ir",
    "Plan": "plan",
    "Pruner": "pruning",
    "Scheme": "schemes",
    "Session": "runtime.session",
    "Target": "target",
    "compile": "build",
    "load_graph": "graph",
}


def __getattr__(name: str) -> Any:
    if name.startswith("_") or name not in __all__:
        raise AttributeError(f"module 'blockpunch' has no attribute '{name}'")
    value = getattr(import_module(f"blockpunch.{_HOME.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
