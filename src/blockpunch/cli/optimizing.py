"""The verbs ``optimize`` and ``report``."""

from __future__ import annotations

import math
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from blockpunch.cli import show
from blockpunch.cli.guard import keeps
from blockpunch.cli.options import Shape, Threads, Tune, comma_list, parse_shapes
from blockpunch.cli.pruning import Block, Limit, Only, OnnxModel, PlanFile, Recipe, Skip
from blockpunch.data import Preprocess, class_folders, labelled_images, list_images
from blockpunch.mapping import Goal
from blockpunch.measure.quality import Check
from blockpunch.optimize import UNIFORM, Job, OnnxSource, Photos, Settings, rerender, training_pixels
from blockpunch.plan import Plan
from blockpunch.report import ReportFacts
from blockpunch.schemes import Scheme
from blockpunch.target import TARGET_NAMES

HeldOut = Annotated[Path | None, typer.Option("--held-out", metavar="FOLDER", show_default=False,
                                              help="Photos to try plans on for --max-drop: labels.csv, class folders "
                                                   "or no labels; never the test set. Default: part of the photos.")]
Speedup = Annotated[float | None, typer.Option("--speedup", show_default=False,
                                               help="The goal: times the speed of the dense network.")]
LatencyMs = Annotated[float | None, typer.Option("--latency-ms", show_default=False, help="The goal: milliseconds.")]
MaxDrop = Annotated[float | None, typer.Option(
    "--max-drop", metavar="POINTS", show_default=False,
    help="The goal: the fastest network that loses at most so many points of top-1 accuracy, in one shot and without "
         "training.")]
LabelOffset = Annotated[int, typer.Option("--label-offset", help="Added to labels to get output numbers.")]


def optimize(
    model: OnnxModel,
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder, made if missing.", show_default=False)],
    speedup: Speedup = None,
    latency_ms: LatencyMs = None,
    max_drop: MaxDrop = None,
    photos: Annotated[Path | None, typer.Option(
        "--photos", metavar="FOLDER", show_default=False,
        help="Photos to choose, prune and distil on, without labels. Default: rules and magnitudes.")] = None,
    minutes: Annotated[float, typer.Option("--minutes", min=0.0, help="Time to distil on photos; 0: none.")] = 10.0,
    held_out: HeldOut = None,
    table: Annotated[Path | None, typer.Option("--table", show_default=False, help="The latency table, added to if "
                                               "needed. Default: in the user's cache.")] = None,
    profile_seconds: Annotated[float, typer.Option(
        "--profile-seconds", min=0.0, show_default=False,
        help="Time to measure latencies. Default: until nothing is in doubt.")] = math.inf,
    scheme: Annotated[str | None, typer.Option("--scheme", "-s", show_default=False, help="This scheme for all layers, "
                                               "in place of a mapping.")] = None,
    block: Block = None,
    rate: Annotated[float | None, typer.Option("--rate", "-r", show_default=False, help="This rate for all layers, in "
                                               "place of a mapping.")] = None,
    only: Only = None,
    skip: Skip = None,
    plan: PlanFile = None,
    check: Annotated[Path | None, typer.Option(
        "--check", metavar="FOLDER", show_default=False,
        help="The test set, to compare dense and pruned on: labels.csv, class folders, or no labels.")] = None,
    label_offset: LabelOffset = 0,
    limit: Limit = None,
    preprocess: Recipe = "imagenet",
    engines: Annotated[str, typer.Option("--engines", "-e", help="Peers to measure, with commas between.")] =
        "onnxruntime",
    target: Annotated[str, typer.Option("--target", help=f"One of: {', '.join(TARGET_NAMES)}.")] = "host",
    threads: Threads = 1,
    tune: Tune = 0.0,
    seconds: Annotated[float, typer.Option("--seconds", min=0.05, help="Measuring time for each engine.")] = 3.0,
    shape: Shape = None,
) -> None:
    """The main job: measure latencies, choose each layer's scheme and rate, prune, distil, compile, bench, report.

    The goal is --speedup (1.5 if there is none), --latency-ms or --max-drop. --scheme, --rate or --plan take the place
    of the mapping. Interrupt it at will: it goes on where it was.
    """
    keeps("finished stages", output)
    goals = [speedup, latency_ms, max_drop]
    source = OnnxSource(model, parse_shapes(shape))
    size = source.graph.shape(source.graph.inputs[0])[-1]
    settings = Settings(
        goal=Goal(*goals) if goals != [None] * 3 else None, table=table, profile_seconds=profile_seconds,
        scheme=str(Scheme.parse(scheme or UNIFORM, block)) if scheme or block else None, rate=rate,
        only=tuple(only or ()), skip=tuple(skip or ()), plan=Plan.load(plan) if plan is not None else None,
        target=target, threads=threads, minutes=minutes if photos is not None else 0.0,
        engines=tuple(comma_list(engines)), seconds=seconds, tune=tune,
        command="blockpunch " + shlex.join(sys.argv[1:]))
    recipe = Preprocess.named(preprocess, size)
    pixels = None if photos is None else Photos(training_pixels(list_images(photos, limit=limit), size), recipe, size,
                                                f"{photos.name} (photos)")
    test_set, trial_set = (None if folder is None else held_out_photos(folder, recipe, label_offset, limit)
                           for folder in (check, held_out))
    with show.Watching() as watching:
        facts = Job(source, output, settings, pixels, test_set, trial_set, watching).run()
    show_facts(facts)


def report(folder: Annotated[Path, typer.Argument(help="A folder that optimize wrote.", show_default=False)]) -> None:
    """Draw the HTML report of a finished job again."""
    show.line(str(rerender(folder)))


def held_out_photos(folder: Path, preprocess: Preprocess, offset: int, limit: int | None) -> Check:
    """The photos to compare on, with labels where the folder has them."""
    if (folder / "labels.csv").is_file():
        paths, labels = labelled_images(folder, limit=limit)
        return Check(paths, preprocess, labels, offset, f"photos of {folder.name}")
    if folder.is_dir() and any(p.is_dir() for p in folder.iterdir()):
        paths, labels, _ = class_folders(folder, limit=limit)
        return Check(paths, preprocess, labels, offset, f"photos of {folder.name}")
    return Check(list_images(folder, limit=limit), preprocess, source=f"photos of {folder.name}")


def show_facts(facts: ReportFacts) -> None:
    """The result of the main job, in one table."""
    rows: list[tuple[str, object, object]] = []
    words_of = {"peer": "best dense engine", "dense": "blockpunch, dense", "pruned": "blockpunch, pruned"}
    for role, words in words_of.items():
        engine = facts.role(role)
        if engine is not None:
            label = f"{words}: {engine.label} {engine.version}" if role == "peer" else words
            pruned = facts.role("pruned")
            gain = f"{engine.median_ms / pruned.median_ms:.2f} x" if pruned and role != "pruned" else ""
            rows.append((label, f"{engine.median_ms:.3f} ms", gain and f"pruned is {gain} as fast"))
    rows.append(("weights", f"{facts.kept_weights:,} of {facts.weights:,}",
                 f"rate {facts.weights / facts.kept_weights:.2f}"))
    rows.append(("work", f"{facts.kept_macs / 1e6:.1f} of {facts.macs / 1e6:.1f} MMAC",
                 f"rate {facts.macs / facts.kept_macs:.2f}"))
    c = facts.comparison
    if c is not None and c.dense is not None:
        rows.append(("top-1, dense", f"{100 * c.dense:.2f} %", f"{c.images} {c.source}"))
        rows.append(("top-1, pruned", f"{100 * c.pruned:.2f} %", f"{100 * (c.pruned - c.dense):+.2f} points; "
                     f"{c.only_dense_right} right only dense, {c.only_pruned_right} only pruned"))
    elif c is not None:
        rows.append(("same answer as dense", f"{100 * c.agreement:.1f} %",
                     f"on {c.images} {c.source}; agreement, not accuracy: there are no labels"))
    show.table(f"{facts.model}: {facts.plan}, {facts.threads} thread(s)", ("", "", ""), rows)
