"""The mapping in the main job: the latency table, then the exact choice on photos, or rules where there are none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockpunch.data import Labels, spread
from blockpunch.errors import DataError, PlanError
from blockpunch.graph.passes import optimize
from blockpunch.mapping.choices import Mapped, contenders
from blockpunch.mapping.drop import map_within_drop
from blockpunch.mapping.exact import Exact, map_exact
from blockpunch.mapping.goal import Goal
from blockpunch.mapping.network import Network
from blockpunch.mapping.profile import profile
from blockpunch.mapping.rules import map_rules
from blockpunch.mapping.table import LatencyTable, table_path
from blockpunch.measure.quality import Check
from blockpunch.optimize.event import Event
from blockpunch.optimize.photos import Photos, check_batches, split_photos
from blockpunch.optimize.recovery import ONE_SHOT_BATCH, save_one_shot
from blockpunch.optimize.source import Source
from blockpunch.optimize.workfolder import WorkFolder, fingerprint
from blockpunch.plan import Plan
from blockpunch.report import MappingFacts
from blockpunch.target import Target

if TYPE_CHECKING:
    from blockpunch.mapping.evaluation import Keep
    from blockpunch.mapping.search import Executor, Found
    from blockpunch.pruning.layer_errors import LayerErrors

Progress = Callable[[str, float, float], None]
"""Called with a line of text, what is done, and what there is to do."""
ERROR_IMAGES = 128
"""The layers' errors put plans into order; that takes fewer images than pruning."""


def exact_on_images(model: Any, images: Sequence[Any], network: Network, table: LatencyTable, goal: Goal, *,
                    errors: Path, trials: Path, held_out: Sequence[Any] = (), labels: Labels | None = None,
                    progress: Progress = lambda text, done, total: None, keep: Keep | None = None) -> Mapped:
    """The best plan for a goal; what was computed stays on disk, and the same call goes on from there. Needs torch.

    Args:
        model: dense torch module, its layers named as those of ``network``.
        images: batches to prune on in trials; the layers' errors are computed on :data:`ERROR_IMAGES` of them.
        network, table: dense, and its latencies.
        goal: any; ``held_out`` and ``labels`` are needed for a loss of accuracy alone.
        errors, trials: JSON files.
        held_out: batches of other images, on which plans are tried.
        labels: of these, as numbers of outputs; None: the dense network's confidence stands in.
        progress: told about everything that takes long.
        keep: given each network that was pruned in a trial.

    Raises:
        DataError: files that belong to another model or to other images; images the network cannot take.
        PlanError: the goal cannot be reached.
    """
    from blockpunch.mapping.evaluation import Evaluation

    found = errors_on_images(model, images, network, table, errors, progress)
    if goal.max_drop is None:
        return map_exact(network, table, found.costs, goal, alive=found.alive)
    lost = Evaluation(model, images, held_out, labels, store=trials, progress=progress, keep=keep)
    exact = Exact.solve(network, table, found.costs, found.alive)
    return map_within_drop(exact, goal.max_drop, lambda plan: (lost(plan).points, lost(plan).error))


def search_on_images(model: Any, images: Sequence[Any], held_out: Sequence[Any], network: Network, table: LatencyTable,
                     goal: Goal, *, errors: Path, journal: Path, evaluations: int, seed: int, executor: Executor,
                     progress: Progress = lambda text, done, total: None) -> tuple[Mapped, Found]:
    """The plan that the search finds, and how it did; arguments as for :func:`exact_on_images`. Needs torch.

    Raises:
        DataError: files that belong to another model, other images or another search.
        PlanError: the goal cannot be reached.
        ClusterError: the executor's cluster.
    """
    from blockpunch.mapping.search import map_search
    from blockpunch.mapping.search.oneshot import OneShotLoss

    found = errors_on_images(model, images, network, table, errors, progress)
    return map_search(network, table, found.costs, goal, OneShotLoss(model, images, held_out), seed=seed,
                      alive=found.alive, evaluations=evaluations, journal=journal,
                      executor=executor, progress=progress)


def errors_on_images(model: Any, images: Sequence[Any], network: Network, table: LatencyTable, store: Path,
                     progress: Progress) -> LayerErrors:
    """The layers' errors for all cells that may be chosen, from ``store`` or computed on some of the images."""
    from blockpunch.pruning.layer_errors import layer_errors

    few = spread(images, -(-ERROR_IMAGES // len(images[0])))
    return layer_errors(model, few, contenders(network, table), store=store,
                        progress=lambda done, total, name: progress(f"errors: {name}", done, total))


def tried_file(work: WorkFolder, source: Source, photos: Photos, plan: Plan) -> Path:
    """Where a trial leaves its pruned network: pruning by the same plan, on the same photos, is not done twice."""
    return work.file(f"tried-{fingerprint(source.key, photos.facts(), plan.effect())[:12]}.safetensors")


@dataclass
class MappingStages:
    """The stages ``profile`` and ``map`` of a job, for one network and one goal.

    Files in the work folder: ``plan.json``, ``errors-KEY.json``, ``trials-KEY.json``,
    ``tried-KEY.safetensors``. The table is ``table``, or in the user's cache, where other networks find it.
    """

    work: WorkFolder
    source: Source
    target: Target
    threads: int
    goal: Goal
    photos: Photos | None
    held_out: Check | None
    table: Path | None
    profile_seconds: float
    show: Callable[[Event], None]

    def run(self) -> tuple[Plan, MappingFacts]:
        """The plan, and what the report tells about it.

        Raises:
            PlanError: the goal cannot be reached, or this machine is not the target.
            DataError: an accuracy is the goal, and there are no photos.
        """
        if not self.target.runs_here()[0]:
            raise PlanError(f"nothing can be measured for {self.target.name} here", where="mapping",
                            fix="give a scheme and a rate, or a plan that was mapped on such a machine")
        if self.photos is None and self.goal.max_drop is not None:
            raise DataError("plans can be tried on photos only", fix="give a folder of photos, or another goal")
        network = Network(optimize(self.source.graph), self.target, self.threads)
        table = LatencyTable(self.table or table_path(self.target, self.threads), self.target, self.threads)
        key = fingerprint(self.source.key, table.header, self.profile_seconds)  # with more time more is measured

        def measure() -> dict[str, int]:
            rounds = profile(network, table, self._tell, seconds=self.profile_seconds)
            return {"rounds": rounds, "cells": sum(len(table.cells(item.key)) for item in network.items)}

        self.work.stage("profile", key, [], measure)
        images = None if self.photos is None else self.photos.facts()
        check = None if self.held_out is None else self.held_out.facts()
        facts = self.work.stage("map", fingerprint(key, str(self.goal), images, check), ["plan.json"],
                                lambda: self._map(network, table, measure))
        return Plan.load(self.work.file("plan.json")), MappingFacts.from_json(facts)

    def _map(self, network: Network, table: LatencyTable, measure: Callable[[], Any]) -> dict[str, Any]:
        """``plan.json`` and the facts."""
        if table.rest(network) is None:  # the cache was emptied since
            measure()
        if self.photos is None:
            self.show(Event("map: no photos, so rules choose by latencies alone; photos would let errors decide"))
            mapped = map_rules(network, table, self.goal)
        else:
            mapped = self._exact(self.photos, network, table)
        mapped.plan.model = self.source.name
        mapped.plan.save(self.work.file("plan.json"))
        one_step = [item for item in network.items if len(item.layers) == 1  # else masks decide whether it is one
                    or not mapped.plan.layers[item.layers[0].name].scheme.rule.any_filters]
        layers = {item.step: sum(mapped.plan.layers[layer.name].latency_ms or 0.0 for layer in item.layers)
                  for item in one_step}
        return asdict(MappingFacts(
            "rules" if self.photos is None else "exact", str(self.goal), 1e3 * mapped.dense, 1e3 * mapped.seconds,
            1e3 * mapped.rest, mapped.cost, [(1e3 * seconds, cost) for seconds, cost in mapped.frontier],
            [(1e3 * seconds, cost, points, error) for seconds, cost, points, error in mapped.trials], layers))

    def _exact(self, photos: Photos, network: Network, table: LatencyTable) -> Mapped:
        from blockpunch.pruning.graph_module import GraphModule

        fit, rest = split_photos(len(photos.pixels), photos.size)
        held_out, labels = [], None
        if self.goal.max_drop is not None:
            held_out = (photos.centres(rest, ONE_SHOT_BATCH) if self.held_out is None
                        else check_batches(self.held_out, ONE_SHOT_BATCH))
            if self.held_out is not None and self.held_out.labels is not None:
                labels = self.held_out.labels + self.held_out.offset
        return exact_on_images(GraphModule(self.source.graph), photos.centres(fit, ONE_SHOT_BATCH), network, table,
                               self.goal, errors=self._store("errors", photos), trials=self._store("trials", photos),
                               held_out=held_out, labels=labels, progress=self._tell, keep=self._keep)

    def _keep(self, plan: Plan, pruned: Any, found: Any, drop: Any) -> None:
        """Of the networks that reach the goal the last one, which is the fastest."""
        if self.goal.max_drop is not None and drop.points <= self.goal.max_drop and self.photos is not None:
            path = tried_file(self.work, self.source, self.photos, plan)
            save_one_shot(path, pruned, found)
            for other in set(path.parent.glob("tried-*.safetensors")) - {path}:
                other.unlink(missing_ok=True)

    def _store(self, name: str, photos: Photos) -> Path:
        """A file of this network, these photos and this way to try plans: others do not meet it."""
        check = None if self.held_out is None else self.held_out.facts()
        key = fingerprint(self.source.key, photos.facts(), check if name == "trials" else None)
        return self.work.file(f"{name}-{key[:12]}.json")

    def _tell(self, text: str, done: float, total: float) -> None:
        self.show(Event(text, done, total))
