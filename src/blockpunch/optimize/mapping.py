"""The exact mapping from images: the layers' errors, the frontier, and trials along it where accuracy is the goal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from blockpunch.data import Labels
from blockpunch.mapping.choices import Mapped, contenders
from blockpunch.mapping.drop import map_within_drop
from blockpunch.mapping.exact import Exact, map_exact
from blockpunch.mapping.goal import Goal
from blockpunch.mapping.network import Network
from blockpunch.mapping.table import LatencyTable

Progress = Callable[[str, float, float], None]
"""Called with a line of text, what is done, and what there is to do."""


def exact_on_images(model: Any, images: Sequence[Any], network: Network, table: LatencyTable, goal: Goal, *,
                    errors: Path, trials: Path, held_out: Sequence[Any] = (), labels: Labels | None = None,
                    progress: Progress = lambda text, done, total: None) -> Mapped:
    """The best plan for a goal; what was computed stays on disk, and the same call goes on from there. Needs torch.

    Args:
        model: dense torch module, its layers named as those of ``network``.
        images: batches to compute the layers' errors on, and to prune on in trials.
        network, table: dense, and its latencies.
        goal: any; ``held_out`` and ``labels`` are needed for a loss of accuracy alone.
        errors, trials: JSON files.
        held_out: batches of other images, on which plans are tried.
        labels: of these, as numbers of outputs; None: the dense network's confidence stands in.
        progress: told about everything that takes long.

    Raises:
        DataError: files that belong to another model or to other images; images the network cannot take.
        PlanError: the goal cannot be reached.
    """
    from blockpunch.mapping.evaluation import Evaluation
    from blockpunch.pruning.layer_errors import layer_errors

    found = layer_errors(model, images, contenders(network, table), store=errors,
                         progress=lambda done, total, name: progress(f"errors: {name}", done, total))
    if goal.max_drop is None:
        return map_exact(network, table, found.errors, goal, importance=found.sensitivity)
    lost = Evaluation(model, images, held_out, labels, store=trials, progress=progress)
    exact = Exact.solve(network, table, found.errors, found.sensitivity)
    return map_within_drop(exact, goal.max_drop, lambda plan: (lost(plan).points, lost(plan).error))
