"""The verbs ``profile`` and ``map``."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from blockpunch.cli import show
from blockpunch.cli.guard import keeps
from blockpunch.cli.optimizing import HeldOut, LabelOffset, LatencyMs, MaxDrop, Speedup, held_out_photos
from blockpunch.cli.options import Json, Output, Shape, Threads, check_output, parse_shapes
from blockpunch.cli.pruning import Limit, OnnxModel, Recipe
from blockpunch.cli.searching import EVALUATIONS, Evaluations, ExecutorName, Journal, Search, Seed, Workers, search
from blockpunch.data import Preprocess, list_images
from blockpunch.errors import InputError
from blockpunch.graph import load_graph
from blockpunch.graph.ir import Graph
from blockpunch.graph.passes import optimize
from blockpunch.mapping import Goal, LatencyTable, Network, profile
from blockpunch.mapping.choices import Mapped
from blockpunch.mapping.exact import map_exact
from blockpunch.mapping.rules import BETA, map_rules
from blockpunch.measure.quality import Check
from blockpunch.optimize import Event, check_batches, exact_on_images, photo_batches, split_photos
from blockpunch.target import TARGET_NAMES, Target

METHODS = ("exact", "rules", "search")
TargetName = Annotated[str, typer.Option("--target", help=f"One of: {', '.join(TARGET_NAMES)}.")]


def profile_(
    model: OnnxModel,
    output: Annotated[Path, typer.Option("--output", "-o", show_default=False,
                                         help="The latency table: made, or added to.")],
    target: TargetName = "host",
    threads: Threads = 1,
    renew: Annotated[bool, typer.Option("--renew", help="Start the table anew.")] = False,
    shape: Shape = None,
) -> None:
    """Measure a network's layers on this machine, under every scheme at several rates, into a latency table."""
    check_output(output)
    if renew:
        output.unlink(missing_ok=True)
    start, chosen = time.monotonic(), Target.named(target)
    table = LatencyTable(output, chosen, threads, model=str(model))
    keeps("what was measured", output)
    network = Network(optimize(load_graph(model, shape=parse_shapes(shape))), chosen, threads)
    before = len(table)
    with show.Watching() as watching:
        rounds = profile(network, table, lambda text, done, total: watching(Event(text, done, total)))
    predicted = table.predict(network, {})
    show.line(f"{output}: {len(table) - before} cells measured in {rounds} rounds, {time.monotonic() - start:.0f} s; "
              f"{len(table)} in all; {model.name} dense: {predicted.seconds * 1e3:.3g} ms, of these "
              f"{predicted.rest * 1e3:.2g} ms in steps without weights")


def map_(
    model: OnnxModel,
    table: Annotated[Path, typer.Option("--table", show_default=False, help="Latencies, from 'blockpunch profile'.")],
    output: Output,
    method: Annotated[str, typer.Option("--method", help=f"One of: {', '.join(METHODS)}.")] = "exact",
    speedup: Speedup = None,
    latency_ms: LatencyMs = None,
    max_drop: MaxDrop = None,
    errors: Annotated[Path | None, typer.Option("--errors", show_default=False,
                                                help="exact, search: the layers' errors, computed with "
                                                     "--photos if missing.")] =
        None,
    photos: Annotated[Path | None, typer.Option("--photos", metavar="FOLDER", show_default=False,
                                                help="exact, search: photos to compute the errors on, and to "
                                                     "try networks on; no labels.")] = None,
    held_out: HeldOut = None,
    label_offset: LabelOffset = 0,
    preprocess: Recipe = "imagenet",
    limit: Limit = None,
    beta: Annotated[float, typer.Option("--beta", min=0.0, help="rules: how much slower than coarse structured pruning "
                                                                "a block may be.")] = BETA,
    hard_data: Annotated[bool, typer.Option("--hard-data", help="rules: a hard data set, such as ImageNet: 3x3 layers "
                                                                "may take patterns.")] = False,
    journal: Journal = None,
    evaluations: Evaluations = EVALUATIONS,
    executor: ExecutorName = "local",
    workers: Workers = None,
    seed: Seed = 0,
    target: TargetName = "host",
    threads: Threads = 1,
    shape: Shape = None,
    json_: Json = None,
) -> None:
    """Choose scheme, block size and rate for each layer, for a latency or a speed-up, and write the plan."""
    check_output(output)
    if method not in METHODS:
        raise InputError(f"unknown method '{method}'", where="--method", fix=f"choose one of: {', '.join(METHODS)}")
    goal, chosen = Goal(speedup, latency_ms, max_drop), Target.named(target)
    if not table.exists():
        raise InputError("no such file", where=str(table), fix=f"blockpunch profile {model} -o {table}")
    latencies = LatencyTable(table, chosen, threads, model=str(model))
    graph = load_graph(model, shape=parse_shapes(shape))
    network = Network(optimize(graph), chosen, threads)
    if method == "rules":
        mapped = map_rules(network, latencies, goal, hard_data=hard_data, beta=beta)
    elif method == "search":
        tries = Search(journal or output.with_suffix(".journal.jsonl"), evaluations, executor, workers, seed)
        mapped = search(graph, network, latencies, goal, tries, errors=errors, photos=photos, preprocess=preprocess,
                        limit=limit)
    else:
        given = Given(errors, photos, held_out, label_offset, preprocess, limit)
        mapped = _exact(graph, network, latencies, goal, given)
    mapped.plan.model = model.name
    mapped.plan.save(output)
    if json_ is not None:
        show.write_json(asdict(mapped) | {"plan": str(output)}, json_)
    if json_ != "-":
        _show(mapped, network, latencies, f"{model.name} -> {output}: {method}, goal {goal}")


@dataclass(frozen=True)
class Given:
    """The options of the exact method."""

    errors: Path | None
    photos: Path | None
    held_out: Path | None
    label_offset: int
    preprocess: str
    limit: int | None


def _exact(graph: Graph, network: Network, table: LatencyTable, goal: Goal, given: Given) -> Mapped:
    """The exact mapping; errors that are missing are computed on photos, and plans tried on held-out ones."""
    if given.errors is None:
        raise InputError("the exact method needs the layers' errors", where="--errors",
                         fix="--errors net.errors.json --photos FOLDER computes and keeps them; or --method rules")
    if given.photos is None and goal.max_drop is not None:
        raise InputError("plans can be tried on photos only", where="--max-drop", fix="--photos FOLDER")
    if given.photos is None:
        from blockpunch.pruning.layer_errors import LayerErrors

        if not given.errors.exists():
            raise InputError("no such file", where=str(given.errors), fix="--photos FOLDER computes it")
        found = LayerErrors.load(given.errors)
        return map_exact(network, table, found.costs, goal, alive=found.alive)
    from blockpunch.pruning.graph_module import GraphModule

    check_output(given.errors)
    keeps("errors of the layers so far", given.errors)
    size = graph.shape(graph.inputs[0])[-1]
    recipe, paths = Preprocess.named(given.preprocess, size), list_images(given.photos, limit=given.limit)
    fit, other = split_photos(len(paths), size)
    check = None
    if goal.max_drop is not None:
        check = (Check([paths[i] for i in other], recipe) if given.held_out is None else
                 held_out_photos(given.held_out, recipe, given.label_offset, given.limit))
    with show.Watching() as watching:
        return exact_on_images(
            GraphModule(graph), photo_batches([paths[i] for i in fit], recipe, 16), network, table, goal,
            errors=given.errors, trials=given.errors.with_suffix(".trials.json"),
            held_out=[] if check is None else check_batches(check, 16),
            labels=None if check is None or check.labels is None else check.labels + check.offset,
            progress=lambda text, done, total: watching(Event(text, done, total)))


def _show(mapped: Mapped, network: Network, table: LatencyTable, title: str) -> None:
    """The plan with its reasons, then what is predicted, then the frontier."""
    dense = {layer.name: table.dense(item) for item in network.items for layer in item.layers if len(item.layers) == 1}
    rows: list[tuple[object, ...]] = [
        (name, "x".join(map(str, entry.shape)), "dense" if not entry.prunes else str(entry.scheme), entry.rate,
         entry.latency_ms, dense[name] * 1e3 if name in dense else None, entry.reason)
        for name, entry in mapped.plan.layers.items()]
    rows.append(("steps without weights", "", "", None, mapped.rest * 1e3, mapped.rest * 1e3, ""))
    rows.append(("all", "", "", None, mapped.seconds * 1e3, mapped.dense * 1e3, f"{mapped.speedup:.2f} x predicted"))
    show.table(title, ("layer", "weight", "scheme", "rate", "ms", "dense ms", "why"), rows, tails=("layer",))
    if mapped.trials:
        show.table("Plans that were tried", ("ms", "speed-up", "cost", "points lost"), [
            (f"{seconds * 1e3:.3g}", f"{mapped.dense / seconds:.2f} x", f"{cost:.3g}", f"{lost:.2f} ± {error:.2f}")
            for seconds, cost, lost, error in mapped.trials])
    if mapped.frontier:
        points = [(seconds * 1e3, mapped.dense / seconds, cost) for seconds, cost in mapped.frontier[::4]]
        show.table("The frontier: the least cost at each latency", ("ms", "speed-up", "cost"),
                   [(f"{ms:.3g}", f"{gain:.2f} x", f"{cost:.3g}") for ms, gain, cost in points])
