"""What pruning would cost the network, layer by layer: errors on photos, and how much each counts. Needs torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockpunch.atomic import write_text
from blockpunch.errors import DataError
from blockpunch.graph.ir import Graph
from blockpunch.mapping.network import Cell
from blockpunch.pruning.layer_errors import LayerErrors, Progress, layer_errors


@dataclass(frozen=True)
class Costs:
    """``errors[layer][(scheme, rate)]`` (relative squared error of the output), and the factor on each layer's."""

    errors: Mapping[str, Mapping[tuple[str, float], float]]
    importance: Mapping[str, float]

    @classmethod
    def load(cls, path: Path) -> Costs:
        """What :func:`measure_costs` left at ``path``.

        Raises:
            DataError: no such files, or something else.
        """
        return cls(LayerErrors.load(path).errors, _read(importance_path(path)))


def importance_path(errors: Path) -> Path:
    """The factors lie beside the errors: ``net.errors.json`` and ``net.errors.sensitivity.json``."""
    return errors.with_suffix(".sensitivity.json")


def measure_costs(graph: Graph, images: Sequence[Any], cells: Mapping[str, Sequence[Cell]], store: Path,
                  progress: Progress | None = None) -> Costs:
    """Errors of the layers' cells on photos; each layer's are on disk before the next one begins.

    Args:
        graph: as imported, before any pass.
        images: a few hundred photos in batches ``[N, C, H, W]``, as the network takes them; no labels.
        cells: layer -> schemes and rates.
        store: JSON file for the errors; what it holds is not computed again.
        progress: called after each layer with (done, all, name).

    Raises:
        ModelError: the network cannot be run as a torch module.
        DataError: no photos, photos that the network cannot take, or a store of another model or of other photos.
    """
    from blockpunch.pruning.graph_module import GraphModule
    from blockpunch.pruning.sensitivity import sensitivity

    model = GraphModule(graph)
    found = layer_errors(model, images, cells, store=store, progress=progress)
    beside = importance_path(store)
    known = _read(beside) if beside.exists() else {}
    if found.errors.keys() - known.keys():
        known = sensitivity(model, images, list(found.errors))
        write_text(beside, json.dumps(known, indent=1) + "\n")
    return Costs(found.errors, known)


def _read(path: Path) -> dict[str, float]:
    try:
        return {str(name): float(value) for name, value in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DataError(f"no table of sensitivities ({error})", where=str(path),
                        fix="compute it with --photos; it is kept beside the errors") from error
