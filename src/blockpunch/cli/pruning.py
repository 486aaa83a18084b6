"""The verb ``prune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blockpunch.cli import show
from blockpunch.cli.guard import keeps
from blockpunch.cli.options import Json, Output, Shape, check_output, parse_shapes
from blockpunch.data import PREPROCESS, Preprocess, list_images
from blockpunch.errors import DataError, PlanError
from blockpunch.graph import load_graph
from blockpunch.layers import Layer, prunable_layers
from blockpunch.optimize import (
    Event,
    Photos,
    batches,
    one_shot_photos,
    photo_batches,
    training_pixels,
)
from blockpunch.plan import Plan
from blockpunch.pruning.counts import PruneReport
from blockpunch.schemes import REGULARITIES, Scheme

OnnxModel = Annotated[Path, typer.Argument(help="An ONNX file.", show_default=False)]
SchemeName = Annotated[str, typer.Option("--scheme", "-s", help=f"One of: {', '.join(REGULARITIES)}.")]
Block = Annotated[str | None, typer.Option("--block", metavar="PxQ", show_default=False,
                                           help="Block size, filters x channels, like 8x4.")]
Rate = Annotated[float, typer.Option("--rate", "-r", help="Weights before / weights kept, in each pruned layer.")]
Only = Annotated[list[str] | None, typer.Option("--only", metavar="SELECTOR", show_default=False,
                                                help="Prune these layers only: name, glob or type.")]
Skip = Annotated[list[str] | None, typer.Option("--skip", metavar="SELECTOR", show_default=False,
                                                help="Leave these layers dense.")]
PlanFile = Annotated[Path | None, typer.Option("--plan", show_default=False,
                                               help="A plan in JSON, in place of scheme and rate.")]


OneShotPhotos = Annotated[Path | None, typer.Option("--one-shot", metavar="FOLDER", show_default=False,
                                                    help="Photos to prune on without training; no labels needed.")]
Distill = Annotated[Path | None, typer.Option("--distill", metavar="FOLDER", show_default=False,
                                              help="Photos to recover on; no labels needed.")]
Train = Annotated[Path | None, typer.Option("--train", metavar="DATA", show_default=False,
                                            help="Prune while training: CIFAR batches, class folders, or detection "
                                                 "data in YOLO's format.")]
Method = Annotated[str, typer.Option("--method", help="With --train: reweighted (finds each layer's rate itself), "
                                                      "gradual or one-shot.")]
Minutes = Annotated[float, typer.Option("--minutes", min=0.01, help="Time for the recovery, or for the training.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Use at most so many photos.", show_default=False)]
Recipe = Annotated[str, typer.Option("--preprocess", help=f"How photos become inputs: {', '.join(PREPROCESS)}.")]


def make_plan(layers: list[Layer], model: str, plan: Path | None, scheme: str, block: str | None, rate: float,
              only: list[str] | None, skip: list[str] | None) -> Plan:
    """The plan that the options ask for."""
    if plan is not None:
        if only or skip:
            raise PlanError("a plan names its layers itself", where=str(plan), fix="leave out --only and --skip")
        loaded = Plan.load(plan)
        loaded.check(layers)
        return loaded
    return Plan.uniform(layers, Scheme.parse(scheme, block), rate, only=only or (), skip=skip or (), model=model)


def prune(
    model: OnnxModel,
    output: Output,
    scheme: SchemeName = "block-punched",
    block: Block = None,
    rate: Rate = 4.0,
    only: Only = None,
    skip: Skip = None,
    plan: PlanFile = None,
    save_plan: Annotated[Path | None, typer.Option("--save-plan", show_default=False,
                                                   help="Write the plan that was used, to be edited.")] = None,
    one_shot: OneShotPhotos = None,
    distill: Distill = None,
    train: Train = None,
    method: Method = "reweighted",
    minutes: Minutes = 10.0,
    preprocess: Recipe = "imagenet",
    limit: Limit = None,
    shape: Shape = None,
    json_: Json = None,
) -> None:
    """Prune an ONNX file: the least important groups of weights become zeros, the graph stays as it is.

    With --one-shot photos decide, by second-order errors, and the weights that stay make up for those that go; nothing
    is trained. With --distill the network is then trained on photos to answer as the dense one does. With --train it is
    pruned during training on a data set. With --one-shot and --train --rate is that of all pruned layers together,
    spread over them, unless --plan is given.
    """
    from blockpunch.pruning.onnx_prune import onnx_layers, prune_onnx

    check_output(output)
    if sum(folder is not None for folder in (one_shot, distill, train)) > 1:
        raise DataError("--one-shot, --distill and --train exclude each other",
                        fix="--distill prunes as --one-shot does before it trains; --train takes unlabelled photos too")
    shapes = parse_shapes(shape)
    # With shapes the plan knows each layer's work; without, names and weights are enough.
    layers = prunable_layers(load_graph(model, shape=shapes)) if shapes else onnx_layers(model)
    chosen = make_plan(layers, model.name, plan, scheme, block, rate, only, skip)
    if one_shot is not None:
        result, chosen = _one_shot(model, chosen, output, one_shot, None if plan is not None else rate, preprocess,
                                   limit, shapes)
    elif train is not None:
        result = _trained(model, chosen, output, train, method, minutes, preprocess, limit, shapes)
    elif distill is None:
        result = prune_onnx(model, chosen, output)
    else:
        result = _distilled(model, chosen, output, distill, minutes, preprocess, limit, shapes)
    if save_plan is not None:
        chosen.save(save_plan)
    if json_ is not None:
        show.write_json({"output": str(output), **result.to_dict()}, json_)
    if json_ == "-":
        return
    rows = [(c.name, "x".join(map(str, entry.shape)), str(entry.scheme), c.weights, c.kept,
             c.rate if c.kept else None, entry.reason)
            for c in result.layers for entry in [chosen.layers[c.name]]]
    rows.append(("all", "", "", result.weights, result.kept, result.rate if result.kept else None, ""))
    show.table(f"{model.name} -> {output}", ("layer", "weight", "scheme", "weights", "kept", "rate", "why"), rows)


def _one_shot(model: Path, plan: Plan, output: Path, folder: Path, rate: float | None, preprocess: str,
              limit: int | None, shapes: dict[str, tuple[int, ...]] | None) -> tuple[PruneReport, Plan]:
    """Prune on photos without training; the layers' errors stay beside the output."""
    from blockpunch.pruning.onnx_oneshot import prune_oneshot_onnx

    graph = load_graph(model, shape=shapes)
    size = graph.shape(graph.inputs[0])[-1]
    recipe = Preprocess.named(preprocess, size)
    paths = list_images(folder, limit=limit or one_shot_photos(size))
    with show.Watching() as watching:
        def progress(done: int, total: int, name: str) -> None:
            watching(Event(f"one-shot: {name}", done, total))

        images = photo_batches(paths, recipe, 16)
        result = prune_oneshot_onnx(model, plan, images, output, rate=rate, shape=shapes, progress=progress,
                                    store=output.with_name(output.name + ".errors.json"))
    for name, reason in result.skipped.items():
        show.note(f"{name} stays dense: {reason}")
    return result.report, result.plan


def _distilled(model: Path, plan: Plan, output: Path, folder: Path, minutes: float, preprocess: str, limit: int | None,
               shapes: dict[str, tuple[int, ...]] | None) -> PruneReport:
    """Prune and train back; a checkpoint beside the output lets the same command go on after an interruption."""
    graph = load_graph(model, shape=shapes)
    size = graph.shape(graph.inputs[0])[-1]
    photos = Photos(training_pixels(list_images(folder, limit=limit), size), Preprocess.named(preprocess, size), size)
    from blockpunch.pruning.onnx_recover import distill_onnx
    from blockpunch.pruning.recover import Recipe as Training
    from blockpunch.pruning.recover import Status

    checkpoint = output.with_name(output.name + ".checkpoint")
    keeps("the training so far", checkpoint)
    with show.Watching() as watching:
        def progress(status: Status) -> None:
            watching(Event(f"distil: step {status.step}, loss {status.loss:.3f}", status.seconds, minutes * 60))

        result, _ = distill_onnx(model, plan, batches(photos, 16), output, shape=shapes, checkpoint=checkpoint,
                                 recipe=Training(epochs=100_000, minutes=minutes, optimizer="adam", warmup_steps=10),
                                 progress=progress)
    checkpoint.unlink(missing_ok=True)
    return result


def _trained(model: Path, plan: Plan, output: Path, folder: Path, method: str, minutes: float, preprocess: str,
             limit: int | None, shapes: dict[str, tuple[int, ...]] | None) -> PruneReport:
    """Prune during training; a checkpoint beside the output lets the same command go on after an interruption."""
    from blockpunch.pruning.dataset import load_training_set
    from blockpunch.pruning.recover import Status
    from blockpunch.pruning.train import train_onnx

    graph = load_graph(model, shape=shapes)
    size = graph.shape(graph.inputs[0])[-1]
    checkpoint = output.with_name(output.name + ".checkpoint")
    keeps("the training so far", checkpoint)
    with show.Watching() as watching:
        data = load_training_set(folder, size, limit=limit,
                                 progress=lambda done, total: watching(Event("reading images", done, total)))
        watching(Event(f"training on {data.kind}"))

        def progress(status: Status) -> None:
            watching(Event(f"train: step {status.step}, loss {status.loss:.3f}", status.step, status.steps))

        report, _ = train_onnx(model, plan, data, output, preprocess=Preprocess.named(preprocess, size), method=method,
                               minutes=minutes, shape=shapes, checkpoint=checkpoint, progress=progress)
    checkpoint.unlink(missing_ok=True)
    return report
