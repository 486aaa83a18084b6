"""The ready trainer: a network and a data set in, a pruned and retrained network out."""

from __future__ import annotations

import copy
import logging
import statistics
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from blockpunch.data import Preprocess
from blockpunch.errors import ModelError, TrainingError
from blockpunch.graph.ir import Graph
from blockpunch.graph.onnx_import import from_onnx
from blockpunch.plan import Plan
from blockpunch.pruning import checkpoint as files
from blockpunch.pruning.counts import PruneReport
from blockpunch.pruning.dataset import TrainingSet
from blockpunch.pruning.gradual import Gradual
from blockpunch.pruning.graph_module import GraphModule
from blockpunch.pruning.method import Method
from blockpunch.pruning.norms import has_norms
from blockpunch.pruning.objectives import images_of
from blockpunch.pruning.oneshot import prune_oneshot_
from blockpunch.pruning.onnx_recover import write_onnx
from blockpunch.pruning.recipe import Recipe, fast_bfloat16
from blockpunch.pruning.recover import Recovery, Status, distill, fine_tune
from blockpunch.pruning.reweighted import Reweighted
from blockpunch.pruning.torch_prune import Pruner, module_layers

log = logging.getLogger(__name__)

METHODS = ("reweighted", "gradual", "one-shot")
ONE_SHOT_IMAGES = 256
"""Images that one-shot pruning fits the weights on."""
SHARE = 0.4
"""Share of the steps in which a method prunes; the rest is masked retraining."""


def train_onnx(source: str | Path, plan: Plan, data: TrainingSet, destination: str | Path, *, preprocess: Preprocess,
               method: str = "reweighted", minutes: float = 10.0, batch: int = 32, device: str | None = None,
               shape: Mapping[str, tuple[int, ...]] | None = None, checkpoint: str | Path | None = None,
               progress: Callable[[Status], None] | None = None) -> tuple[PruneReport, Recovery]:
    """Prune the ONNX file ``source`` while it is trained on ``data``, and write ``destination``: see :func:`train_`."""
    graph = from_onnx(source, shape=shape)
    module, report, result = train_graph(graph, plan, data, preprocess=preprocess, method=method, minutes=minutes,
                                         batch=batch, device=device, checkpoint=checkpoint, progress=progress)
    write_onnx(source, graph, module.constants(), destination)
    return report, result


def train_graph(graph: Graph, plan: Plan, data: TrainingSet, *, preprocess: Preprocess, method: str = "reweighted",
                minutes: float = 10.0, batch: int = 32, device: str | None = None, checkpoint: str | Path | None = None,
                progress: Callable[[Status], None] | None = None) -> tuple[GraphModule, PruneReport, Recovery]:
    """Prune an imported network while it is trained on ``data``.

    The dense network is the teacher throughout. Labels are used besides it where the network's output is one score for
    each of their classes; detectors and others learn from the teacher alone.

    Args:
        graph: as imported from an ONNX file or a torch module, before any pass.
        plan: of this model. 'reweighted' takes from it the schemes and the rate of the whole network, and finds each
            layer's rate itself; 'gradual' and 'one-shot' (second-order, before the training) prune each layer at the
            plan's rate.
        data: to train on.
        preprocess: how pixels become the network's input.
        method: one of :data:`METHODS`.
        minutes: about how long to train; the number of steps is settled at the start, from the time of one step.
        batch: images in a batch.
        device: as torch names it, for the network and all images; None: the GPU if there is one.
        checkpoint: file to go on from if it is there, and to write to.
        progress: called after each step.

    Returns:
        The trained module, weights and kept weights of each layer, and what the training did.

    Raises:
        ModelError: the network cannot be trained.
        PlanError: the plan is for another model.
        TrainingError: an unknown method, the loss is not finite, or the checkpoint is of another run.
        OutputError: the checkpoint cannot be written.
    """
    if method not in METHODS:
        raise TrainingError(f"unknown method '{method}'", fix=f"choose one of: {', '.join(METHODS)}")
    shape = graph.shape(graph.inputs[0])
    if len(graph.inputs) != 1 or len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
        raise ModelError(f"the trainer takes networks with one square image as input, not {list(shape)}",
                         where=graph.name, fix="use Pruner and fine_tune() in a loop of your own")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    student = GraphModule(graph).to(device)
    teacher = copy.deepcopy(student)
    whole = data.batches(preprocess, shape[2], batch, device=device)
    few = data.batches(preprocess, shape[2], batch, steps=3, device=device)
    outputs, bfloat16 = _look(student, few), fast_bfloat16(device)
    epochs, length = _schedule(checkpoint, lambda: _seconds_per_step(student, teacher, few, bfloat16), minutes,
                               len(whole))
    loader = data.batches(preprocess, shape[2], batch, steps=length, device=device)
    pruner = Pruner(student, plan, method=make_method(method, plan, SHARE * epochs * length))
    if method == "one-shot" and not _started(checkpoint):
        images = list(data.batches(preprocess, shape[2], batch, steps=max(1, ONE_SHOT_IMAGES // batch),
                                   device=device))
        pruner.take(prune_oneshot_(student, plan, images).masks)
    recipe = Recipe(epochs=epochs, optimizer="sgd" if has_norms(student) else "adam", bfloat16=bfloat16,
                    warmup_steps=max(1, min(100, epochs * length // 20)))
    if data.labels is not None and outputs == (few.batch, data.classes):
        result = fine_tune(pruner, loader, teacher=teacher, recipe=recipe, checkpoint=checkpoint, progress=progress)
    else:
        if data.labels is not None:
            log.warning("the network has no score for each of the %d classes: it is trained on the dense network's "
                        "outputs, not on the labels", data.classes)
        result = distill(pruner, teacher, loader, recipe=recipe, checkpoint=checkpoint, progress=progress)
    return student, pruner.finalize_(), result


def make_method(name: str, plan: Plan, steps: float) -> Method | None:
    """The method of that name for so many steps; None for 'one-shot'."""
    count = max(1, round(steps))
    if name == "reweighted":
        return Reweighted(count, target_rate=whole_rate(plan), checks=min(40, count))
    return Gradual(count, checks=min(20, count)) if name == "gradual" else None


def whole_rate(plan: Plan) -> float | None:
    """The rate of all layers together that the plan's own rates come to; None where it does not know all shapes."""
    weights = [torch.Size(entry.shape).numel() if entry.shape else 0 for entry in plan.layers.values()]
    if not weights or min(weights) == 0:
        return None
    return sum(weights) / sum(count / entry.rate for count, entry in zip(weights, plan.layers.values(), strict=True))


def _started(checkpoint: str | Path | None) -> bool:
    """Whether there is a run to go on with."""
    return checkpoint is not None and Path(checkpoint).exists()


def _look(model: nn.Module, loader: Any) -> tuple[int, ...]:
    """The shape of the network's output for one batch, ``()`` where it has several."""
    with torch.no_grad():
        outputs = model.eval()(images_of(next(iter(loader))))
    return tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else ()


def _schedule(checkpoint: str | Path | None, seconds: Callable[[], float], minutes: float,
              full: int) -> tuple[int, int]:
    """Epochs and batches of each: those of the checkpoint, else what fits into the time."""
    if checkpoint is not None and _started(checkpoint):
        run = files.load(Path(checkpoint))[1]["run"]
        return int(run["epochs"]), int(run["batches"])
    steps = max(2, round(60 * minutes / seconds()))
    length = min(full, steps)
    return max(1, round(steps / length)), length


def _seconds_per_step(student: nn.Module, teacher: nn.Module, few: Any, bfloat16: bool) -> float:
    """The median time of the training steps that ``few`` batches make, measured on a copy."""
    trial = copy.deepcopy(student)
    times = [time.monotonic()]
    distill(Pruner(trial, Plan.per_layer(module_layers(trial), {})), teacher, few,
            recipe=Recipe(epochs=1, bfloat16=bfloat16), progress=lambda status: times.append(time.monotonic()))
    return statistics.median(after - before for before, after in pairwise(times))
