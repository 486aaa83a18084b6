"""One-shot pruning of an ONNX file by group magnitude: weights become zeros, the graph stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from blockpunch.errors import DynamicShapeError, ModelError, SchemeError, UnsupportedOperatorError
from blockpunch.graph.onnx_import import from_onnx
from blockpunch.plan import Layer, LayerPlan, Plan, prunable_layers
from blockpunch.pruning.counts import LayerCount, PruneReport
from blockpunch.pruning.onnx_weights import OnnxWeights, WeightUse

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]
Progress = Callable[[int, int, str], None]
"""Called with (layers done, layers in all, name of the layer)."""


def onnx_layers(model: str | Path | onnx.ModelProto) -> list[Layer]:
    """The prunable layers of an ONNX file, named as its imported graph names them.

    A file that cannot be imported as it is (dynamic shapes, operators that the compiler lacks) can be pruned all the
    same: then its layers come without output shapes and MACs.

    Raises:
        ModelError: no such file, or not an ONNX model.
    """
    weights = OnnxWeights(model)
    try:
        return prunable_layers(from_onnx(weights.proto))
    except (DynamicShapeError, UnsupportedOperatorError):
        return [use.layer for use in weights.uses()]


def prune_onnx(source: str | Path, plan: Plan, destination: str | Path, *, zero_dead: bool | None = None,
               progress: Progress | None = None) -> PruneReport:
    """Prune the ONNX file ``source`` by ``plan`` and write it to ``destination`` (which may be the same path).

    A weight that several nodes share is pruned once where their plans agree; nodes whose plans differ get copies.

    Args:
        source: an ``.onnx`` file; external data is read from beside it.
        plan: of this model: every prunable layer is in it.
        destination: written whole or not at all. Weights up to 1.9 GB are inside it, larger ones beside it.
        zero_dead: also zero the bias and batch-norm scale and shift of filters that lost all weights; they would put
            out a constant otherwise. None: in layers pruned by 'filter' only.
        progress: called after each layer.

    Returns:
        Weights and kept weights of each layer, counted in what is written.

    Raises:
        ModelError: no ONNX model, or a layer's weights are not finite.
        PlanError: the plan is for another model.
        OutputError: the destination cannot be written.
    """
    weights = OnnxWeights(source)
    uses = weights.uses()
    plan.check([use.layer for use in uses])
    groups = _by_weight(weights, uses, plan)
    for done, group in enumerate(groups, start=1):
        entry = plan.layers[group[0].layer.name]
        if entry.prunes:
            mask = _prune(weights, group, entry)
            if zero_dead or (zero_dead is None and entry.scheme.regularity == "filter"):
                dead = np.logical_not(np.any(mask.reshape(len(mask), -1), axis=1))
                for use in group:
                    _zero_dead(weights, use, dead)
        if progress is not None:
            progress(done, len(groups), group[0].layer.name)
    report = PruneReport([_count(weights, use, plan.layers[use.layer.name]) for use in uses])
    weights.save(destination)
    return report


def _by_weight(weights: OnnxWeights, uses: Sequence[WeightUse], plan: Plan) -> list[list[WeightUse]]:
    """Uses that share a tensor, and all that decides its mask, together."""
    groups: dict[tuple[Any, ...], list[WeightUse]] = {}
    for use in uses:
        entry = plan.layers[use.layer.name]
        key = (weights.alias(use.tensor), use.transposed, use.layer.conv_groups, entry.scheme, entry.rate)
        groups.setdefault(key, []).append(use)
    return list(groups.values())


def _prune(weights: OnnxWeights, group: list[WeightUse], entry: LayerPlan) -> npt.NDArray[np.bool_]:
    use = group[0]
    stored = weights.constant(use.tensor)
    assert stored is not None, "uses() only returns constant weights"
    matrix = use.as_layer(stored)
    try:
        mask = entry.scheme.mask(matrix, entry.rate, conv_groups=use.layer.conv_groups)
    except SchemeError as error:
        raise ModelError(error.what, where=f"{weights.where}, layer '{use.layer.name}'") from error
    pruned = np.where(mask, matrix, np.zeros((), matrix.dtype))
    weights.replace([(item.node, 1) for item in group], use.as_stored(pruned))
    return mask


def _zero_dead(weights: OnnxWeights, use: WeightUse, dead: npt.NDArray[np.bool_]) -> None:
    """Zero the bias of dead filters, and what a batch-norm or a bias Add right behind the layer makes of them."""
    if not dead.any():
        return
    if len(use.node.input) > 2:
        _zero(weights, use.node, 2, dead, axis=-1)
    users = [(node, index) for node in weights.graph.node for index, name in enumerate(node.input)
             if name == use.node.output[0]]
    if len(users) != 1 or weights.readers[use.node.output[0]] != 1:
        return
    node, index = users[0]
    if node.op_type == "BatchNormalization" and index == 0:
        _zero(weights, node, 1, dead, axis=-1)
        _zero(weights, node, 2, dead, axis=-1)
    elif node.op_type == "Add":
        _zero(weights, node, 1 - index, dead, axis=-1 if use.layer.kind == "linear" else -2 if use.line else -3)


def _zero(weights: OnnxWeights, node: onnx.NodeProto, index: int, dead: npt.NDArray[np.bool_], axis: int) -> None:
    """Zero the entries of a constant input that belong to dead filters, which lie along ``axis``."""
    array = weights.constant(node.input[index]) if node.input[index] else None
    if array is None or array.ndim < -axis or array.shape[axis] != len(dead):
        return
    shape = [1] * array.ndim
    shape[axis] = len(dead)
    weights.replace([(node, index)], np.where(dead.reshape(shape), np.zeros((), array.dtype), array))


def _count(weights: OnnxWeights, use: WeightUse, entry: LayerPlan) -> LayerCount:
    array = weights.constant(use.tensor)
    assert array is not None, "uses() only returns constant weights"
    return LayerCount(use.layer.name, str(entry.scheme), entry.rate, array.size, int(np.count_nonzero(array)))
