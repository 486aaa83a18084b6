"""One-shot pruning of an ONNX file on photos: as a torch module, layer after layer, written back into the file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from blockpunch.graph.onnx_import import from_onnx
from blockpunch.plan import Plan
from blockpunch.pruning.allocate import rated
from blockpunch.pruning.graph_module import GraphModule
from blockpunch.pruning.oneshot import OneShot, Progress, prune_oneshot_
from blockpunch.pruning.onnx_recover import write_onnx


def prune_oneshot_onnx(source: str | Path, plan: Plan, batches: Iterable[Any], destination: str | Path, *,
                       rate: float | None = None, shape: Mapping[str, tuple[int, ...]] | None = None,
                       store: str | Path | None = None, progress: Progress | None = None) -> OneShot:
    """Prune the ONNX file ``source`` by ``plan`` without training, on unlabelled images, and write ``destination``.

    Batch-norms may be folded into the convolutions: then their biases take up the change of the means.

    Args:
        source: the dense network.
        plan: of this model: every prunable layer is in it.
        batches: a few hundred images ``[N, C, H, W]`` as the network takes them (torch tensors), any batch size.
        destination: an ONNX file with the same graph, written whole or not at all.
        rate: of all pruned layers together, spread over them by their errors; None: the plan's rates.
        shape: input name -> static shape, where the file has dynamic dimensions.
        store: with ``rate``: a JSON file for the layers' errors, which an interrupted run goes on from.
        progress: called after each layer with (done, all, name); with ``rate`` once through for the errors first.

    Raises:
        ModelError: the file cannot be read, imported, or run as a torch module.
        PlanError: the plan is for another model.
        DataError: no images, or images that the network cannot take.
        OutputError: the destination or the store cannot be written.
    """
    graph = from_onnx(source, shape=shape)
    model = GraphModule(graph)
    images = list(batches)
    if rate is not None:
        plan = rated(model, plan, images, rate, store=store, progress=progress)
    result = prune_oneshot_(model, plan, images, progress=progress)
    write_onnx(source, graph, model.constants(), destination)
    return result
