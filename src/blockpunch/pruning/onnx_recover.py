"""Recovery of a network that is only there as an ONNX file: trained as a torch module, written back into the file."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from blockpunch.errors import ModelError
from blockpunch.graph.ir import Graph
from blockpunch.graph.onnx_import import from_onnx
from blockpunch.plan import Plan
from blockpunch.pruning.counts import PruneReport
from blockpunch.pruning.graph_module import GraphModule
from blockpunch.pruning.oneshot import first_images, prune_oneshot_
from blockpunch.pruning.onnx_weights import OnnxWeights
from blockpunch.pruning.recover import Recipe, Recovery, Status, distill
from blockpunch.pruning.torch_prune import Pruner

Array = npt.NDArray[Any]


def distill_onnx(source: str | Path, plan: Plan, batches: Iterable[Any], destination: str | Path, *,
                 shape: Mapping[str, tuple[int, ...]] | None = None, recipe: Recipe | None = None,
                 photos: int = 256, checkpoint: str | Path | None = None,
                 progress: Callable[[Status], None] | None = None) -> tuple[PruneReport, Recovery]:
    """Prune the dense ONNX file ``source``, train it on unlabelled images towards itself, write ``destination``.

    Args:
        source: the dense network; it is also the teacher.
        plan: of this model: every prunable layer is in it.
        batches: sized, gives images ``[N, C, H, W]`` as the network takes them (torch tensors), any batch size.
        destination: an ONNX file with the same graph and the trained weights, written whole or not at all.
        shape: input name -> static shape, where the file has dynamic dimensions.
        recipe: optimizer, schedule and budget; None: Adam.
        photos: images for the one-shot pruning before training; 0: prune by magnitude.
        checkpoint, progress: as in :func:`blockpunch.pruning.recover.fine_tune`.

    Raises:
        ModelError: the file cannot be read, imported, or trained.
        PlanError: the plan is for another model.
        TrainingError: the loss is not finite, or the checkpoint is of another run.
        OutputError: the destination or the checkpoint cannot be written.
    """
    graph = from_onnx(source, shape=shape)
    student = GraphModule(graph)
    teacher = copy.deepcopy(student)
    pruner = Pruner(student, plan)
    if photos and not (checkpoint is not None and Path(checkpoint).exists()):
        torch.manual_seed(recipe.seed if recipe is not None else 0)
        pruner.take(prune_oneshot_(student, plan, first_images(batches, photos)).masks)
    result = distill(pruner, teacher, batches, recipe=recipe, checkpoint=checkpoint, progress=progress)
    report = pruner.finalize_()
    write_onnx(source, graph, student.constants(), destination)
    return report, result


def write_onnx(source: str | Path, graph: Graph, constants: Mapping[str, Array], destination: str | Path) -> None:
    """Write the file ``source`` with new values for weights, biases and batch-norms; its graph stays as it is.

    Args:
        source: the ONNX file that ``graph`` was imported from.
        graph: as imported, before any pass.
        constants: name in ``graph`` -> new value; constants that are not named stay as they are.
        destination: written whole or not at all; may be ``source``.

    Raises:
        ModelError: a constant does not belong to a convolution, linear layer or batch-norm of the file.
        OutputError: the destination cannot be written.
    """
    weights = OnnxWeights(source)
    counts = Counter(node.name for node in weights.graph.node)
    nodes = {node.name if node.name and counts[node.name] == 1 else node.output[0]: node for node in weights.graph.node}
    for name, value in constants.items():
        users = [(nodes.get(node.path), index) for node in graph.nodes if node.op in ("Conv", "Linear", "BatchNorm")
                 for index, read in enumerate(node.inputs) if read == name]
        places = [(node, index) for node, index in users if node is not None and index < len(node.input)]
        if not places or len(places) < len(users):
            raise ModelError(f"'{name}' is no weight of a layer of the file", where=str(source),
                             fix="export the model again without constant arithmetic on its weights")
        forms = [_as_stored(weights, node, index, value) for node, index in places]
        for form in {(form.shape, form.tobytes()): form for form in forms}.values():
            same = [place for place, other in zip(places, forms, strict=True)
                    if other.shape == form.shape and np.array_equal(other, form)]
            weights.replace(same, form)
    weights.save(destination)


def _as_stored(weights: OnnxWeights, node: Any, index: int, value: Array) -> Array:
    """The value as input ``index`` of the ONNX node holds it: untransposed, unscaled."""
    stored = weights.constant(node.input[index])
    if stored is None:
        raise ModelError(f"input {index} is not a constant", where=f"{weights.where}, node '{node.output[0]}'")
    attrs = {item.name: item for item in node.attribute}
    if node.op_type == "Gemm":
        factor = attrs["alpha" if index == 1 else "beta"].f if ("alpha" if index == 1 else "beta") in attrs else 1.0
        value = value / np.float32(factor) if factor != 1 else value
    if index == 1 and (node.op_type == "MatMul" or (node.op_type == "Gemm" and not _flag(attrs, "transB"))):
        value = value.T
    return np.ascontiguousarray(value.reshape(stored.shape) if value.size == stored.size else value)


def _flag(attrs: Mapping[str, Any], name: str) -> bool:
    return name in attrs and bool(attrs[name].i)
