"""``map --method search``: its options, and what it needs from photos."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from blockpunch.cli import show
from blockpunch.cli.guard import keeps
from blockpunch.cli.options import check_output
from blockpunch.data import Preprocess, list_images
from blockpunch.errors import InputError
from blockpunch.graph.ir import Graph
from blockpunch.mapping import Goal, LatencyTable, Network
from blockpunch.mapping.choices import Mapped
from blockpunch.optimize import Event, photo_batches, search_on_images, split_photos

EVALUATIONS = 200
EXECUTORS = ("local", "ray")
BATCH = 16

Journal = Annotated[Path | None, typer.Option("--journal", show_default=False, help="search: keeps what was evaluated, "
                                              "so that the same command goes on; default: beside the plan.")]
Evaluations = Annotated[int, typer.Option("--evaluations", min=1, help="search: networks to try, at most.")]
ExecutorName = Annotated[str, typer.Option("--executor", help="search: 'local', or 'ray' for the cluster of "
                                                              "RAY_ADDRESS.")]
Workers = Annotated[int | None, typer.Option("--workers", min=1, show_default=False,
                                             help="search: networks to try at once; default: one for each core.")]
Seed = Annotated[int, typer.Option("--seed", help="search: the same seed finds the same plan.")]


@dataclass(frozen=True)
class Search:
    """The options of the search."""

    journal: Path
    evaluations: int
    executor: str
    workers: int | None
    seed: int

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise InputError(f"unknown executor '{self.executor}'", where="--executor",
                             fix=f"choose one of: {', '.join(EXECUTORS)}")


def search(graph: Graph, network: Network, table: LatencyTable, goal: Goal, options: Search, *, errors: Path | None,
           photos: Path | None, preprocess: str, limit: int | None) -> Mapped:
    """The mapping by search; layers are fitted on four fifths of the photos or less, candidates compared on others."""
    if errors is None or photos is None:
        raise InputError("the search tries networks on photos", where="--errors" if errors is None else "--photos",
                         fix="give --errors net.errors.json --photos FOLDER; errors that are missing are computed")
    from blockpunch.mapping.search import Local, OnRay
    from blockpunch.pruning.graph_module import GraphModule

    check_output(errors)
    check_output(options.journal)
    executor = OnRay(options.workers) if options.executor == "ray" else Local(options.workers)
    keeps("errors of the layers so far", errors)
    keeps("what was evaluated", options.journal)
    size = graph.shape(graph.inputs[0])[-1]
    recipe, paths = Preprocess.named(preprocess, size), list_images(photos, limit=limit)
    fit, other = (photo_batches([paths[i] for i in part], recipe, BATCH) for part in split_photos(len(paths), size))
    with show.Watching() as watching:
        mapped, found = search_on_images(
            GraphModule(graph), fit, other, network, table, goal, errors=errors, journal=options.journal,
            evaluations=options.evaluations, seed=options.seed, executor=executor,
            progress=lambda text, done, total: watching(Event(text, done, total)))
    show.note(f"{len(found.losses)} networks tried; loss {found.loss:.4g}, of the exact mapping {found.exact:.4g}")
    return mapped
